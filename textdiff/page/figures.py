"""The pictures of likelihoods: intervals and training curves."""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import groupby
from statistics import median_low
from typing import TYPE_CHECKING, Any, NamedTuple

from textdiff.evaluation.comparison import Standing
from textdiff.page.results import Evaluation
from textdiff.page.style import GROUND, INK, WIDTH, Limits, Look, Looks, Picture, legend_below, short, span, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BIT = math.log(2)  # nats
_TO_LEFT, _TO_RIGHT = 4, 5  # matplotlib's markers with their tips at the point
_KINDS = {"exact": "exact", "upper bound": "upper bound: the true value is to the left", "estimate": "estimate"}
_MARKED = {  # None: a run that was not measured
    "exact": "Exact",
    "upper bound": "Upper bounds (≤)",
    "estimate": "Estimates (≈)",
    None: "Exact or a bound, which is not known here",
}


def intervals(data: str, number: int, standings: Sequence[Standing], looks: Looks) -> Picture:
    """Bits per byte of every model on a data set with its 95 % interval, the best on top; what lies beyond the picture has an arrowhead."""
    found = [_bits(standing) for standing in standings]
    room = _room(found)
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(standings)), layout="constrained")
        axes = figure.subplots()
        for row, (standing, bits) in enumerate(zip(standings, found, strict=True)):
            _interval(axes, row, bits, room, standing.measurement.kind, looks[standing.measurement.model].colour)
        axes.set_yticks(range(len(standings)), [short(standing.measurement.model) for standing in standings])
        axes.set_ylim(len(standings) - 0.4, -0.6)
        axes.set_xlim(room.low, room.high)
        axes.set_xlabel("bits per byte (95 % interval over texts); less is better")
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        _kinds_below(figure, sorted({standing.measurement.kind for standing in standings}, key=list(_KINDS).index))
    said = "; ".join(
        f"{short(one.measurement.model)} {sign(one.measurement.kind)}{bits.value:.4f}" for one, bits in zip(standings, found, strict=True)
    )
    caption = "Intervals are of the texts alone: another training seed would move each model too."
    if any(bits.beyond(room) for bits in found):
        caption += " Arrowheads point to what lies beyond the picture; the numbers at the right say how far."
    return Picture(f"intervals{number}", f"Bits per byte on {data}, best first: {said}", caption, figure)


def sign(kind: str) -> str:
    """What stands before a number: that it is a bound or an estimate."""
    return {"upper bound": "≤ ", "estimate": "≈ "}.get(kind, "")


class Bits(NamedTuple):
    """A number of bits per byte and the ends of its interval, which are the number itself where there is none."""

    value: float
    low: float
    high: float

    def beyond(self, room: Limits) -> bool:
        """Whether any of it lies outside."""
        return self.low < room.low or self.high > room.high


def _bits(standing: Standing) -> Bits:
    found = standing.nats["text_bytes"]
    value, low, high = (nats / _BIT for nats in (found.value, found.low, found.high))
    return Bits(value, low, high) if math.isfinite(high - low) else Bits(value, value, value)


def _room(found: Sequence[Bits]) -> Limits:
    """Room for the numbers, but for those that squash the others, and for intervals up to thrice as wide as is usual."""
    known = [bits for bits in found if math.isfinite(bits.value)]
    if not known:
        return Limits(0.0, 1.0)
    low, high = span([bits.value for bits in known])
    usual = [wide for bits in known if (wide := max(bits.value - bits.low, bits.high - bits.value)) > 0]
    reach = max(3 * median_low(usual or [0.0]), (high - low) / 4)
    drawn = [bits for bits in known if bits.value <= high]
    low = min(max(bits.low, bits.value - reach) for bits in drawn)
    high = max(min(bits.high, bits.value + reach) for bits in drawn)
    margin = 0.06 * (high - low) or 0.02 * abs(high) or 1.0
    return Limits(low - margin, high + margin)


