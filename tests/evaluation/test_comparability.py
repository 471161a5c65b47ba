"""What may be compared and what may be said of it: every rule of the module, each broken alone."""

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.evaluation.measurements import RULES, measured
from textdiff.evaluation.comparability import claim, differing_context, refusal, words_defined
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.statistics import UNITS, Difference

NATS = [10.0, 12.0, 9.0]
EVERYWHERE: dict[str, tuple[dict[str, Any], str]] = {
    "texts": ({"texts": "others"}, "other texts: measure both on the same ones"),
    "detokenizer": (
        {"texts": "others", "rules": replace(RULES, detokenizer="ptb")},
        "other detokenizers, none and ptb: measure both with one",
    ),
    "unit": ({"texts": "others", "rules": replace(RULES, unit="document")}, "one is measured by passage, the other by document"),
    "end": ({"rules": replace(RULES, end=True)}, "only b counts EOS after each text"),
    "length": ({"rules": replace(RULES, length=256)}, "other windows, 128 with stride 64 and 256 with stride 64: more context alone"),
    "stride": ({"rules": replace(RULES, stride=127)}, "other windows, 128 with stride 64 and 128 with stride 127: more context alone"),
    "start": ({"rules": replace(RULES, start=None)}, "b has no token to stand before a text, so the first of each counts for the other"),
}
PER_TOKEN: dict[str, tuple[dict[str, Any], str]] = {
    "tokenizer": ({"tokenizer": "words"}, "other tokenizers: a token is not the same for both, compare per byte, character or word"),
    "fill": ({"rules": replace(RULES, fill=20)}, "EOS fills responses up to other lengths"),
}
HARMLESS: dict[str, dict[str, Any]] = {
    "kind": {"kind": "upper bound"},
    "name of the start": {"rules": replace(RULES, start="<s>")},
    "training seed": {"training_seed": 5},
}


def other(**head: Any) -> Measurement:
    return measured(NATS, model="b", **head)


@pytest.mark.parametrize("what", EVERYWHERE)
def test_what_differs_in_every_unit_is_refused_in_every_unit_from_both_sides(what: str) -> None:
    head, reason = EVERYWHERE[what]
    for per in UNITS:
        assert str(refusal(measured(NATS), other(**head), per)).startswith(reason)
        assert refusal(other(**head), measured(NATS), per) is not None


@pytest.mark.parametrize("what", PER_TOKEN)
def test_what_makes_other_tokens_is_refused_per_token_alone(what: str) -> None:
    head, reason = PER_TOKEN[what]
    assert str(refusal(measured(NATS), other(**head), "tokens")).startswith(reason)
    assert [refusal(measured(NATS), other(**head), per) for per in UNITS[1:]] == [None] * 3


@pytest.mark.parametrize("what", HARMLESS)
def test_what_changes_no_number_is_compared(what: str) -> None:
    assert [refusal(measured(NATS), other(**HARMLESS[what]), per) for per in UNITS] == [None] * 4


def test_what_a_tokenizer_loses_is_no_gain_of_its_model() -> None:
    """Refused in every unit, from both sides, but for models that share the tokenizer, and so the loss."""
    whole, lossy, other_lossy = measured(NATS), other(tokenizer="lower", lost=0.25), other(tokenizer="unknown", lost=1 / 3)
    for per in UNITS:
        reason = refusal(whole, lossy, per)
        assert reason == "the tokenizer of b loses text, which costs nothing: 25 % of the texts do not come back from their tokens"
        assert refusal(lossy, whole, per) == reason
        assert refusal(lossy, replace(lossy, model="c"), per) is None
        two = refusal(replace(lossy, model="a"), other_lossy, per)
        assert two == refusal(other_lossy, replace(lossy, model="a"), per)
        assert two is not None
        assert "of b loses text, which costs nothing: 33.3 % and with that of a 25 % of the texts" in two


def test_rows_of_responses_may_be_of_other_lengths_because_each_holds_all_of_one() -> None:
    a, b = (measured(NATS, rules=replace(RULES, unit="response", length=n, stride=n)) for n in (30, 50))
    assert refusal(a, b, "text_bytes") is None


def test_measurements_that_ended_early_need_texts_in_common() -> None:
    a, b = measured(NATS), other()
    assert refusal(replace(a, scores=a.scores[:2]), replace(b, scores=b.scores[1:]), "tokens") is None
    assert str(refusal(replace(a, scores=a.scores[:1]), replace(b, scores=b.scores[1:]), "tokens")).startswith("no text in common")


def test_words_are_defined_where_white_space_parts_them() -> None:
    assert words_defined(measured([10.0]))
    unparted = measured([10.0])
    unparted = replace(unparted, scores=tuple(score._replace(words=1, characters=60) for score in unparted.scores))
    assert not words_defined(unparted)
    assert str(refusal(unparted, unparted, "words")).startswith("white space does not part these texts into words")
    assert refusal(unparted, unparted, "characters") is None


def said(lower: str, higher: str, p: float = 0.01) -> tuple[str | None, str]:
    """Of a model of kind `lower` that costs 0.1 nats less than one of kind `higher`."""
    found = Difference(-0.1, 0.02, -0.14, -0.06, p)
    a, b = measured(NATS, model="lower", kind=lower), measured(NATS, model="higher", kind=higher)
    one, back = claim(a, b, found, p), claim(b, a, Difference(0.1, 0.02, 0.06, 0.14, p), p)
    assert one == back
    return one.better, one.words


def test_a_claim_follows_from_the_kinds() -> None:
    assert said("exact", "exact") == ("lower", "lower is better")
    assert said("upper bound", "exact") == ("lower", "lower is better")  # what it bounds is lower still
    assert said("exact", "upper bound") == (None, "no claim: a bound above an exact value")
    assert said("upper bound", "upper bound") == ("lower", "lower has the lower bound")
    for pair in (("estimate", "exact"), ("exact", "estimate"), ("upper bound", "estimate"), ("estimate", "estimate")):
        assert said(*pair) == (None, "no claim: an estimate may err to either side")


def test_without_significance_nothing_is_claimed() -> None:
    for p in (0.05, 0.3, math.nan):
        for pair in (("exact", "exact"), ("upper bound", "exact"), ("exact", "upper bound")):
            assert said(*pair, p=p) == (None, "no difference told")


def test_the_text_in_a_window_is_told_where_tokenizers_differ() -> None:
    assert differing_context([measured(NATS), other()]) is None
    # a token is 4 characters of text; with 5 tokens for a text of 40 characters it is 8
    coarse = replace(other(tokenizer="words"), scores=tuple(s._replace(tokens=5) for s in other().scores))
    assert differing_context([measured(NATS), coarse]) == "characters that a window holds: a 512, b 1024"
    responses = [replace(m, rules=replace(RULES, unit="response")) for m in (measured(NATS), coarse)]
    assert differing_context(responses) is None  # a row holds all of a pair
