"""The tables of docs/transfer.md, from the folder of a finished grid; its heat map, from results.csv.

    python benchmarks/transfer.py GRID_FOLDER [--without TARGET]
    python benchmarks/transfer.py docs/transfer.csv                  draws docs/transfer.png

A gain compares with no transfer and the same seed. The mean gains exclude the target named by --without.
"""

import argparse
import csv
import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiments.grid_table import draw_heat_map

Cells = dict[tuple[str, str], dict[str, float]]  # (source, target) → seed → metric or gain


def read_cells(grid: Path) -> tuple[Cells, Cells]:
    """The metrics of all cells, and the gains of the cells with transfer."""
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
        (source, target): {
            seed: signs[target] * (value - values["none", target][seed]) for seed, value in by_seed.items()
        }
        for (source, target), by_seed in values.items()
        if source != "none"
    }
    return values, gains


def read_metrics(run_folder: Path) -> dict:
    """The final metrics of a run."""
    return json.loads((run_folder / "metrics.json").read_text())


def draw(results: Path) -> None:
    """Draw the heat map of a results.csv beside it."""
    with open(results, newline="", encoding="utf-8") as file:
        rows = [
            row | {key: float(row[key]) if row[key] else None for key in ("mean", "gain")}
            for row in csv.DictReader(file)
        ]
    draw_heat_map(rows, results.with_suffix(".png"))


def mean_and_deviation(numbers: dict[str, float], sign: str = "") -> str:
    """Like `0.903 ± 0.007`."""
    return f"{statistics.mean(numbers.values()):{sign}.3f} ± {statistics.stdev(numbers.values()):.3f}"


def mean_gains(gains: Cells, source: str, without: str) -> dict[str, float]:
    """The mean gain over all targets but one, by seed."""
    rows = [by_seed for (name, target), by_seed in gains.items() if name == source and target != without]
    return {seed: statistics.mean(row[seed] for row in rows) for seed in rows[0]}


def print_table(values: Cells, gains: Cells, without: str) -> None:
    """Print a row per source and a column per target."""
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
    """Print how much of the gains may be chance."""
    for target in dict.fromkeys(target for _, target in values):
        variances = [
            statistics.variance(by_seed.values()) for (_, name), by_seed in values.items() if name == target
        ]
        deviation = statistics.mean(variances) ** 0.5
        print(f"deviation from seed to seed on {target}, all rows pooled: {deviation:.3f}")
    agreeing = sum(min(by_seed.values()) > 0 or max(by_seed.values()) < 0 for by_seed in gains.values())
    by_chance = sum(2 * 0.5 ** len(by_seed) for by_seed in gains.values())
    print(
        f"{agreeing} of {len(gains)} gains have the same sign with all seeds; {by_chance:g} would by chance"
    )


def print_sources(grid: Path) -> None:
    """Print what the sources themselves learned."""
    for run_folder in sorted(grid.glob("sources/*/*")):
        metrics = read_metrics(run_folder)
        valid_metrics = {
            name: round(value, 3)
            for name, value in metrics.items()
            if name.startswith("valid_") and name != "valid_loss"
        }
        print(f"source {run_folder.name}: {metrics['n_labels']:,} labels, {valid_metrics}")


def main() -> None:
    """Print the tables, or draw the heat map."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "grid", type=Path, help="folder of a finished grid with at least two seeds, or a results.csv to draw"
    )
    parser.add_argument("--without", default="", help="target to exclude from the mean gains")
    arguments = parser.parse_args()
    if arguments.grid.is_file():
        draw(arguments.grid)
        return
    values, gains = read_cells(arguments.grid)
    print_table(values, gains, arguments.without)
    print_noise(values, gains)
    print_sources(arguments.grid)


if __name__ == "__main__":
    main()
