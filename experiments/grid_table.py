"""The results of a grid of trainings: a table with a row for each cell, and a heat map."""

import csv
import math
import statistics
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from checkpoints.atomic import atomic_write
from data.tables import read_rows
from experiments.cells import Cell
from experiments.graph import Metrics
from experiments.restarts import sample_deviation
from experiments.task_map import NO_TRANSFER

TABLE = "results.csv"  # in the folder of the grid
COLUMNS = ["source", "target", "metric", "n", "mean", "std", "gain", "gain_std", "seeds"]
Row = dict[str, Any]


def rows_of_cells(jobs: Sequence[Cell], metrics: dict[str, Metrics]) -> list[Row]:
    """A row for each cell with finished trainings: mean and deviation over its seeds, and the gain over no
    transfer with the same seeds (positive is better). `metrics` are those of the trainings by name.
    """
    values: dict[tuple[str, str], dict[int, float]] = {}
    metric_of = {}
    for job in jobs:
        if job.target and job.name in metrics:
            metric_of[job.target] = job.metric
            by_seed = values.setdefault((job.source, job.target), {})
            by_seed[job.config.seed] = metrics[job.name][job.metric]
    rows = []
    for (source, target), by_seed in values.items():
        sign = -1 if metric_of[target].endswith("_loss") else 1
        base = values.get((NO_TRANSFER, target), {})
        gains = [sign * (value - base[seed]) for seed, value in by_seed.items() if seed in base]
        row = {"source": source, "target": target, "metric": metric_of[target], "n": len(by_seed)}
        row |= {"mean": mean(by_seed.values()), "std": deviation(by_seed.values())}
        row |= {"gain": mean(gains), "gain_std": deviation(gains), "seeds": " ".join(map(str, by_seed))}
        rows.append(row)
    return rows


def mean(values: Collection[float]) -> float | None:
    """The mean, if there are values."""
    return round(statistics.mean(values), 6) if values else None


def deviation(values: Collection[float]) -> float | None:
    """The sample deviation, if there are two values or more."""
    return round(sample_deviation(values), 6) if len(values) > 1 else None


def write_table(file: Path, rows: list[Row]) -> None:
    """Write the rows as CSV."""
    with atomic_write(file) as tmp_path, open(tmp_path, "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read_table(file: Path) -> list[dict[str, str]]:
    """The rows as texts. Raises UserError for a file that is no such table."""
    return list(read_rows(file))


def in_order_of_map(rows: list[Row], jobs: Sequence[Cell]) -> list[Row]:
    """The rows in the order of the task map: no transfer, the sources, their fusions."""
    # A source that is the first target is late among the rows.
    sources = [Path(job.name).name for job in jobs if not job.target]
    order = [NO_TRANSFER, *sources, *(row["source"] for row in rows)]
    return sorted(rows, key=lambda row: order.index(row["source"]))


def draw_heat_map(rows: list[Row], file: Path) -> None:
    """Sources × targets, as `rows_of_cells` has them, in the order of the rows: the color is the gain over
    no transfer, the number the mean.

    Grey cells have no gain: they were not trained, or there is no training without transfer to compare with.
    """
    from matplotlib.figure import Figure  # half a second

    cells = {(row["source"], row["target"]): row for row in rows}
    sources, targets = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    metrics = {row["target"]: row["metric"].removeprefix("valid_") for row in rows}
    row_labels = ["no transfer" if source == NO_TRANSFER else shorten(source) for source in sources]
    column_labels = [f"{shorten(target)} ({metrics[target]})" for target in targets]
    gains = [[cells.get((source, target), {}).get("gain") for target in targets] for source in sources]
    sizes = [abs(gain) for line in gains for gain in line if gain is not None and math.isfinite(gain)]
    most = max(sizes, default=0) or 0.01

    letter = 0.08  # inches
    width = 1.6 + letter * max(map(len, row_labels)) + 0.85 * len(targets)
    height = 0.4 + 0.7 * letter * max(map(len, column_labels)) + max(1.8, 0.42 * len(sources))
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("0.8")
    image = axes.imshow(
        [[float("nan") if gain is None else gain for gain in line] for line in gains],
        cmap="RdBu",
        vmin=-most,
        vmax=most,
        aspect="auto",
    )
    axes.set_xticks(range(len(targets)), column_labels, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(sources)), row_labels)
    for (source, target), row in cells.items():
        is_dark = abs(row["gain"] or 0) > 0.6 * most
        axes.text(
            targets.index(target),
            sources.index(source),
            f"{row['mean']:.3f}",
            ha="center",
            va="center",
            color="white" if is_dark else "black",
        )
    figure.colorbar(image, label="gain over no transfer", fraction=0.7 / width, pad=0.2 / width)
    with atomic_write(file) as tmp_path:
        figure.savefig(tmp_path, format="png", dpi=150)


def shorten(name: str, longest: int = 30) -> str:
    """A name with its middle left out where it is too long."""
    half = longest // 2
    return name if len(name) <= longest else f"{name[:half]}…{name[1 - half :]}"
