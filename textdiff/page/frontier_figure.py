"""The picture of a frontier: sample quality against network calls."""

import math
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from textdiff.evaluation.frontier import HELD_OUT, Point, pareto
from textdiff.page.style import FAINT, GROUND, INK, WIDTH, Look, Looks, Picture, legend_below, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DASHES = ("-", "--", ":", "-.")
_RINGED = "ringed: on the frontier"
_HOLLOW = "hollow: entropy too low to compare"
_CAPTION = (
    f"Each text and its {HELD_OUT} are cut to the shorter of the two before their entropies are compared. Points whose entropy is well "
    "below are hollow: their low perplexity means repetition, not quality. Of the others, those are ringed that no other matches with as "
    "few calls and as low a perplexity."
)

Shown = Callable[[Point], tuple[float, float] | None]  # a number and its standard error, where there is one


class Line(NamedTuple):
    """Points whose samplers differ in their steps alone, in the order of their calls."""

    label: str
    look: Look
    points: Sequence[Point]


def frontier(points: Sequence[Point], looks: Looks) -> Picture | None:
    """Generative perplexity against network calls and, below it, how far entropy lies above that of held-out text of equal lengths, without
    which the first says little; None where no text has a perplexity."""
    drawn = [point for point in points if point.nfe > 0 and point.gen_ppl is not None]
    if not drawn:
        return None
    lines, real = _lines(drawn, looks), [point for point in points if point.nfe == 0]
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 5.8 + 0.11 * len(lines)), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        _panel(upper, lines, _perplexity, [point.gen_ppl for point in real if point.gen_ppl is not None])
        _panel(lower, lines, _gap, [0.0] if real else [])
        best = pareto(drawn)
        ring: dict[str, Any] = {"marker": "o", "markersize": 11, "markerfacecolor": "none", "color": INK, "linestyle": "none", "zorder": 4}
        upper.plot([point.nfe for point in best], [point.gen_ppl for point in best], label=_RINGED, **ring)
        if any(point.is_cheap for point in drawn):
            upper.plot([], [], marker="o", markerfacecolor=GROUND, color=INK, linestyle="none", label=_HOLLOW)
        _label(upper, lower, sorted({point.scorer for point in points}))
        legend_below(figure, [upper], longest=80)
    lowest: dict[str, float] = {}
    for point in drawn:
        lowest[point.model] = min(point.gen_ppl or math.inf, lowest.get(point.model, math.inf))
    said = "; ".join(f"{short(model)} {value:.1f}" for model, value in lowest.items())
    alt = f"Generative perplexity, and entropy against that of {HELD_OUT}, by network calls; lowest perplexity: {said}"
    return Picture("frontier", alt, _CAPTION, figure)


def _lines(points: Sequence[Point], looks: Looks) -> list[Line]:
    """A model has one colour and one marker, and a dash for each of its samplers."""
    found: dict[str, dict[str, list[Point]]] = {}
    for point in sorted(points, key=lambda point: (point.model, point.nfe)):
        found.setdefault(point.model, {}).setdefault(_without_steps(point.sampler), []).append(point)
    return [
        Line(f"{model}, {sampler}", looks[model]._replace(dash=_DASHES[place % len(_DASHES)]), own)
        for model, samplers in found.items()
        for place, (sampler, own) in enumerate(samplers.items())
    ]


def _without_steps(sampler: str) -> str:
    """A sampler's words but for its number of steps, which the axis shows."""
    return re.sub(r"(?<=[:,])steps=\d+,?", "", sampler).rstrip(":,")


def _perplexity(point: Point) -> tuple[float, float] | None:
    return None if point.gen_ppl is None else (point.gen_ppl, point.gen_ppl_error or 0.0)


def _gap(point: Point) -> tuple[float, float] | None:
    return None if point.entropy_gap is None else (-point.entropy_gap, point.entropy_gap_error or 0.0)


def _panel(axes: "Axes", lines: Sequence[Line], shown: Shown, real: Sequence[float]) -> None:
    for line in lines:
        style: dict[str, Any] = {"color": line.look.colour, "marker": line.look.marker}
        x, y, error = _columns(line.points, shown)
        axes.errorbar(x, y, error, fmt="none", ecolor=line.look.colour, capsize=2)
        axes.plot(x, y, label=line.label, linestyle=line.look.dash, **style)
        x, y, _ = _columns([point for point in line.points if point.is_cheap], shown)
        axes.plot(x, y, linestyle="none", markerfacecolor=GROUND, zorder=3, **style)
    for height in real:
        axes.axhline(height, color=FAINT, linewidth=1, linestyle=(0, (4, 3)), label=HELD_OUT)
    axes.grid()


def _columns(points: Sequence[Point], shown: Shown) -> tuple[list[float], list[float], list[float]]:
    """Calls, numbers and their errors."""
    known = [(point.nfe, *found) for point in points if (found := shown(point)) is not None]
    return [calls for calls, _, _ in known], [value for _, value, _ in known], [error for _, _, error in known]


def _label(upper: "Axes", lower: "Axes", scorers: Sequence[str]) -> None:
    """Both axes of calls and that of perplexity are logarithmic, with numbers as people write them."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

    lower.set_xscale("log", base=2)
    upper.set_yscale("log")
    low, high = upper.get_ylim()
    upper.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12) if high > 10 * low else AutoLocator())
    upper.yaxis.set_minor_locator(NullLocator())
    for axis in (lower.xaxis, upper.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    upper.set_ylabel("generative perplexity\n(log; bars: ± 1 s.e.)")
    lower.set_ylabel(f"nats of entropy above\n{HELD_OUT} (± 1 s.e.)")
    lower.set_xlabel("network calls per text (log)")
    upper.set_title(f"scored by {', '.join(map(short, scorers))}")
