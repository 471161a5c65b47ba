"""A comparison's folder as the commands leave it, with numbers made up: nine models, one of them far off."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy

from textdiff.evaluation.frontier import Point
from textdiff.evaluation.measurement import Measurement, Rules, TextScore

LEVELS = {  # nats per token
    "autoregressive": 3.05,
    "adaptation-masked-from-autoregressive-annealed": 3.31,
    "masked-exact-count": 3.42,
    "block-16": 3.27,
    "uniform": 3.71,
    "hybrid-gamma-1": 3.66,
    "embedding-gumbel": 4.02,
    "latent-vae": 22.1,
    "score-masked-sedd": 3.58,
}
NASTY = 'tab\tand\nline, <script>alert("x")</script> & \x1b[31m red\x00, \u202e turned, half \ud83d, `code` | pipe, 日本語'
DATA = ("pydocs", "texts-2")


def kind(model: str) -> str:
    return "exact" if model == "autoregressive" else "estimate" if model == "latent-vae" else "upper bound"


def measurement(model: str, data: str, level: float, texts: int = 60) -> Measurement:
    generator = numpy.random.default_rng(len(data))
    tokens = generator.integers(80, 200, texts)
    own = numpy.random.default_rng(int(1000 * level)).normal(0, 0.06, texts)
    nats = tokens * (level + generator.normal(0, 0.4, texts) + own)
    scores = [
        TextScore(i, float(x), int(n), int(n) * 3, int(n) * 3 - 4, int(n) // 2) for i, (x, n) in enumerate(zip(nats, tokens, strict=True))
    ]
    draws = 1 if kind(model) == "exact" else 16
    return Measurement(
        model,
        f"{data}, validation",
        kind(model),
        Rules("passage", "[BOS]", False, 128, 64),
        f"digest of {data}",
        "tokenizer",
        1_234_560,
        draws,
        texts * draws,
        0,
        3 if model == "uniform" else None,
        tuple(scores),
    )


def point(model: str, sampler: str, nfe: float, gen_ppl: float | None, entropy: float, gap: float | None = None) -> Point:
    return Point(
        gen_ppl=gen_ppl,
        gen_ppl_error=None if gen_ppl is None else gen_ppl * 0.05,
        entropy=entropy,
        entropy_gap=3.9 - entropy if gap is None else gap,
        entropy_gap_error=0.04,
        distinct_1=0.5,
        distinct_2=0.9,
        distinct_4=1.0,
        self_bleu=30.0,
        repetition=0.01,
        mauve=None,
        texts=64,
        tokens_per_text=64.0,
        model=model,
        sampler=sampler,
        nfe=nfe,
        scorer="autoregressive-large",
        dtype="float32, float64",
        seconds_per_text=0.01 * nfe,
    )


def frontier(models: list[str]) -> list[dict[str, Any]]:
    rows = [asdict(point("held-out text", "-", 0, 48.0, 3.9))]
    for place, model in enumerate(models):
        if model == "autoregressive":
            rows.append(asdict(point(model, "Autoregressive", 64, 60.0, 3.8)))
            continue
        for steps in (4, 8, 16, 32, 64, 128):
            value = 60 + 20 * place + 400 / steps ** (0.8 + 0.05 * place)
            rows.append(asdict(point(model, f"Ancestral:steps={steps}", steps, value, 4.1 - 0.5 / steps - 0.03 * place)))
            if model.startswith("masked"):
                rows.append(asdict(point(model, f"Greedy:steps={steps},temperature=0.7", steps, value / 3, 2.9 - 1 / steps)))
    return rows


def profile(models: list[str]) -> list[dict[str, Any]]:
    rows = []
    for place, model in enumerate(models):
        axis = (
            "position"
            if model == "autoregressive"
            else "t"
            if model in ("uniform", "hybrid-gamma-1", "embedding-gumbel")
            else "masked share"
        )
        for tenth in range(1, 11):
            x = tenth / 10
            nats = LEVELS[model] * (0.6 + 0.6 * x) if axis != "position" else 3.4 - 0.4 * x
            spread = 0.01 * place * (1 - x)
            bins = [[(i + 0.5) / 10, min(1.0, max(0.0, (i + 0.5) / 10 - spread * (i - 2))), 900 if i < 9 else 30] for i in range(10)]
            row = {"model": model, "axis": axis, "x": x, "nats_per_token": nats, "error": 0.02, "accuracy": 0.5 - 0.4 * x, "tokens": 9000}
            rows.append({**row, "confidence": 0.5 - 0.4 * x + spread, "calibration_error": abs(spread), "bins": bins})
    return rows


def curves(models: list[str]) -> list[dict[str, Any]]:
    rows = []
    for place, model in enumerate(models):
        for step in range(1, 21):
            nats = LEVELS[model] + 3.2 * math.exp(-step / 4) + 0.3 / step
            rows.append(
                {"run": model, "tokens": step * 1_000_000, "seconds": step * (30 + 4 * place), "nats_per_token": nats, "error": 0.01}
            )
    return rows


def lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def comparison(folder: Path, models: tuple[str, ...] = tuple(LEVELS), data: tuple[str, ...] = DATA, texts: int = 60) -> Path:
    """Everything that a folder may hold."""
    (folder / "likelihood").mkdir(parents=True)
    for model in models:
        for name in data:
            measurement(model, name, LEVELS[model], texts).write(folder / "likelihood" / f"{model}@{name}.jsonl")
    lines(folder / "frontier.jsonl", frontier(list(models)))
    lines(folder / "profile.jsonl", profile(list(models)))
    lines(folder / "curves.jsonl", curves(list(models)))
    said = ["The quick brown fox jumps over the lazy dog. " * 6, NASTY, "def f(x):\n    return x\n", "fourth"]
    lines(folder / "samples.jsonl", [{"model": m, "sampler": "Ancestral:steps=64", "text": text} for m in models for text in said])
    table = {"title": "Equal seconds", "columns": ["model", "nats/token"], "rows": [["uniform", 3.7], ["a | b", None]], "note": "made up"}
    notes = {
        "title": "Nine families <on> pydocs",
        "command": "textdiff compare a b --data c",
        "rules": ["every token once"],
        "tables": [table],
    }
    (folder / "notes.json").write_text(json.dumps(notes))
    return folder
