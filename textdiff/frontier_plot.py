"""Sample quality against network calls as a picture, drawn when matplotlib is installed (the extra `plots`)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from textdiff.evaluation.frontier import HELD_OUT, Point, pareto
from textdiff.plots import can_draw

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKS = "osD^vP*X"
_LABEL = 100  # characters of a legend's line
_COLORS = 10  # of matplotlib's cycle
_BEST = "no other point has as few calls and as low a perplexity"
_CHEAP = f"entropy well below {HELD_OUT}: a cheap perplexity, never ringed"


class Panel(NamedTuple):
    """What one part of the picture shows: fields of a point."""

    value: str
    error: str
    label: str


def frontier(path: Path, points: Sequence[Point]) -> bool:
    """Write `frontier_figure`; False when there is nothing to draw or nothing to draw with."""
    if not can_draw() or not any(point.nfe > 0 and point.gen_ppl is not None for point in points):
        return False
    frontier_figure(points).savefig(path, dpi=120)
    return True


def frontier_figure(points: Sequence[Point]) -> "Figure":
    """Generative perplexity above, entropy below, against network calls, with held-out text as lines; points that no other beats are
    ringed, and points whose low entropy makes them cheap are hollow.
    """
    from matplotlib.figure import Figure

    lines = _lines([point for point in points if point.nfe > 0 and point.gen_ppl is not None])
    scorers = ", ".join(sorted({point.scorer for point in points}))
    panels = (
        Panel("gen_ppl", "gen_ppl_error", f"generative perplexity\nunder {textwrap.shorten(scorers, 40, placeholder='...')}"),
        Panel("entropy", "entropy_error", "entropy within\na text (nats)"),
    )
    legend = sum(label.count("\n") + 1 for label in lines) + 2
    figure = Figure(figsize=(8, 6.5 + 0.18 * legend), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 3))
    for axes, panel in ((upper, panels[0]), (lower, panels[1])):
        _panel(axes, panel, lines, [point for point in points if point.model == HELD_OUT])
    best = pareto(points)
    (ring,) = upper.plot([p.nfe for p in best], [p.gen_ppl for p in best], "o", ms=13, mfc="none", color="0.2", label=_BEST)
    (hollow,) = upper.plot([], [], "o", ms=6, mfc="white", color="0.2", label=_CHEAP)
    _log_axes(upper)
    lower.set_xlabel("network calls per text (bars: 1 s.e.)")
    handles, _ = upper.get_legend_handles_labels()
    handles = [*(handle for handle in handles if handle not in (ring, hollow)), ring, hollow]
    figure.legend(handles=handles, loc="outside lower left", frameon=False, fontsize="small")
    return figure


def _lines(points: Sequence[Point]) -> dict[str, list[Point]]:
    """By label: points whose samplers differ in their steps alone are a line, in the order of their calls."""
    found: dict[str, list[Point]] = {}
    for point in points:
        name, _, options = point.sampler.partition(":")
        others = [item for item in options.split(",") if item and not item.startswith("steps=")]
        label = f"{point.model}: {', '.join([name, *others])}"
        found.setdefault("\n".join(textwrap.wrap(label, _LABEL)), []).append(point)
    return {label: sorted(own, key=lambda point: point.nfe) for label, own in found.items()}


def _panel(axes: "Axes", panel: Panel, lines: dict[str, list[Point]], real: Sequence[Point]) -> None:
    for number, (label, own) in enumerate(lines.items()):
        calls, color = [point.nfe for point in own], f"C{number % _COLORS}"
        values, errors = ([getattr(point, name) or 0.0 for point in own] for name in (panel.value, panel.error))
        mark: dict[str, Any] = {"marker": _MARKS[number // _COLORS % len(_MARKS)], "ms": 6, "color": color}
        axes.errorbar(calls, values, errors, label=label, capsize=2, linewidth=1.4, zorder=2, **mark)
        cheap = [(point.nfe, value) for point, value in zip(own, values, strict=True) if point.is_cheap]
        axes.plot([x for x, _ in cheap], [y for _, y in cheap], linestyle="none", mfc="white", zorder=3, **mark)
    for point in real:
        height = getattr(point, panel.value)
        axes.axhline(height, color="0.4", linewidth=1, linestyle="--", zorder=1)
        place: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
        axes.annotate(HELD_OUT.replace(" ", "\n"), (1, height), xytext=(4, 0), color="0.4", fontsize="small", **place)
    axes.set_ylabel(panel.label)
    axes.spines[["top", "right"]].set_visible(False)


def _log_axes(axes: "Axes") -> None:
    """Both logarithmic, with numbers written out."""
    from matplotlib.ticker import FormatStrFormatter, LogLocator, NullLocator

    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_minor_locator(NullLocator())
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FormatStrFormatter("%g"))
