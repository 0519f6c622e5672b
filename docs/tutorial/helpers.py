"""What the chapters share: their trainings, excerpts of the source, and the style of the plots."""

import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.flags import replace
from config.groups import RunArguments
from experiments.graph import Metrics, train_or_resume

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("TUTORIAL_FOLDER", "runs/tutorial"))  # of the run folders

# A test runs every chapter with a few steps, examples and tokens.
SHORT = os.environ.get("TUTORIAL") == "short"
REVIEWS = str(FOLDER / "few_reviews") if SHORT else "imdb"
SMALL = {"n_steps": 4, "max_length": 24, "num_max_positions": 24, "valid_batch_size": 256}

# Chapter 2 trains the quickstart's language model for a third of its steps.
PRETRAINING = {"dataset_path": REVIEWS, "n_steps": 400, "eval_every": 100, "log_every": 2}
PRETRAINING |= {"embed_dim": 32, "hidden_dim": 32} if SHORT else {}

# Okabe and Ito's colors, for colour-blind readers; styles and markers tell the lines apart in print.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#888888")
STYLES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (5, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
plt.rcParams |= {
    "axes.prop_cycle": plt.cycler(color=COLORS, linestyle=STYLES, marker=MARKERS),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "figure.constrained_layout.use": True,
    "figure.dpi": 110,
    "figure.figsize": (6, 3.5),
    "lines.markersize": 4,
}


class Excerpt:
    """Source code of the project as it is now, which a notebook shows with its place."""

    def __init__(self, *objects):
        self.objects = objects

    def __repr__(self) -> str:
        return "\n\n".join(f"# {place(item)}\n{inspect.getsource(item)}" for item in self.objects)

    def _repr_markdown_(self) -> str:
        return f"```python\n{self!r}```"


def place(item) -> str:
    """The file that a function or class is in, relative to the project, and its line."""
    item = inspect.unwrap(item)
    file = Path(inspect.getsourcefile(item)).resolve()
    return f"{file.relative_to(ROOT).as_posix()}, line {inspect.getsourcelines(item)[1]}"


def heat_map(axes: Axes, values, rows: list[str], columns: list[str]) -> None:
    """Draw a matrix with a name for each row and column; dark is high."""
    axes.imshow(values, cmap="Blues", vmin=0)
    is_long = max(map(len, columns)) > 2
    axes.set_xticks(range(len(columns)), columns, rotation=90 if is_long else 0)
    axes.set_yticks(range(len(rows)), rows)


def train(name: str, function: Callable[..., Metrics], config: RunArguments) -> Metrics:
    """The metrics of a training in a folder of `FOLDER`. A finished one is not repeated."""
    if SHORT:
        names = {field.name for field in dataclasses.fields(config)}
        config = replace(config, **{key: value for key, value in SMALL.items() if key in names})
    return train_or_resume(function, config, FOLDER / name)


def training_curve(run_folder: Path, scalar: str = "training/loss") -> tuple[list[int], list[float]]:
    """Steps and values of what a training wrote to TensorBoard."""
    events = EventAccumulator(str(run_folder)).Reload().Scalars(scalar)
    return [event.step for event in events], [event.value for event in events]
