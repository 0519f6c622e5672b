"""The tables of docs/transfer.md, from the folder of a finished grid, and its picture, from results.csv or a
part of it.

    python benchmarks/transfer.py GRID_FOLDER [--without TARGET]
    python benchmarks/transfer.py docs/transfer.csv                  draws docs/transfer.png

Gains are over no transfer with the same seed; the mean gains leave out the target named by --without.
"""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiments.grid_table import draw_heat_map

Cells = dict[tuple[str, str], dict[str, float]]  # (source, target) → seed → the target's metric, or the gain


def read_cells(grid: Path) -> tuple[Cells, Cells]:
    """The values of all cells, and the gains of those with transfer."""
    with open(grid / "results.csv", newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    values = {
        (row["source"], row["target"]): {
            seed: read_metrics(grid / "cells" / row["source"] / row["target"] / seed)[row["metric"]]
            for seed in row["seeds"].split()
        }
        for row in rows
    }
    signs = {row["target"]: -1 if row["metric"].endswith("_loss") else 1 for row in rows}
    gains = {
        (source, target): {seed: signs[target] * (value - values["none", target][seed]) for seed, value in by_seed.items()}
        for (source, target), by_seed in values.items() if source != "none"
    }  # fmt: skip
    return values, gains


def read_metrics(run_folder: Path) -> dict:
    """The final metrics of a run."""
    return json.loads((run_folder / "metrics.json").read_text())


def draw(table: Path) -> None:
    """The heat map of a table, beside it."""
    with open(table, newline="", encoding="utf-8") as file:
        rows = [
            row | {key: float(row[key]) if row[key] else None for key in ("mean", "gain")}
            for row in csv.DictReader(file)
        ]
    draw_heat_map(rows, table.with_suffix(".png"))


def mean_and_deviation(numbers: dict[str, float], sign: str = "") -> str:
    """As `0.903 ± 0.007`."""
    return f"{statistics.mean(numbers.values()):{sign}.3f} ± {statistics.stdev(numbers.values()):.3f}"


def mean_gains(gains: Cells, source: str, without: str) -> dict[str, float]:
    """The mean gain over the targets, by seed."""
    rows = [by_seed for (name, target), by_seed in gains.items() if name == source and target != without]
    return {seed: statistics.mean(row[seed] for row in rows) for seed in rows[0]}


def print_table(values: Cells, gains: Cells, without: str) -> None:
    """A row per source, a column per target."""
    sources, targets = (list(dict.fromkeys(names)) for names in zip(*gains, strict=True))
    print("| from |", " | ".join(targets), "| mean gain | by seed |")
    print("|---" * (len(targets) + 3) + "|")
    print(
        "| no transfer |",
        " | ".join(mean_and_deviation(values["none", target]) for target in targets),
        "| | |",
    )
    for source in sources:
        cells = [
            mean_and_deviation(gains[source, target], "+") if (source, target) in gains else ""
            for target in targets
        ]
        by_seed = mean_gains(gains, source, without)
        print(
            f"| {source} |",
            " | ".join(cells),
            f"| {statistics.mean(by_seed.values()):+.3f} |",
            ", ".join(f"{gain:+.3f}" for gain in by_seed.values()),
            "|",
        )


def print_noise(values: Cells, gains: Cells) -> None:
    """How much of it may be chance."""
    for target in dict.fromkeys(target for _, target in values):
        variances = [
            statistics.variance(by_seed.values()) for (_, name), by_seed in values.items() if name == target
        ]
        print(
            f"deviation from seed to seed on {target}, all rows pooled: {statistics.mean(variances) ** 0.5:.3f}"
        )
    agreeing = sum(min(by_seed.values()) > 0 or max(by_seed.values()) < 0 for by_seed in gains.values())
    by_chance = sum(2 * 0.5 ** len(by_seed) for by_seed in gains.values())
    print(
        f"{agreeing} of {len(gains)} gains have the same sign with all seeds; {by_chance:g} would by chance"
    )


def print_sources(grid: Path) -> None:
    """What the sources themselves learned."""
    for run_folder in sorted(grid.glob("sources/*/*")):
        found = read_metrics(run_folder)
        metrics = {
            name: round(value, 3)
            for name, value in found.items()
            if name.startswith("valid_") and name != "valid_loss"
        }
        print(f"source {run_folder.name}: {found['n_labels']:,} labels, {metrics}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "grid", type=Path, help="folder of a finished grid, with two seeds or more; or a table to draw"
    )
    parser.add_argument("--without", default="", help="target to leave out of the mean gains")
    arguments = parser.parse_args()
    if arguments.grid.is_file():
        sys.exit(draw(arguments.grid))
    values, gains = read_cells(arguments.grid)
    print_table(values, gains, arguments.without)
    print_noise(values, gains)
    print_sources(arguments.grid)
