"""The tables and the plot of docs/multitask.md, from the rows of benchmarks/multitask_study.py."""

import json
import re
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from real_tasks import TASKS

ROWS, PLOT = Path("docs/multitask_study.jsonl"), Path("docs/multitask_curves.png")
TITLES = {"ours": "ours, 2 × 256", "minilm": "MiniLM, 6 × 384"}
AT_CHANCE = ("cola", "rte")  # for both models, also when they learn nothing else
REFERENCE = "ca_mtl sequential"
CONTROL = "ca_mtl, the same z for all"  # of the ablation: all weights are there, but do not know the task
SAMPLINGS = ("sequential", "uniform", "uncertainty", "uncertainty, equal shares")
# What is compared seed by seed: the first one minus the second one.
PAIRS = [
    ("single", "plain sequential"),
    ("single", REFERENCE),
    *((f"ca_mtl {sampling}", f"plain {sampling}") for sampling in SAMPLINGS),
    ("lora", "plain sequential"),
    ("lora", REFERENCE),
    ("ca_mtl frozen", REFERENCE),
    (CONTROL, "plain sequential"),
    (REFERENCE, CONTROL),
    *((f"ca_mtl without {part}", REFERENCE) for part in ("alignment", "attention", "norm", "bottleneck")),
    *((f"{part}, at lr", REFERENCE) for part in ("bottleneck alone", "attention and bottleneck")),
    *((f"plain {sampling}", "plain sequential") for sampling in SAMPLINGS[1:]),
    *((f"ca_mtl {sampling}", REFERENCE) for sampling in SAMPLINGS[1:]),
    ("lora uncertainty, equal shares", "lora"),
]
BY_TASK = ("single", "plain sequential", REFERENCE, "lora")
DRAWN = ("sequential", "uncertainty", "uncertainty, equal shares")
CURVES = ("single", *(f"{kind} {name}" for kind in ("plain", "ca_mtl") for name in DRAWN))
CURVES += ("lora", "lora uncertainty, equal shares")
NAMES = {"single": "a model per task", "ca_mtl": "CA-MTL", "norm": "LayerNorms", "lora": "`lora`"}
NAMES |= {"frozen": "lower half frozen"}
# Okabe and Ito's, which colour-blind readers can tell apart.
COLORS = {"single": "#000000", "plain": "#E69F00", "ca_mtl": "#0072B2", "lora": "#009E73"}


def read_rows() -> list[dict]:
    """What was measured, a row for each model, cell and seed."""
    return [json.loads(line) for line in ROWS.read_text().splitlines()] if ROWS.is_file() else []


class Results:
    """The rows of a model, by cell and seed."""

    def __init__(self, model: str, cells: Sequence[str]):
        found = {(row["cell"], row["seed"]): row for row in read_rows() if row["model"] == model}
        self.rows = {
            cell: {seed: row for (name, seed), row in sorted(found.items()) if name == cell} for cell in cells
        }
        self.rows = {cell: rows for cell, rows in self.rows.items() if rows}

    def averages(self, cell: str, without: Sequence[str] = ()) -> dict[int, float]:
        """By seed, the mean over the tasks of the test scores."""
        tasks = [task for task in TASKS if task not in without]
        return {
            seed: statistics.mean(row["scores"][task] for task in tasks)
            for seed, row in self.rows.get(cell, {}).items()
        }

    def scores(self, cell: str, task: str) -> list[float]:
        """Of all seeds."""
        return [row["scores"][task] for row in self.rows[cell].values()]

    def one_model(self) -> float:
        """The parameters of a model of one task."""
        return next(iter(self.rows["single"].values()))["n_parameters"] / len(TASKS)


def title(cell: str) -> str:
    """A cell as the docs call it."""
    for name, shown in NAMES.items():
        cell = cell.replace(name, shown)
    return cell


def with_deviation(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.3f}{deviation}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    text = "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines])
    return re.sub(r"-(?=\d)", "−", text)


def print_tables(model: str, cells: Sequence[str]) -> None:
    """Averages of all cells, differences seed by seed, and the scores of single tasks."""
    results = Results(model, cells)
    if "single" not in results.rows:
        sys.exit("the table compares with the models of single tasks; train them with --cells single")
    print(f"{TITLES[model]}\n\n{averages_table(results)}\n")
    print(f"{differences_table(results)}\n\n{tasks_table(results)}\n")


def averages_table(results: Results) -> str:
    header = ["cell", "seeds", "average", "without cola, rte", "worst task against its own model"]
    header += ["parameters", "examples"]
    single = {task: statistics.mean(results.scores("single", task)) for task in TASKS}
    rows = []
    for cell, by_seed in results.rows.items():
        row = next(iter(by_seed.values()))
        lead = {task: statistics.mean(results.scores(cell, task)) - single[task] for task in TASKS}
        worst = min(TASKS, key=lead.__getitem__)
        rows.append(
            [
                title(cell),
                str(len(by_seed)),
                with_deviation(list(results.averages(cell).values())),
                with_deviation(list(results.averages(cell, AT_CHANCE).values())),
                "" if cell == "single" else f"{worst} {lead[worst]:+.3f}",
                f"{row['n_parameters'] / results.one_model():.2f}",
                f"{row['curve'][-1][0]:,}",
            ]
        )
    return markdown(header, rows)


def differences_table(results: Results) -> str:
    """Of the averages of two cells, for each seed that both have."""
    rows = []
    for cell, other in PAIRS:
        mine, theirs = (results.averages(name) for name in (cell, other))
        differences = [mine[seed] - theirs[seed] for seed in mine if seed in theirs]
        if differences:
            each = ", ".join(f"{difference:+.3f}" for difference in differences)
            mean = f"{statistics.mean(differences):+.3f}"
            rows.append([f"{title(cell)} − {title(other)}", mean, each])
    return markdown(["difference", "mean", "seed by seed"], rows)


def tasks_table(results: Results) -> str:
    cells = [cell for cell in BY_TASK if cell in results.rows]
    rows = [[task, *(with_deviation(results.scores(cell, task)) for cell in cells)] for task in TASKS]
    return markdown(["task", *map(title, cells)], rows)


def draw_curves() -> None:
    """The average on validation against the examples that were trained on, for each model a plot: means over
    the seeds; of the models of single tasks and of CA-MTL also one deviation to both sides."""
    from matplotlib.figure import Figure

    rows = read_rows()
    figure = Figure(figsize=(11, 5.5), layout="constrained")
    for axes, model in zip(figure.subplots(1, 2), ("ours", "minilm"), strict=True):
        for cell in CURVES:
            curves = [row["curve"] for row in rows if (row["model"], row["cell"]) == (model, cell)]
            if curves:
                examples, averages = np.array(curves)[0, :, 0], np.array(curves)[:, :, 1]
                mean, deviation = averages.mean(0), averages.std(0, ddof=min(1, len(curves) - 1))
                color = COLORS[cell.split()[0]]
                style = "--" if "equal shares" in cell else ":" if "uncertainty" in cell else "-"
                label = title(cell).replace("`", "")
                axes.plot(examples, mean, style, marker="o", markersize=3, color=color, label=label)
                if cell in ("single", REFERENCE):
                    axes.fill_between(examples, mean - deviation, mean + deviation, color=color, alpha=0.12)
        axes.set(title=TITLES[model], xlabel="examples of all tasks", ylabel="average on validation")
        axes.grid(alpha=0.3)
        axes.locator_params(axis="x", nbins=5)
    handles_and_labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(*handles_and_labels, ncols=3, loc="outside lower center", frameon=False)
    figure.savefig(PLOT, dpi=120)
