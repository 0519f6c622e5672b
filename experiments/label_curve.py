"""Accuracy against the number of labels, of several ways to learn a task, as text and as a plot."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from checkpoints.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colors of Okabe and Ito, markers and lines, which tell systems apart in print, too.
STYLES = (
    ("#0072B2", "o", ":"),
    ("#D55E00", "s", "-."),
    ("#009E73", "^", (0, (5, 1, 1, 1, 1, 1))),
    ("#CC79A7", "D", "--"),
    ("#E69F00", "v", (0, (5, 1))),
    ("#000000", "P", "-"),
)

# The accuracy and, where there are seeds, accuracy_std; of a network also seconds, and trained, the share of
# its weights that were.
Point = dict[str, float]
Curves = Mapping[str, Mapping[int, Point]]  # by the name of the system, and the number of labels


def label_table(curves: Curves) -> str:
    """A row per system: its accuracy with each number of labels, the share of weights that it trains, and the
    time of all its trainings.
    """
    labels = numbers_of_labels(curves)
    width = 15 if any("accuracy_std" in point for curve in curves.values() for point in curve.values()) else 9
    head = "".join(f"{n:>{width},}" for n in labels)
    rows = [f"    {'labels':34}{head}{'weights trained':>18}{'time':>8}"]
    for name, curve in curves.items():
        cells = "".join(f"{percent(curve[n]):>{width}}" for n in labels)
        points = list(curve.values())
        trained = f"{points[0]['trained']:.1%}" if "trained" in points[0] else ""
        seconds = [point["seconds"] for point in points if "seconds" in point]
        time = f"{sum(seconds):.0f} s" if seconds else ""
        rows.append(f"    {name:34}{cells}{trained:>18}{time:>8}".rstrip())
    return "\n".join(rows)


def percent(point: Point) -> str:
    """An accuracy, with the deviation over seeds if there is one."""
    deviation = f" ± {100 * point['accuracy_std']:.1f}" if "accuracy_std" in point else " %"
    return f"{100 * point['accuracy']:.1f}{deviation}"


def numbers_of_labels(curves: Curves) -> list[int]:
    return sorted({n for curve in curves.values() for n in curve})


def draw_curves(curves: Curves, file: Path) -> None:
    """The accuracies, with bars of one deviation: a line per system over the numbers of labels, on a
    logarithmic axis; with one number of labels, a row per system.
    """
    from matplotlib.figure import Figure  # half a second

    labels = numbers_of_labels(curves)
    draw, height = (draw_lines, 4.5) if len(labels) > 1 else (draw_rows, 2.6)
    figure = Figure(figsize=(7, height), layout="constrained")
    axes = figure.subplots()
    axes.grid(alpha=0.3)
    draw(axes, curves, labels)
    with atomic_write(file) as tmp_path:
        figure.savefig(tmp_path, format="png", dpi=150)


def draw_lines(axes: "Axes", curves: Curves, labels: list[int]) -> None:
    """A line per system. Points of different systems are side by side, so that none hides another."""
    for number, ((name, curve), style) in enumerate(zip(curves.items(), STYLES, strict=False)):
        color, marker, line = style
        means, deviations = values(curve.values(), "accuracy"), values(curve.values(), "accuracy_std")
        beside = [n * 1.03 ** (number - (len(curves) - 1) / 2) for n in curve]
        axes.errorbar(beside, means, deviations, capsize=3, label=name, color=color, marker=marker, ls=line)
    axes.set(xscale="log", xlabel="labeled reviews", ylabel="accuracy on held-out reviews, %")
    axes.set_xticks(labels, [f"{n:,}" for n in labels])
    axes.minorticks_off()
    axes.legend(loc="lower right")


def draw_rows(axes: "Axes", curves: Curves, labels: list[int]) -> None:
    """A named row per system, with its accuracy."""
    for row, (curve, (color, marker, _)) in enumerate(zip(curves.values(), STYLES, strict=False)):
        point = curve[labels[0]]
        [mean], [deviation] = values([point], "accuracy"), values([point], "accuracy_std")
        axes.errorbar(mean, row, xerr=deviation or None, capsize=3, color=color, marker=marker)
        axes.annotate(
            percent(point), (mean, row), (0, 6), textcoords="offset points", ha="center", fontsize=8
        )
    axes.set_yticks(range(len(curves)), list(curves))
    xlabel = f"accuracy on held-out reviews with {labels[0]:,} labels, %"
    axes.set(ylim=(len(curves) - 0.5, -0.8), xlabel=xlabel, xmargin=0.08)


def values(points: Iterable[Point], name: str) -> list[float]:
    """In percent; 0 where a point does not have it."""
    return [100 * point.get(name, 0.0) for point in points]
