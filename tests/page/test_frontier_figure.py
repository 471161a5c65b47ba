"""The picture of a frontier: what is drawn where, and that long names stay inside it."""

from pathlib import Path
from typing import Any

import pytest

from tests.page.folders import point
from textdiff.evaluation.frontier import HELD_OUT, Point
from textdiff.page.frontier_figure import frontier
from textdiff.page.style import GROUND, Looks, Picture, png

pytest.importorskip("matplotlib")

POINTS = [
    point(HELD_OUT, "in tokens of a", 0, 25.0, 3.9),
    point("a", "Ancestral:steps=32", 20.5, 70.0, 3.75),
    point("a", "Ancestral:steps=4", 4, 200.0, 3.8),
    point("a", "Greedy:steps=4,temperature=0.5", 4, 30.0, 1.5),
    point("a", "Greedy:steps=8", 8, 150.0, 3.7),
    point("b", "Ancestral:steps=4", 4, 300.0, 4.0),
    point("b", "Ancestral:steps=8", 8, None, 4.0),
]


def picture(points: list[Point]) -> Picture:
    found = frontier(points, Looks(tuple(sorted({point.model for point in points}))))
    assert found is not None
    return found


def drawn(axes: Any, **wanted: Any) -> list[tuple[tuple[float, ...], tuple[float, ...]]]:
    """The coordinates of the lines that have these properties and any point."""
    found = [line for line in axes.lines if all(getattr(line, f"get_{name}")() == value for name, value in wanted.items())]
    return [(tuple(line.get_xdata()), tuple(line.get_ydata())) for line in found if len(line.get_xdata())]


def test_a_line_is_a_model_with_a_sampler_in_the_order_of_its_calls() -> None:
    upper, lower = picture(POINTS).figure.axes
    expected = {
        "a, Ancestral": ((4, 20.5), (200.0, 70.0), (-0.1, -0.15)),
        "a, Greedy:temperature=0.5": ((4,), (30.0,), (-2.4,)),
        "a, Greedy": ((8,), (150.0,), (-0.2,)),
        "b, Ancestral": ((4,), (300.0,), (0.1,)),
    }
    for label, (calls, perplexities, gaps) in expected.items():
        assert drawn(upper, label=label) == [(calls, perplexities)]
        ((at, values),) = drawn(lower, label=label)
        assert at == calls
        assert values == pytest.approx(gaps)  # of entropy above held-out text, whatever the entropy itself
    assert (upper.get_xscale(), upper.get_yscale(), lower.get_xscale(), lower.get_yscale()) == ("log", "log", "log", "linear")


def test_a_model_has_one_colour_and_each_of_its_samplers_a_dash() -> None:
    upper, _ = picture(POINTS).figure.axes
    by_label = {line.get_label(): line for line in upper.lines}
    of_a = [by_label[name] for name in ("a, Ancestral", "a, Greedy", "a, Greedy:temperature=0.5")]
    assert len({line.get_color() for line in of_a}) == len({line.get_marker() for line in of_a}) == 1
    assert len({line.get_linestyle() for line in of_a}) == 3
    assert by_label["b, Ancestral"].get_color() != of_a[0].get_color()


def test_rings_are_the_frontier_hollow_points_are_cheap_and_held_out_text_is_a_line() -> None:
    figure = picture(POINTS).figure
    upper, lower = figure.axes
    ((calls, values),) = drawn(upper, markerfacecolor="none")
    assert set(zip(calls, values, strict=True)) == {(4, 200.0), (8, 150.0), (20.5, 70.0)}
    assert drawn(upper, markerfacecolor=GROUND) == [((4,), (30.0,))]
    ((at, (gap,)),) = drawn(lower, markerfacecolor=GROUND)
    assert at == (4,)
    assert gap == pytest.approx(-2.4)
    for axes, height in ((upper, 25.0), (lower, 0.0)):
        assert drawn(axes, label=HELD_OUT) == [((0, 1), (height, height))]
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said[4:] == [HELD_OUT, "ringed: on the frontier", "hollow: entropy too low to compare"]
    none_cheap = picture([point for point in POINTS if not point.is_cheap]).figure
    assert "hollow: entropy too low to compare" not in [text.get_text() for text in none_cheap.legends[0].get_texts()]


def test_long_names_stay_inside_the_picture_and_each_has_its_own_line() -> None:
    """Names that are cut to the same words are different lines all the same."""
    name = "organisation/" + "a-model-with-a-very-long-name-" * 6
    many = [point(f"{name}{i}-{name}", f"Ancestral:steps={2**k}", 2.0**k, 100.0 + 10 * i + k, 3.9) for i in range(12) for k in range(2, 5)]
    figure = picture([*POINTS[:1], *many]).figure
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    for text in [*figure.legends[0].get_texts(), *(axes.yaxis.label for axes in figure.axes), figure.axes[1].xaxis.label]:
        box = text.get_window_extent()
        assert 0 <= box.x0 <= box.x1 <= width, text.get_text()
        assert 0 <= box.y0 <= box.y1 <= height, text.get_text()
    assert min(axes.bbox.height for axes in figure.axes) > 100
    assert len(figure.legends[0].get_texts()) == 12 + 2


@pytest.mark.parametrize("highest", [61.0, 90.0, 400.0, 90_000.0])
def test_an_axis_of_perplexity_has_numbers_whatever_its_range(highest: float) -> None:
    figure = picture([point("a", "Ancestral:steps=4", 4, highest, 3.9), point("a", "Ancestral:steps=8", 8, 60.0, 3.9)]).figure
    figure.draw_without_rendering()
    low, high = figure.axes[0].get_ylim()
    shown = [tick.label1.get_text() for tick in figure.axes[0].yaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    assert 3 <= len(shown) <= 12
    assert all(map(float, shown))


def test_there_is_no_picture_of_nothing(tmp_path: Path) -> None:
    assert frontier([POINTS[0], POINTS[-1]], Looks(("b",))) is None
    png(picture(POINTS), tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes()[1:4] == b"PNG"
