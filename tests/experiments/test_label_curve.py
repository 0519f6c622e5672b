"""The plot of the quickstart shows every system with its accuracies."""

import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from experiments.label_curve import draw_curves, percent

FEW = {"accuracy": 0.7, "accuracy_std": 0.02}
MANY = {"accuracy": 0.9}


@pytest.fixture
def drawn(monkeypatch) -> list[Figure]:
    """The figures that have been saved."""
    figures, savefig = [], Figure.savefig
    monkeypatch.setattr(
        Figure,
        "savefig",
        lambda self, *args, **options: figures.append(self) or savefig(self, *args, **options),
    )
    return figures


def heights(container: ErrorbarContainer) -> list[float]:
    """Of the bars, from one end to the other."""
    [bars] = container[2]
    return [pytest.approx(top - bottom) for (_, bottom), (_, top) in bars.get_segments()]


def test_a_line_per_system(drawn, tmp_path):
    draw_curves({"scratch": {100: FEW, 1000: MANY}, "vote": {100: MANY, 1000: FEW}}, tmp_path / "plot.png")
    [axes] = drawn[0].axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["scratch", "vote"]
    assert [list(container[0].get_ydata()) for container in axes.containers] == [[70, 90], [90, 70]]
    assert [heights(container) for container in axes.containers] == [[4, 0], [0, 4]]
    x, others_x = (container[0].get_xdata() for container in axes.containers)
    assert (x != others_x).all() and x == pytest.approx([100, 1000], rel=0.1)
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["100", "1,000"]
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_row_per_system_with_one_number_of_labels(drawn, tmp_path):
    draw_curves({"scratch": {2000: FEW}, "vote": {2000: MANY}}, tmp_path / "plot.png")
    [axes] = drawn[0].axes
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["scratch", "vote"]
    assert [container[0].get_xydata().tolist() for container in axes.containers] == [[[70, 0]], [[90, 1]]]
    assert [container.has_xerr for container in axes.containers] == [True, False]
    assert [text.get_text() for text in axes.texts] == [percent(FEW), percent(MANY)]
    assert "2,000 labels" in axes.get_xlabel()
