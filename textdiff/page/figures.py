"""The pictures of a page: intervals, training curves and the frontier."""

import math
import re
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from textdiff.evaluation.comparison import Standing
from textdiff.evaluation.frontier import Point
from textdiff.page.results import Evaluation
from textdiff.page.style import FAINT, GROUND, INK, WIDTH, Limits, Looks, Picture, legend_below, short, span, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BIT = math.log(2)  # nats
_KINDS = {"exact": "exact", "upper bound": "upper bound: the true value is to the left", "estimate": "estimate"}


def intervals(data: str, number: int, standings: Sequence[Standing], looks: Looks) -> Picture:
    """Bits per byte of every model on a data set with its 95 % interval, the best on top."""
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 1.1 + 0.3 * len(standings)), layout="constrained")
        axes = figure.subplots()
        values = [standing.nats["text_bytes"].value / _BIT for standing in standings]
        low, high = _room(values, [standing.nats["text_bytes"].low / _BIT for standing in standings])
        for row, (standing, value) in enumerate(zip(standings, values, strict=True)):
            _interval(axes, row, standing, value, high, looks)
        axes.set_yticks(range(len(standings)), [short(standing.measurement.model) for standing in standings])
        axes.set_ylim(len(standings) - 0.4, -0.6)
        axes.set_xlim(low, high)
        axes.set_xlabel("bits per byte (95 % interval over texts); less is better")
        axes.tick_params(left=False)
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        _kinds_below(figure, sorted({standing.measurement.kind for standing in standings}, key=list(_KINDS).index))
    said = "; ".join(f"{short(one.measurement.model)} {sign(one)}{value:.4f}" for one, value in zip(standings, values, strict=True))
    alt = f"Bits per byte on {data}, best first: {said}"
    return Picture(f"intervals{number}", alt, "Intervals are of the texts alone: another training seed would move each model too.", figure)


def sign(standing: Standing) -> str:
    """What stands before a number: that it is a bound or an estimate."""
    return {"upper bound": "≤ ", "estimate": "≈ "}.get(standing.measurement.kind, "")


def _room(values: Sequence[float], lows: Sequence[float]) -> tuple[float, float]:
    """Limits with room for the numbers at the right of each interval."""
    low, high = span(values)
    low = min([low, *filter(math.isfinite, lows)])
    width = max(high - low, 0.02 * high)
    return low - 0.06 * width, high + 0.32 * width


def _interval(axes: "Axes", row: int, standing: Standing, value: float, right: float, looks: Looks) -> None:
    """One line of the picture; a value beyond its right edge is named there."""
    colour, found = looks[standing.measurement.model].colour, standing.nats["text_bytes"]
    number = f"{sign(standing)}{value:.3f}"
    if value > right:
        text = f"{number} →"
        axes.annotate(text, (1, row), xycoords=("axes fraction", "data"), ha="right", va="center", color=INK, annotation_clip=False)
        return
    ends = [end / _BIT for end in (found.low, found.high)]
    if all(map(math.isfinite, ends)):
        axes.plot(ends, [row, row], color=colour, linewidth=2.2, solid_capstyle="butt")
    axes.plot([value], [row], **_marker(standing.measurement.kind, colour))
    edge = max(value, ends[1] if math.isfinite(ends[1]) else value)
    axes.annotate(number, (edge, row), xytext=(6, 0), textcoords="offset points", va="center", color=INK, clip_on=False)


def _marker(kind: str, colour: str) -> dict[str, Any]:
    fill = colour if kind == "exact" else GROUND
    shape = {"exact": "o", "upper bound": "<", "estimate": "D"}[kind]
    return {"marker": shape, "color": colour, "markerfacecolor": fill, "markeredgewidth": 1.4, "markersize": 6.5, "linestyle": "none"}


def _kinds_below(figure: Any, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], label=_KINDS[kind], **_marker(kind, INK)) for kind in kinds]
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles))


