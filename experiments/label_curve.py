"""Accuracy against the number of labels, of several ways to learn a task, as text and as a plot."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from checkpoints.atomic import atomic_write

MARKERS = ("o", "s", "^", "D", "v", "P")
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#000000")  # Okabe and Ito's

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
    """A line per system over the numbers of labels, on a logarithmic axis, with bars of one deviation."""
    from matplotlib.figure import Figure  # half a second

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for (name, curve), marker, color in zip(curves.items(), MARKERS, COLORS, strict=False):
        means, deviations = values(curve.values(), "accuracy"), values(curve.values(), "accuracy_std")
        axes.errorbar(list(curve), means, deviations, capsize=3, label=name, marker=marker, color=color)
    labels = numbers_of_labels(curves)
    axes.set(xscale="log", xlabel="labeled reviews", ylabel="accuracy on held-out reviews, %")
    axes.set_xticks(labels, [f"{n:,}" for n in labels])
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    with atomic_write(file) as tmp_path:
        figure.savefig(tmp_path, format="png", dpi=150)


def values(points: Iterable[Point], name: str) -> list[float]:
    """In percent; 0 where a point does not have it."""
    return [100 * point.get(name, 0.0) for point in points]
