"""Pictures of runs, drawn when matplotlib is installed (the extra `plots`)."""

import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def can_draw() -> bool:
    """Whether matplotlib is there."""
    return importlib.util.find_spec("matplotlib") is not None


def curves(path: Path, runs: Sequence[Path], baselines: Mapping[str, float]) -> bool:
    """Validation nats/token against training tokens for every run's `log.jsonl`, the first one in front, with n-gram baselines as lines;
    False when there is nothing to draw or nothing to draw with."""
    found = [(run, evaluations(run / "log.jsonl")) for run in runs]
    found = [(run, points) for run, points in found if len(points) > 1]
    if not can_draw() or not found:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for place, (run, points) in enumerate(found):
        tokens, nats, errors = zip(*points, strict=True)
        axes.errorbar(
            tokens, nats, errors, label=run.resolve().name, linewidth=2.4 if place == 0 else 1.2, capsize=2, zorder=3 - (place > 0)
        )
    for name, value in baselines.items():
        axes.axhline(value, color="0.5", linewidth=0.8, linestyle="--")
        axes.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(-4, 3), textcoords="offset points", ha="right", color="0.4"
        )
    axes.set_xlabel("training tokens")
    axes.set_ylabel("validation nats/token (bound or exact; bars: 1 s.e.)")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return True


def bands(path: Path, arms: Mapping[str, Sequence[Sequence[tuple[int, float, float]]]]) -> bool:
    """Validation nats/token against training tokens for kinds of runs: the mean over seeds, and all seeds between their extremes; `arms`
    holds (training tokens, nats/token, standard error) by seed. False when there is nothing to draw or nothing to draw with."""
    found = {name: list(zip(*seeds, strict=False)) for name, seeds in arms.items() if seeds and all(len(points) > 1 for points in seeds)}
    if not can_draw() or not found:
        return False
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in found.items():
        tokens = [group[0][0] for group in points]
        nats = [[point[1] for point in group] for group in points]
        (line,) = axes.plot(tokens, [sum(group) / len(group) for group in nats], label=name, linewidth=1.8, marker="o", markersize=3)
        axes.fill_between(tokens, [min(group) for group in nats], [max(group) for group in nats], color=line.get_color(), alpha=0.2)
    axes.set_xlabel("training tokens")
    axes.set_ylabel("validation nats/token (upper bound; bands: all seeds)")
    axes.legend(frameon=False, fontsize="small")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=120)
    return True


def evaluations(log: Path) -> list[tuple[int, float, float]]:
    """(training tokens, nats/token, standard error) of every evaluation in a log; an unreadable log has none."""
    tokens, points = {}, []
    try:
        rows = [json.loads(line) for line in log.read_text().splitlines()]
    except (OSError, ValueError):
        return []
    for row in rows:
        if "evaluation" not in row:
            tokens[row["step"]] = row.get("tokens", 0)
    for row in rows:
        values = row.get("evaluation", {})
        if values.get("nats_per_token") is not None:
            points.append((tokens.get(row["step"], 0), values["nats_per_token"], values.get("standard_error") or 0.0))
    return points
