"""What the chapters share: their trainings, excerpts of the source, and the style of the plots."""

import ast
import dataclasses
import inspect
import os
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from config.flags import replace
from config.groups import RunArguments
from config.presets import load_preset
from experiments.graph import Metrics, train_or_resume
from pretraining_train import PretrainingConfig, pretrain

ROOT = Path(__file__).parents[2]
FOLDER = Path(os.environ.get("TUTORIAL_FOLDER", "runs/tutorial"))  # of the run folders

# A test runs every chapter with a few steps, examples and tokens.
SHORT = os.environ.get("TUTORIAL") == "short"
REVIEWS = str(FOLDER / "few_reviews") if SHORT else "imdb"
SMALL = {"n_steps": 4, "max_length": 24, "num_max_positions": 24, "valid_batch_size": 256}

# Chapter 2 trains the quickstart's language model with fewer steps; all later ones start from there.
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
    """Source code of the project as it is now, which a notebook shows with its place.

    An item is a function, a class, or a pair: a module, and the name of a variable in it.
    """

    def __init__(self, *items):
        self.items = items

    def __repr__(self) -> str:
        return "\n\n".join(map(excerpt, self.items))

    def _repr_markdown_(self) -> str:
        return f"```python\n{self!r}```"


def excerpt(item) -> str:
    """The file, relative to the project, the line, and the code of an item."""
    if isinstance(item, tuple):
        module, name = item
        code = inspect.getsource(module)
        nodes = [node for node in ast.parse(code).body if isinstance(node, ast.Assign)]
        node = next(node for node in nodes if ast.unparse(node.targets[0]) == name)
        code, line, item = f"{ast.get_source_segment(code, node)}\n", node.lineno, module
    else:
        item = inspect.unwrap(item)
        lines, line = inspect.getsourcelines(item)
        code = "".join(lines)
    file = Path(inspect.getsourcefile(item)).resolve().relative_to(ROOT)
    return f"# {file.as_posix()}, line {line}\n{code}"


def heat_map(
    axes: Axes, values, rows: list[str], columns: list[str], limit: float | None = None, texts=()
) -> AxesImage:
    """Draw a matrix with a name for each row and column, and texts in its cells if there are any; dark is
    high or, with a limit, far from 0.
    """
    colors = {"cmap": "PuOr", "vmin": -limit, "vmax": limit} if limit else {"cmap": "Blues", "vmin": 0}
    image = axes.imshow(values, **colors)
    is_long = max(map(len, columns)) > 2
    axes.set_xticks(range(len(columns)), columns, rotation=90 if is_long else 0)
    axes.set_yticks(range(len(rows)), rows)
    for row, column in np.ndindex(np.shape(texts)):
        color = "white" if limit and abs(values[row][column]) > 0.6 * limit else "black"
        axes.text(column, row, texts[row][column], ha="center", va="center", color=color, fontsize=8)
    return image


def train(name: str, function: Callable[..., Metrics], config: RunArguments) -> Metrics:
    """The metrics of a training in a folder of `FOLDER`. A finished one is not repeated."""
    if SHORT:
        names = {field.name for field in dataclasses.fields(config)}
        config = replace(config, **{key: value for key, value in SMALL.items() if key in names})
        if getattr(config, "restarts", 1) > 2:
            config = replace(config, restarts=2)
    return train_or_resume(function, config, FOLDER / name)


def language_model() -> Path:
    """The run folder of chapter 2's model, which is trained if it is not there."""
    train("pretrained", pretrain, load_preset(PretrainingConfig, "quickstart_pretrain", **PRETRAINING))
    return FOLDER / "pretrained"


def training_curve(run_folder: Path, scalar: str = "training/loss") -> tuple[list[int], list[float]]:
    """Steps and values of what a training wrote to TensorBoard."""
    events = EventAccumulator(str(run_folder)).Reload().Scalars(scalar)
    return [event.step for event in events], [event.value for event in events]


def gains(metrics: Metrics, baseline: Metrics) -> str:
    """The differences of two trainings' accuracies, seed by seed."""
    pairs = zip(metrics["restarts"], baseline["restarts"], strict=True)
    return ", ".join(f"{run['valid_accuracy'] - other['valid_accuracy']:+.3f}" for run, other in pairs)
