"""A ranking as a table in the terminal, as CSV and JSON, and as a chart."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from checkpoints.atomic import atomic_write
from checkpoints.files import write_json
from utils import show

Row = dict[str, Any]
TABLE, REPORT, CHART = "ranking.csv", "ranking.json", "ranking.png"


def show_ranking(rows: Sequence[Row], methods: Sequence[str], sorted_by: str, n_sources: int) -> None:
    """Print the best sources, with the ranks by each method, and where nine tenths of them lie."""
    others = [method for method in methods if method != sorted_by]
    header = ["rank", "source", sorted_by, "spread", *others]
    lines = [
        [
            format_rank(row, sorted_by),
            row["source"],
            format_score(row, sorted_by),
            format_spread(row, sorted_by),
        ]
        + [format_rank(row, method) for method in others]
        for row in rows
    ]
    show("\n".join(align(header, lines)))
    if n_sources > len(rows):
        show(f"… and {n_sources - len(rows)} more")


def align(header: list[str], lines: list[list[str]]) -> list[str]:
    """The lines of a table with columns of equal width."""
    widths = [max(len(line[column]) for line in [header, *lines]) for column in range(len(header))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in [header, *lines]
    ]


def format_score(row: Row, method: str) -> str:
    return "-" if math.isnan(row[method]) else f"{row[method]:.4f}"


def format_rank(row: Row, method: str) -> str:
    rank = row[f"{method} rank"]
    return "-" if math.isnan(rank) else str(int(rank))


def format_spread(row: Row, method: str) -> str:
    low, high = row[f"{method} low"], row[f"{method} high"]
    return "-" if math.isnan(low) else f"{low:.0f}–{high:.0f}"


def write_ranking(folder: Path, rows: Sequence[Row], about: dict[str, Any]) -> None:
    """All sources, the best first: ranking.csv, and ranking.json with what the ranking is about."""
    write_json(folder / REPORT, about | {"sources": list(rows)})
    write_csv(folder / TABLE, rows)


def write_csv(file: Path, rows: Sequence[Row]) -> None:
    """With a column for each key, empty where a value is not a number."""
    with atomic_write(file) as tmp_path, open(tmp_path, "w", newline="", encoding="utf-8") as table:
        writer = csv.DictWriter(table, list(rows[0]))
        writer.writeheader()
        for row in rows:
            writer.writerow({key: "" if value != value else value for key, value in row.items()})


def compare(rows: Sequence[Row], realised: Sequence[Mapping[str, str]], methods: Sequence[str]) -> str:
    """A table of what each source did for the target, as results.csv of a grid has it, and its ranks."""
    by_name = {row["source"]: row for row in rows}
    header = ["source", "realised", *methods]
    lines = [
        [row["source"], f"{float(row['mean']):.3f} ± {float(row['std'] or 0):.3f}"]
        + [format_rank(by_name[row["source"]], name) if row["source"] in by_name else "" for name in methods]
        for row in sorted(realised, key=lambda row: -float(row["mean"]))
    ]
    return "\n".join(align(header, lines))


def draw_ranking(rows: Sequence[Row], method: str, target: str, n_sources: int, file: Path) -> None:
    """The ranks of the best sources, with their spread over samples of the target's rows."""
    from matplotlib.figure import Figure  # half a second

    figure = Figure(figsize=(7, 1.2 + 0.32 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ranks = [row[f"{method} rank"] for row in rows]
    spread = [
        [max(0.0, rank - row[f"{method} low"]) for rank, row in zip(ranks, rows, strict=True)],
        [max(0.0, row[f"{method} high"] - rank) for rank, row in zip(ranks, rows, strict=True)],
    ]
    places = range(len(rows))
    axes.barh(places, [n_sources + 1 - rank for rank in ranks], left=ranks, color="0.85")
    axes.errorbar(ranks, places, xerr=spread, fmt="o", color="tab:blue", capsize=3)
    axes.set_yticks(places, [row["source"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(n_sources + 1, 0.5)
    axes.set_xlabel(f"rank by {method} (bars: 5 to 95 % of samples of the rows)")
    axes.set_title(f"sources for {target}")
    with atomic_write(file) as tmp_path:
        figure.savefig(tmp_path, format="png", dpi=150)
