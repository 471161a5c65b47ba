"""Pictures of likelihoods and of training: what is in them, what is cut, and that it is said."""

import math
from pathlib import Path
from typing import Any

import pytest

from tests.page.folders import LEVELS, comparison, kind
from textdiff.evaluation.comparison import Standing
from textdiff.evaluation.measurement import Measurement, Rules, TextScore
from textdiff.evaluation.statistics import Estimate
from textdiff.page.figures import intervals, kinds_in_words, training
from textdiff.page.results import Evaluation, Results
from textdiff.page.sections import sections
from textdiff.page.style import Looks, Picture

pytest.importorskip("matplotlib")
from matplotlib.text import Text


def standing(model: str, value: float, low: float, high: float) -> Standing:
    """A number in bits per byte with its interval."""
    scores = (TextScore(0, 1.0, 1, 1, 1, 1),)
    measured = Measurement(model, "d", "exact", Rules("passage", None, False, 8, 4), "t", "k", 1, 1, 1, 0, None, scores)
    value, low, high = (bits * math.log(2) for bits in (value, low, high))
    return Standing(measured, {"text_bytes": Estimate(value, (high - low) / 4, low, high)})


def drawn(*found: Standing) -> Picture:
    return intervals("d", 0, found, Looks(tuple(one.measurement.model for one in found)))


def row(picture: Picture, place: int) -> list[Any]:
    """The lines of a model, arrowheads among them."""
    lines: Any = picture.figure.axes[0].lines
    return [line for line in lines if place in line.get_ydata()]


def numbers(picture: Picture) -> list[str]:
    return [text.get_text() for text in picture.figure.axes[0].texts]


def test_one_wide_interval_squashes_no_other_and_its_ends_are_told() -> None:
    narrow = [standing(name, 2 + i / 10, 1.95 + i / 10, 2.05 + i / 10) for i, name in enumerate("abcd")]
    wide = standing("e", 2.4, 0.5, 40.0)
    picture = drawn(*narrow, wide)
    low, high = picture.figure.axes[0].get_xlim()
    assert 1.8 < low < 1.95
    assert 2.4 < high < 2.7
    assert numbers(picture) == ["2.000", "2.100", "2.200", "2.300", "2.400 (0.50 to 40.00)"]
    (bar, left, right, _) = row(picture, 4)
    assert list(bar.get_xdata()) == [low, high]
    assert [(line.get_marker(), list(line.get_xdata())) for line in (left, right)] == [(4, [low]), (5, [high])]
    assert "Arrowheads" in picture.caption


def test_intervals_that_are_all_alike_are_drawn_whole() -> None:
    picture = drawn(standing("a", 2.0, 1.2, 2.9), standing("b", 2.1, 1.2, 3.1))
    low, high = picture.figure.axes[0].get_xlim()
    assert low < 1.2 < 3.1 < high
    assert "Arrowheads" not in picture.caption
    assert numbers(picture) == ["2.000", "2.100"]
    low, high = drawn(standing("a", 2.0, 1.0, 9.0)).figure.axes[0].get_xlim()
    assert low < 1.0 < 9.0 < high


def test_a_value_beyond_the_picture_is_an_arrowhead_with_its_number() -> None:
    found = [standing(name, 2 + i / 10, 1.95 + i / 10, 2.05 + i / 10) for i, name in enumerate("abcd")]
    picture = drawn(*found, standing("far", 30.0, 29.0, 31.0))
    (head,) = row(picture, 4)
    assert (head.get_marker(), list(head.get_xdata())) == (5, [picture.figure.axes[0].get_xlim()[1]])
    assert numbers(picture)[-1] == "30.000 (29.00 to 31.00)"


def test_without_intervals_there_are_points_alone() -> None:
    picture = drawn(
        standing("a", 2.0, math.nan, math.nan), standing("b", 2.5, math.nan, math.nan), standing("c", math.inf, math.nan, math.nan)
    )
    assert [len(row(picture, place)) for place in (0, 1)] == [1, 1]
    assert numbers(picture) == ["2.000", "2.500", "inf"]
    low, high = picture.figure.axes[0].get_xlim()
    assert low < 2.0 < 2.5 < high < 3.0


def test_curves_say_which_are_bounds() -> None:
    rows = [Evaluation(run, 1000.0 * step, math.nan, 4 - step / 9, 0.1) for run in ("a", "b", "c", "d") for step in range(1, 9)]
    kinds = {"a": "exact", "b": "upper bound", "c": "estimate"}
    picture = training(rows, kinds, Looks(("a", "b", "c", "d")))
    assert [text.get_text() for text in picture.figure.legends[0].get_texts()] == ["a", "≤ b", "≈ c", "d"]
    said = "Exact: a. Upper bounds (≤): b. Estimates (≈): c. Exact or a bound, which is not known here: d."
    assert picture.caption.startswith(said)
    assert kinds_in_words(["a"], {"a": "upper bound"}) == "Upper bounds (≤): a."


@pytest.mark.parametrize("models", [("autoregressive", "uniform"), tuple(LEVELS)])
def test_no_words_of_any_picture_are_cut_or_cover_others(tmp_path: Path, models: tuple[str, ...]) -> None:
    found = sections(Results.read(comparison(tmp_path / "c", models, ("pydocs",), texts=10)))
    for picture in [picture for section in found for picture in section.pictures]:
        figure = picture.figure
        figure.draw_without_rendering()
        words = [text for legend in figure.legends for text in legend.get_texts()]
        for axes in (axes for axes in figure.axes if axes.get_visible()):
            ticks = {tick.label1: tick for axis in (axes.xaxis, axes.yaxis) for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks())}
            words += [text for text in axes.findobj(Text) if text not in ticks or _inside(axes, ticks[text])]
        boxes = [(text.get_text(), text.get_window_extent()) for text in words if text.get_visible() and text.get_text().strip()]
        assert boxes
        for said, box in boxes:
            assert -1 <= box.x0 <= box.x1 <= figure.bbox.width + 1, (picture.name, said)
            assert -1 <= box.y0 <= box.y1 <= figure.bbox.height + 1, (picture.name, said)
        for place, (said, box) in enumerate(boxes):
            for other, beside in boxes[:place]:
                assert not box.shrunk(0.9, 0.9).overlaps(beside.shrunk(0.9, 0.9)), (picture.name, said, other)


def _inside(axes: Any, tick: Any) -> bool:
    """Whether a tick is drawn: locators name some beyond the limits."""
    low, high = sorted((axes.xaxis if tick in axes.xaxis.get_major_ticks() else axes.yaxis).get_view_interval())
    return bool(low <= tick.get_loc() <= high)


def test_kinds_are_those_of_the_measurements(tmp_path: Path) -> None:
    results = Results.read(comparison(tmp_path / "c", texts=2))
    assert results.kinds == {model: kind(model) for model in LEVELS}
