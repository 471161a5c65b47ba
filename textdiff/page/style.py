"""How every picture of a page looks: one colour and one marker per model, quiet axes, a legend outside, svg without a date."""

import io
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from textdiff.page.characters import in_html, safe

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, FAINT, GROUND = "#24292f", "#8a929b", "#fefefd"  # become the page's own colours, which follow light and dark
# After Okabe and Ito (2008): colour-blind readers tell them apart, and they stand out from white and from black
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#d99100", "#56b4e9", "#9a4f96", "#6f7680", "#91553b")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">", "p", "h")
_RC: Any = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture everywhere
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": FAINT,
    "grid.alpha": 0.25,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "legend.fontsize": 9,
    "lines.linewidth": 1.5,
    "lines.markersize": 4.5,
    "svg.hashsalt": "textdiff",
    "svg.fonttype": "path",
}
WIDTH = 7.2  # inches
_NAMED = 3  # models at most that are named where all could be meant


class Look(NamedTuple):
    """How a model is drawn."""

    colour: str
    marker: str
    dash: str


@dataclass(frozen=True)
class Looks:
    """The look of every model of a page; the tenth has the first colour again, dashed and with another marker."""

    models: tuple[str, ...]

    def __getitem__(self, model: str) -> Look:
        place = self.models.index(model)
        dash = ("-", "--", ":", "-.")[place // len(_COLOURS) % 4]
        return Look(_COLOURS[place % len(_COLOURS)], next(islice(cycle(_MARKERS), place, None)), dash)


class Picture(NamedTuple):
    """A figure with what it shows in words."""

    name: str  # tells the ids of one from those of another
    alt: str
    caption: str
    figure: "Figure"


def styled() -> AbstractContextManager[Any]:
    """The look of the page's pictures, while they are made and while they are written."""
    from matplotlib import rc_context

    return rc_context(_RC)


def svg(picture: Picture) -> str:
    """The picture as an element for a page: its ids are its own, its ink that of the page, and equal pictures are equal bytes."""
    written = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    picture.figure.savefig(written, format="svg", transparent=True, metadata=nothing)
    text = written.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'\bid="', f'id="{picture.name}-', text)
    text = re.sub(r'(xlink:href="#|url\(#)', rf"\g<1>{picture.name}-", text)
    text = text.replace(INK, "var(--ink)").replace(FAINT, "var(--faint)").replace(GROUND, "var(--ground)")
    width = picture.figure.get_figwidth() / WIDTH
    text = text.replace("<svg ", f'<svg role="img" aria-label="{in_html(picture.alt)}" style="min-width: {30 * width:.4g}rem" ', 1)
    return re.sub(r"[ \t]+\n", "\n", text).strip()


def png(picture: Picture, path: Path) -> None:
    """Write the picture alone, on white."""
    with styled():
        picture.figure.savefig(path, dpi=120)


def short(name: str, longest: int = 40) -> str:
    """A name as a picture has room for it: without its middle where it is long, in one line."""
    name = " ".join(safe(name).split())
    return name if len(name) <= longest else f"{name[: longest // 2]}…{name[-longest // 2 + 1 :]}"


def legend_below(figure: "Figure", axes: Sequence["Axes"], longest: int = 40) -> None:
    """One legend for all axes, outside them; as many columns as the names, cut to the longest, leave room for."""
    found: dict[str, Any] = {}
    for one in axes:
        for handle, label in zip(*one.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if found:
        names = [short(label, longest) for label in found]
        columns = max(1, min(len(names), 4, int(WIDTH * 13 / (max(map(len, names)) + 6))))
        figure.legend(found.values(), names, loc="outside lower left", ncols=columns, handlelength=2.4, columnspacing=1.6)


def span(values: Sequence[float], share: float = 0.34) -> tuple[float, float]:
    """The least and the largest value to draw: where leaving out up to a share of the largest lets the rest take three times the room, they
    are left out."""
    ordered = sorted(values)
    low, high = ordered[0], ordered[-1]
    for left_out in range(1, int(share * len(ordered)) + 1):
        kept = ordered[-1 - left_out]
        if high - low > 3 * (kept - low) > 0:
            high = kept
    return low, high


class Limits(NamedTuple):
    """What part of an axis is drawn."""

    low: float
    high: float

    @classmethod
    def of(cls, values: Mapping[str, Sequence[float]]) -> "Limits":
        """Room for the numbers of each model, but for models so far above the others that these would be squashed."""
        known = [found for of_name in values.values() if (found := [value for value in of_name if math.isfinite(value)])]
        if not known:
            return cls(0.0, 1.0)
        best = span([min(found) for found in known])[1]
        drawn = [value for found in known if min(found) <= best for value in found]
        margin = 0.06 * (max(drawn) - min(drawn)) or 0.02 * abs(best) or 1.0
        return cls(min(drawn) - margin, max(drawn) + margin)

    def words(self, values: Mapping[str, Sequence[float]]) -> str:
        """What a caption says of the models of which nothing, and of those of which only a part, is drawn."""
        inside = {
            name: [self.low <= value <= self.high for value in of_name if math.isfinite(value)] for name, of_name in sorted(values.items())
        }
        without = [name for name, found in inside.items() if found and not any(found)]
        in_part = [name for name, found in inside.items() if any(found) and not all(found)]
        words = [f"Outside the picture: {', '.join(map(short, without))}."] if without else []
        if in_part:
            every = len(in_part) > _NAMED and len(in_part) == sum(map(any, inside.values()))
            words.append(f"Partly outside the picture: {'all that it shows' if every else ', '.join(map(short, in_part))}.")
        return " ".join(words)
