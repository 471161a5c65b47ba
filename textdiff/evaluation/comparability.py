"""When two likelihoods may be set side by side, and what may be said of them then.

A difference of nats is one of models only where everything else is equal: the texts, what was done to them and what a tokenizer leaves of
them, what counts, the context that each token is given, and for a number per token the tokenizer. Two upper bounds can be compared as
bounds; a bound below an exact value decides, a bound above one does not; an estimate, which may err to either side, decides nothing.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.statistics import Difference, common

_LONGEST_WORD = 20  # characters per word, on average: in scripts without white space a "word" is a clause


class Claim(NamedTuple):
    """What a difference allows to say; `better` is the model it is said of, None where nothing may be said."""

    better: str | None
    words: str


def refusal(a: Measurement, b: Measurement, per: str) -> str | None:
    """Why the nats per "tokens", "text_bytes", "characters" or "words" of two models cannot be compared; None where they can."""
    for reason in (_other_texts(a, b), _other_rules(a, b), _lossy(a, b), _other_unit(a, b, per)):
        if reason:
            return reason
    return None


def words_defined(measurement: Measurement) -> bool:
    """Whether white space parts the texts into words, so that nats per word mean something."""
    words = sum(score.words for score in measurement.scores)
    return words > 0 and sum(score.characters for score in measurement.scores) <= _LONGEST_WORD * words


def claim(a: Measurement, b: Measurement, found: Difference, p: float, level: float = 0.05) -> Claim:
    """What `found`, the difference of comparable models, allows to say at a p-value that is adjusted for the tests beside it."""
    lower, higher = (a, b) if found.value < 0 else (b, a)
    if "estimate" in (a.kind, b.kind):
        return Claim(None, "no claim: an estimate may err to either side")
    if math.isnan(p) or p >= level:
        return Claim(None, "no difference told")
    if higher.kind == "upper bound" and lower.kind == "exact":
        return Claim(None, "no claim: a bound above an exact value")
    if higher.kind == lower.kind == "upper bound":
        return Claim(lower.model, f"{lower.model} has the lower bound")
    return Claim(lower.model, f"{lower.model} is better")


def _other_texts(a: Measurement, b: Measurement) -> str | None:
    if a.rules.detokenizer != b.rules.detokenizer:
        return f"other detokenizers, {a.rules.detokenizer} and {b.rules.detokenizer}: measure both with one"
    if a.rules.unit != b.rules.unit:
        return f"one is measured by {a.rules.unit}, the other by {b.rules.unit}: measure both alike"
    if a.texts != b.texts:
        return "other texts: measure both on the same ones"
    if not common(a, b):
        return "no text in common: a target error ended both early, measure more"
    return None


def _other_rules(a: Measurement, b: Measurement) -> str | None:
    if a.rules.end != b.rules.end:
        with_end = a if a.rules.end else b
        return f"only {with_end.model} counts EOS after each text: measure both alike"
    if (a.rules.length, a.rules.stride) != (b.rules.length, b.rules.stride) and a.rules.unit != "response":
        windows = " and ".join(f"{m.rules.length} with stride {m.rules.stride}" for m in (a, b))
        return f"other windows, {windows}: more context alone costs fewer nats, measure both with one length and stride"
    if (a.rules.start is None) != (b.rules.start is None):
        without = a if a.rules.start is None else b
        return f"{without.model} has no token to stand before a text, so the first of each counts for the other alone"
    if a.rules.start is None and a.tokenizer != b.tokenizer:
        return "neither has a token to stand before a text, and the first one of each, which does not count, is not the same for both"
    return None


def _lossy(a: Measurement, b: Measurement) -> str | None:
    """Two models of one tokenizer speak of the same text, however little of it is left; of two tokenizers each must keep all."""
    if a.tokenizer == b.tokenizer or not max(a.lost, b.lost):
        return None
    lossy, other = sorted((a, b), key=lambda found: found.lost, reverse=True)
    shares = f"{100 * lossy.lost:.3g} %" + (f" and with that of {other.model} {100 * other.lost:.3g} %" if other.lost else "")
    return f"the tokenizer of {lossy.model} loses text, which costs nothing: {shares} of the texts do not come back from their tokens"


def _other_unit(a: Measurement, b: Measurement, per: str) -> str | None:
    if per == "tokens":
        if a.tokenizer != b.tokenizer:
            return "other tokenizers: a token is not the same for both, compare per byte, character or word"
        if a.rules.fill != b.rules.fill:
            return "EOS fills responses up to other lengths, and each counts as a token: compare per byte, character or word"
    if per == "words" and not (words_defined(a) and words_defined(b)):
        return "white space does not part these texts into words: compare per byte or character"
    return None


def differing_context(measurements: Sequence[Measurement]) -> str | None:
    """What windows of equal length leave unequal between tokenizers: how much text one holds."""
    if len({m.tokenizer for m in measurements}) < 2 or measurements[0].rules.unit == "response":  # a row holds all of a pair
        return None
    held = (
        f"{m.model} {m.rules.length * sum(s.characters for s in m.scores) / max(1, sum(s.tokens for s in m.scores)):.0f}"
        for m in measurements
    )
    return f"characters that a window holds: {', '.join(held)}"