def _interval(axes: "Axes", row: int, bits: Bits, room: Limits, kind: str, colour: str) -> None:
    """One line of the picture, its number at the right of all lines."""
    low, high = max(bits.low, room.low), min(bits.high, room.high)
    if low < high:
        axes.plot([low, high], [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    for cut, edge, marker in ((bits.low < room.low, room.low, _TO_LEFT), (bits.high > room.high, room.high, _TO_RIGHT)):
        if cut:
            axes.plot([edge], [row], color=colour, marker=marker, markersize=8, linestyle="none", clip_on=False)
    if room.low <= bits.value <= room.high:
        axes.plot([bits.value], [row], **_marker(kind, colour))
    ends = f" ({bits.low:.2f} to {bits.high:.2f})" if bits.beyond(room) and bits.low < bits.high else ""
    number = f"{sign(kind)}{bits.value:.3f}{ends}"
    axes.annotate(number, (1, row), xycoords=("axes fraction", "data"), xytext=(10, 0), textcoords="offset points", va="center", color=INK)


def _marker(kind: str, colour: str) -> dict[str, Any]:
    fill = colour if kind == "exact" else GROUND
    shape = {"exact": "o", "upper bound": "<", "estimate": "D"}[kind]
    return {"marker": shape, "color": colour, "markerfacecolor": fill, "markeredgewidth": 1.4, "markersize": 6.5, "linestyle": "none"}


def _kinds_below(figure: Any, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=_KINDS[kind], **_marker(kind, INK)) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))


def training(rows: Sequence[Evaluation], kinds: Mapping[str, str], looks: Looks) -> Picture:
    """Validation loss against tokens and, where they are known, against seconds; `kinds` says of which runs it is a bound."""
    runs = {run: sorted(found, key=lambda row: row.tokens) for run, found in _grouped(rows, lambda row: row.run).items()}
    timed = any(math.isfinite(row.seconds) for row in rows)
    limits = Limits.of({run: [row.nats_per_token for row in found[len(found) // 8 :]] for run, found in runs.items()})
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 4.3 + 0.1 * len(runs)), layout="constrained")
        panels = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
        scales = [("training tokens", lambda row: row.tokens), ("seconds of training", lambda row: row.seconds)]
        for axes, (label, at) in zip(panels, scales, strict=False):
            for run, found in runs.items():
                _curve(axes, sign(kinds.get(run, "")) + run, looks[run], [(at(row), row.nats_per_token, row.error) for row in found])
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(_thousands)
            axes.grid(axis="y")
        panels[0].set_ylabel("validation nats/token (bands: ± 2 s.e.)")
        panels[0].set_ylim(limits.low, limits.high)
        legend_below(figure, panels)
    ends = "; ".join(f"{short(run)} {sign(kinds.get(run, ''))}{found[-1].nats_per_token:.3f}" for run, found in sorted(runs.items()))
    alt = f"Validation nats per token while training, at its end: {ends}"
    outside = limits.words({run: [row.nats_per_token for row in found] for run, found in runs.items()})
    return Picture("training", alt, f"{kinds_in_words(list(runs), kinds)} {outside}".strip(), figure)


def kinds_in_words(runs: Sequence[str], kinds: Mapping[str, str]) -> str:
    """What the marks before the names of runs say."""
    groups = {said: [run for run in runs if kinds.get(run) == kind] for kind, said in _MARKED.items()}
    words = [f"{said}: {', '.join(map(short, names))}." for said, names in groups.items() if names]
    return " ".join(words)


def _curve(axes: "Axes", label: str, look: Look, points: Sequence[tuple[float, float, float]]) -> None:
    known = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if known:
        x, y, error = zip(*known, strict=True)
        every = max(1, len(x) // 6)
        axes.plot(x, y, label=label, color=look.colour, linestyle=look.dash, marker=look.marker, markersize=4, markevery=every)
        wide = [2 * one if math.isfinite(one) else 0.0 for one in error]
        low, high = ([at + by * way for at, by in zip(y, wide, strict=True)] for way in (-1, 1))
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)


def _thousands(value: float, _: int) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def _grouped(rows: Sequence[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Rows by key, in the order of the keys."""
    return {name: list(found) for name, found in groupby(sorted(rows, key=key), key)}
