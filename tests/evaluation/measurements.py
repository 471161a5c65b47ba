"""Measurements with numbers that the tests choose."""

from collections.abc import Sequence
from typing import Any

from textdiff.evaluation.measurement import Measurement, Rules, TextScore

RULES = Rules(unit="passage", start="[BOS]", end=False, length=128, stride=64)


def measured(
    nats: Sequence[float], tokens: Sequence[int] | None = None, documents: Sequence[int] | None = None, **head: Any
) -> Measurement:
    """A measurement with so many nats of each text: 5 bytes and 4 characters for a token, and a word for two."""
    counts = [10] * len(nats) if tokens is None else tokens
    scores = [
        TextScore(i, float(x), int(n), 5 * int(n), 4 * int(n), int(n) // 2, None if documents is None else int(documents[i]))
        for i, (x, n) in enumerate(zip(nats, counts, strict=True))
    ]
    given = {"model": "a", "data": "texts", "kind": "exact", "rules": RULES, "texts": "texts", "tokenizer": "bpe", **head}
    return Measurement(**given, parameters=1, draws=1, forwards=len(scores), seed=0, scores=tuple(scores))
