"""The picture of a frontier: what is drawn where, and that long names stay inside it."""

from pathlib import Path
from typing import Any

import pytest

from textdiff.evaluation.frontier import HELD_OUT, Costs, Point, Quality
from textdiff.frontier_plot import frontier, frontier_figure

pytest.importorskip("matplotlib")


def point(model: str, sampler: str, nfe: float, gen_ppl: float | None, entropy: float = 3.0, gap: float = 0.0) -> Point:
    numbers: dict[str, Any] = {"distinct_1": 0.5, "distinct_2": 0.5, "distinct_4": 0.5, "self_bleu": 1.0, "repetition": 0.1, "mauve": None}
    quality = Quality(gen_ppl, 2.0, entropy, **numbers, texts=4, tokens_per_text=8.0, entropy_gap=gap, entropy_gap_error=0.01)
    return Point.of_texts(quality, model, sampler, "organisation/a-scorer", Costs(nfe, "float32", 0.1), {})


POINTS = [
    point(HELD_OUT, "in tokens of a", 0, 25.0, 3.2),
    point("a", "Ancestral:steps=32", 20.5, 70.0),
    point("a", "Ancestral:steps=4", 4, 200.0),
    point("a", "Greedy:steps=4,temperature=0.5", 4, 30.0, 1.5, gap=1.7),
    point("a", "Greedy:steps=8", 8, 150.0),
    point("b", "Ancestral:steps=4", 4, 300.0),
    point("b", "Ancestral:steps=8", 8, None),
]


def drawn(axes: Any, **wanted: Any) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """The coordinates of the lines that have these properties and any point."""
    found = [line for line in axes.lines if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())]
    return [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in found if len(line.get_xdata())]


def bars(container: Any) -> Any:
    """The line that the error bars stand on."""
    return container.lines[0]


def test_a_line_is_a_model_with_a_sampler_in_the_order_of_its_calls() -> None:
    upper, lower = frontier_figure(POINTS).axes
    lines = [bars(container) for container in upper.containers]
    assert [container.get_label() for container in upper.containers] == [
        "a: Ancestral",
        "a: Greedy, temperature=0.5",
        "a: Greedy",
        "b: Ancestral",
    ]
    assert tuple(lines[0].get_ydata()) == (200.0, 70.0)
    assert [tuple(line.get_xdata()) for line in lines] == [(4, 20.5), (4,), (8,), (4,)]
    assert [tuple(bars(container).get_ydata()) for container in lower.containers] == [(3.0, 3.0), (1.5,), (3.0,), (3.0,)]
    assert (upper.get_xscale(), upper.get_yscale(), lower.get_xscale()) == ("log", "log", "log")


def test_rings_are_the_frontier_hollow_points_are_cheap_and_held_out_text_is_a_line() -> None:
    upper, lower = frontier_figure(POINTS).axes
    ((calls, values),) = drawn(upper, markerfacecolor="none")
    assert set(zip(calls, values, strict=True)) == {(4, 200.0), (8, 150.0), (20.5, 70.0)}
    assert drawn(upper, markerfacecolor="white") == [((4,), (30.0,))]
    assert drawn(lower, markerfacecolor="white") == [((4,), (1.5,))]
    for axes, height in ((upper, 25.0), (lower, 3.2)):
        assert drawn(axes, linestyle="--") == [((0, 1), (height, height))]


def test_long_names_stay_inside_the_picture() -> None:
    name = "organisation/" + "a-model-with-a-very-long-name-" * 6
    many = [point(f"{name}{i}", f"Ancestral:steps={2**k}", 2.0**k, 100.0 + 10 * i + k) for i in range(12) for k in range(2, 5)]
    figure = frontier_figure([*POINTS[:1], *many])
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    texts = [*figure.legends[0].get_texts(), *(axes.yaxis.label for axes in figure.axes), figure.axes[1].xaxis.label]
    texts += [text for axes in figure.axes for text in axes.texts]
    for text in texts:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width, text.get_text()
        assert 0 <= box.y0 <= box.y1 <= height, text.get_text()
    assert min(axes.bbox.height for axes in figure.axes) > 150
    assert len(figure.legends[0].get_texts()) == 12 + 2


def test_nothing_is_written_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    path = tmp_path / "frontier.png"
    assert not frontier(path, [POINTS[0], POINTS[-1]])
    assert not path.exists()
    assert frontier(path, POINTS)
    assert path.read_bytes()[1:4] == b"PNG"
