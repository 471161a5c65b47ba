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