def training(rows: Sequence[Evaluation], looks: Looks) -> Picture:
    """Validation loss against tokens and, where they are known, against seconds."""
    runs = {run: sorted(found, key=lambda row: row.tokens) for run, found in _grouped(rows, lambda row: row.run).items()}
    timed = any(math.isfinite(row.seconds) for row in rows)
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 4.3 + 0.1 * len(runs)), layout="constrained")
        panels = figure.subplots(1, 1 + timed, sharey=True, squeeze=False)[0]
        scales = [("training tokens", lambda row: row.tokens), ("seconds of training", lambda row: row.seconds)]
        for axes, (label, at) in zip(panels, scales, strict=False):
            for run, found in runs.items():
                _curve(axes, run, [(at(row), row.nats_per_token, row.error) for row in found], looks)
            axes.set_xlabel(label)
            axes.xaxis.set_major_formatter(_thousands)
            axes.grid(axis="y")
        panels[0].set_ylabel("validation nats/token (bands: ± 2 s.e.)")
        limits = Limits.of({run: [row.nats_per_token for row in found[len(found) // 8 :]] for run, found in runs.items()})
        panels[0].set_ylim(limits.low, limits.high)
        legend_below(figure, panels)
    ends = "; ".join(f"{short(run)} {found[-1].nats_per_token:.3f}" for run, found in sorted(runs.items()))
    alt = f"Validation nats per token while training, at its end: {ends}"
    return Picture("training", alt, f"The first steps may lie above the picture. {limits.words}".strip(), figure)


def _curve(axes: "Axes", run: str, points: Sequence[tuple[float, float, float]], looks: Looks) -> None:
    known = [point for point in points if math.isfinite(point[0]) and math.isfinite(point[1])]
    if known:
        x, y, error = zip(*known, strict=True)
        look = looks[run]
        axes.plot(x, y, label=run, color=look.colour, linestyle=look.dash, marker=look.marker, markersize=4, markevery=max(1, len(x) // 6))
        wide = [2 * one if math.isfinite(one) else 0.0 for one in error]
        low, high = ([at + by * way for at, by in zip(y, wide, strict=True)] for way in (-1, 1))
        axes.fill_between(x, low, high, color=look.colour, alpha=0.18, linewidth=0)


def _thousands(value: float, _: int) -> str:
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit:
            return f"{value / unit:g}{letter}"
    return f"{value:g}"


def frontier(points: Sequence[Point], looks: Looks) -> Picture:
    """Generative perplexity against network calls, and below it entropy, without which the first says little."""
    drawn, real = [point for point in points if point.nfe > 0], [point for point in points if point.nfe == 0]
    lines = _grouped(drawn, lambda point: (point.model, _without_steps(point.sampler)))
    models = list(dict.fromkeys(point.model for point in drawn))
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 5.6 + 0.1 * len(models)), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        dashes: dict[str, int] = {}
        for (model, sampler), found in lines.items():
            look, place = looks[model], dashes.setdefault(model, -1) + 1
            dashes[model] = place
            found = sorted(found, key=lambda point: point.nfe)
            style = {"color": look.colour, "marker": look.marker, "linestyle": ("-", "--", ":", "-.")[place % 4]}
            name = short(model) if sampler in ("", "default") else f"{short(model)}, {short(sampler)}"
            known = [(p.nfe, p.gen_ppl, p.gen_ppl_error or 0.0) for p in found if p.gen_ppl is not None]
            x, y, error = zip(*known, strict=True) if known else ((), (), ())
            upper.errorbar(x, y, error, label=name, capsize=2, **style)
            told = [point for point in found if point.entropy is not None]
            lower.plot([p.nfe for p in told], [p.entropy or 0.0 for p in told], label=name, **style)
        for point in real[:1]:
            _held_out(upper, point.gen_ppl, point.model)
            _held_out(lower, point.entropy, "")
        upper.set_yscale("log")
        _plain_ticks(upper.yaxis)
        lower.set_xscale("log", base=2)
        _plain_ticks(lower.xaxis)
        scorers = sorted({short(point.scorer) for point in points})
        upper.set_ylabel("generative perplexity\n(log; bars: ± 1 s.e.)")
        lower.set_ylabel("entropy, nats")
        lower.set_xlabel("network calls per text (log)")
        upper.set_title(f"scored by {', '.join(scorers)}")
        for axes in (upper, lower):
            axes.grid()
        legend_below(figure, [upper], rename=lambda name: name)
    best = {model: min((p.gen_ppl for p in drawn if p.model == model and p.gen_ppl is not None), default=math.nan) for model in models}
    alt = "Generative perplexity and entropy against network calls; lowest perplexity: " + "; ".join(
        f"{short(model)} {value:.1f}" for model, value in best.items()
    )
    caption = "Low perplexity with an entropy below that of held-out text means repetition, not quality."
    return Picture("frontier", alt, caption, figure)


def _without_steps(sampler: str) -> str:
    """A sampler's words but for its number of steps, which the axis shows."""
    return re.sub(r"(?<=[:,])steps=\d+,?", "", sampler).rstrip(":,")


def _held_out(axes: "Axes", value: float | None, name: str) -> None:
    if value is not None:
        axes.axhline(value, color=FAINT, linewidth=1, linestyle=(0, (4, 3)))
        axes.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(-2, 3), textcoords="offset points", ha="right", color=INK
        )


def _plain_ticks(axis: Any) -> None:
    """Numbers as people write them, also between powers where there is room."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axis.axis_name == "y":
        axis.set_major_locator(LogLocator(10, subs=(1, 2, 5), numticks=12))
    axis.set_minor_formatter(NullFormatter())


def _grouped(rows: Sequence[Any], key: Callable[[Any], Any]) -> dict[Any, list[Any]]:
    """Rows by key, in the order of the keys."""
    return {name: list(found) for name, found in groupby(sorted(rows, key=key), key)}
