"""The pictures of `profile.jsonl`: where the nats come from, and whether a model knows what it knows."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from textdiff.evaluation.profile import AXES
from textdiff.page.results import Place
from textdiff.page.style import FAINT, INK, WIDTH, Limits, Looks, Picture, legend_below, short, styled

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_AXES = {axis.name: axis for axis in AXES}
_ACROSS = 3  # panels beside one another
_LINES = 4  # places drawn in a panel
_NARROWEST = 4.4  # inches: the legend must fit
_FEWEST = 50  # tokens of a point: fewer say little of an accuracy


def losses(axis: str, number: int, rows: Sequence[Place], looks: Looks) -> Picture:
    """Loss of every model along one axis."""
    models = sorted({row.model for row in rows})
    reach = {model: [end for row in rows if row.model == model for end in _ends(row)] for model in models}
    limits = Limits.of(reach)
    with styled():
        from matplotlib.figure import Figure

        figure = Figure(figsize=(WIDTH, 3.6 + 0.1 * len(models)), layout="constrained")
        axes = figure.subplots()
        for model in models:
            found = sorted((row for row in rows if row.model == model and math.isfinite(row.nats_per_token)), key=lambda row: row.x)
            look, error = looks[model], [2 * row.error if math.isfinite(row.error) else 0.0 for row in found]
            x, y = [row.x for row in found], [row.nats_per_token for row in found]
            axes.errorbar(x, y, error, label=model, color=look.colour, linestyle=look.dash, marker=look.marker, capsize=2)
        axes.set_ylim(limits.low, limits.high)
        axes.set_xlim(-0.02, 1.02)
        axes.set_xlabel(meaning(axis))
        axes.set_ylabel(f"{unit(axis)} (± 2 s.e.)")
        axes.grid()
        legend_below(figure, [axes])
    alt = f"{unit(axis)} by {axis} of {', '.join(map(short, models))}; the table holds the numbers"
    return Picture(f"loss{number}", alt, limits.words(reach), figure)


def _ends(row: Place) -> tuple[float, float]:
    """Of its error bar."""
    wide = 2 * row.error if math.isfinite(row.error) else 0.0
    return row.nats_per_token - wide, row.nats_per_token + wide


def meaning(axis: str) -> str:
    """Of a place on an axis."""
    return _AXES[axis].meaning if axis in _AXES else axis


def unit(axis: str) -> str:
    """What the loss along an axis is."""
    return _AXES[axis].unit if axis in _AXES else "nats per token"


def calibration(axis: str, number: int, rows: Sequence[Place], looks: Looks) -> Picture:
    """Accuracy against confidence, a panel per model, at some places from pale to dark."""
    models, at = sorted({row.model for row in rows}), sorted({row.x for row in rows if row.bins})
    at = [at[round(i * (len(at) - 1) / (_LINES - 1))] for i in range(_LINES)] if len(at) > _LINES else at
    strength = {x: 0.25 + 0.75 * (place + 1) / len(at) for place, x in enumerate(at)}
    with styled():
        from matplotlib.figure import Figure

        across, down = min(_ACROSS, len(models)), -(-len(models) // _ACROSS)
        figure = Figure(figsize=(max(0.4 + (WIDTH - 0.4) * across / _ACROSS, _NARROWEST), 2.6 * down + 0.7), layout="constrained")
        panels = figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flatten()
        for place, (axes, model) in enumerate(zip(panels, models, strict=False)):
            _calibration(axes, [row for row in rows if row.model == model], looks[model].colour, strength)
            axes.set_title(short(model, 28), fontsize=8.5)
            axes.set_ylabel("accuracy" if place % across == 0 else "")
            if place + across >= len(models):
                axes.set_xlabel("confidence")
                axes.tick_params(labelbottom=True)
        for axes in panels[len(models) :]:
            axes.set_visible(False)
        _strengths_below(figure, axis, strength)
    caption = (
        f"On the diagonal a model is right as often as it says; below it, it is too sure. Points have {_FEWEST} tokens or more. "
        f"From pale to dark: {meaning(axis)}."
    )
    alt = f"Accuracy against confidence by {axis} of {', '.join(map(short, models))}; the table of calibration errors holds the numbers"
    return Picture(f"calibration{number}", alt, caption, figure)


def _calibration(axes: "Axes", rows: Sequence[Place], colour: str, strength: Mapping[float, float]) -> None:
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=0.9, linestyle=(0, (4, 3)))
    for row in sorted((row for row in rows if row.x in strength), key=lambda row: row.x):
        points = [(confidence, accuracy) for confidence, accuracy, tokens in row.bins if tokens >= _FEWEST]
        x, y = zip(*points, strict=True) if points else ((), ())
        axes.plot(x, y, color=colour, alpha=strength[row.x], marker="o", markersize=2.5)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_aspect("equal", anchor="W")


def _strengths_below(figure: "Figure", axis: str, strength: Mapping[float, float]) -> None:
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=INK, marker="o", markersize=2.5, alpha=alpha, label=f"{x:g}") for x, alpha in strength.items()]
    figure.legend(handles=[Line2D([], [], linestyle="none", label=axis), *handles], loc="outside lower left", ncols=len(handles) + 1)
