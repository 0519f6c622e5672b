"""What a multi-task training learned from, and how unsure it was, as a plot."""

from collections.abc import Sequence
from pathlib import Path

from checkpoints.atomic import atomic_write
from experiments.grid_table import shorten

LABELS = {"share": "share of the rows", "entropy": "relative entropy of the candidates"}
STYLES = ("-", "--", ":", "-.")  # of tasks after the tenth, which have the colors of the first ones


def draw_sampling(rows: Sequence[dict], names: Sequence[str], file: Path) -> None:
    """Draw `TASK.share` and, where there is one, `TASK.entropy` of the tasks over the steps.

    `rows` are those of metrics.jsonl. Each point tells of the steps since the evaluation before.
    """
    from matplotlib.figure import Figure  # half a second

    statistics = [
        statistic
        for statistic in LABELS
        if any(f"{name}.{statistic}" in row for row in rows for name in names)
    ]
    figure = Figure(figsize=(8, 0.6 + 2.6 * max(1, len(statistics))), layout="constrained")
    panels = figure.subplots(max(1, len(statistics)), sharex=True, squeeze=False)[:, 0]
    for axes, statistic in zip(panels, statistics, strict=False):
        for number, name in enumerate(names):
            values = {row["step"]: row[key] for row in rows if (key := f"{name}.{statistic}") in row}
            style = STYLES[number // 10 % len(STYLES)]
            axes.plot(list(values), list(values.values()), style, marker=".", label=shorten(name))
        axes.set_ylabel(LABELS[statistic])
        axes.set_ylim(-0.03, 1.03)
        axes.grid(alpha=0.3)
    panels[-1].set_xlabel("optimizer step")
    if statistics:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    with atomic_write(file) as tmp_path:
        figure.savefig(tmp_path, format="png", dpi=150)
