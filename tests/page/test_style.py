import itertools

import numpy as np
import pytest
from numpy.typing import NDArray

from textdiff.page.style import Limits, Looks, short, span

VISIONS = {  # Machado et al. 2009, severity 1, of linear RGB
    "usual": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
}


def linear(colour: str) -> NDArray[np.float64]:
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def luminance(colour: str) -> float:
    """WCAG 2 relative luminance."""
    return float(linear(colour) @ [0.2126, 0.7152, 0.0722])


def oklab(rgb: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ottosson 2020: distances are as people see them."""
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    axes = [
        [0.2104542553, 0.793617785, -0.0040720468],
        [1.9779984951, -2.428592205, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.808675766],
    ]
    return np.array(axes) @ np.cbrt(np.array(cones) @ rgb.clip(0, 1))


def test_colours_stand_out_from_a_white_and_from_a_dark_page() -> None:
    looks = Looks(tuple("abcdefghi"))
    for colour in {looks[name].colour for name in looks.models}:
        assert 1.05 / (luminance(colour) + 0.05) > 2.2, colour
        assert (luminance(colour) + 0.05) / (luminance("#15181c") + 0.05) > 3, colour


def test_no_two_of_thirty_models_look_alike() -> None:
    looks = Looks(tuple(map(str, range(30))))
    assert len({looks[name] for name in looks.models}) == 30


@pytest.mark.parametrize("vision", VISIONS)
def test_colours_of_nine_models_differ_for_colour_blind_readers_too(vision: str) -> None:
    looks = Looks(tuple("abcdefghi"))
    seen = [oklab(np.array(VISIONS[vision]) @ linear(looks[name].colour)) for name in looks.models]
    assert min(float(np.linalg.norm(a - b)) for a, b in itertools.combinations(seen, 2)) > 0.04  # 0.02 is just noticeable


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([3.0, 3.3, 3.4, 4.0, 22.0], (3.0, 4.0)),
        ([3.0, 3.1, 22.0], (3.0, 3.1)),
        ([3.0, 3.3, 3.4, 4.0, 5.0], (3.0, 5.0)),  # nothing gained by leaving 5 out
        ([3.0, 22.0], (3.0, 22.0)),  # two values squash nothing
        ([3.0, 3.0, 3.0], (3.0, 3.0)),
        ([5.0], (5.0, 5.0)),
    ],
)
def test_only_what_squashes_the_others_is_left_out(values: list[float], expected: tuple[float, float]) -> None:
    assert span(values) == expected


def test_limits_hold_every_number_of_the_models_that_are_drawn() -> None:
    found = Limits.of({"a": [6.0, 3.0], "b": [3.5, 3.2], "c": [float("nan"), 3.3], "far": [22.0, 25.0], "none": [float("nan")]})
    assert found.low < 3.0
    assert 6.0 < found.high < 7.0


def test_captions_name_what_is_not_drawn_and_nothing_else() -> None:
    """What a picture holds is told by its limits, not by how they were chosen."""
    values = {"a": [30.0, 3.0], "b": [3.5, 3.2], "c": [3.3], "above the rest, yet drawn": [22.0, 25.0], "none": [float("nan")]}
    limits = Limits.of(values)
    assert limits.high > 30
    assert limits.words(values) == ""
    found = Limits(3.0, 4.0)
    assert found.words({"in": [3.0, 4.0], "cut": [3.5, 4.1], "out": [4.5, 9.0], "below": [1.0], "none": [float("nan")]}) == (
        "Outside the picture: below, out. Partly outside the picture: cut."
    )
    assert found.words({name: [3.5, 5.0] for name in "abcd"}) == "Partly outside the picture: all that it shows."


def test_long_names_keep_both_ends_and_a_picture_has_no_control_characters() -> None:
    assert short("a" * 40) == "a" * 40
    name = short("begins" + "x" * 60 + "ends")
    assert len(name) == 40
    assert name.startswith("begins")
    assert name.endswith("ends")
    assert short("two\nlines\x1b") == "two lines\ufffd"
