"""Several models and families: what is tested together, what a family needs, and what the tables say of it."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from statistics import mean

import numpy
import pytest

from tests.evaluation.measurements import RULES, measured
from textdiff.evaluation import seeds
from textdiff.evaluation.comparison import RESAMPLES, Family, family_pairings, pairings
from textdiff.evaluation.comparison_tables import compared
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.statistics import difference, ratio

TEXTS = numpy.random.default_rng(0).gamma(9.0, 2.0, size=40) + 10


def model(name: str, more: float, seed: int = 0, noise: float = 0.3, **head: object) -> Measurement:
    """Costs `more` nats for each text than the others, give or take noise of its own."""
    own = numpy.random.default_rng([seed, len(name), 1000 + int(100 * more)]).normal(size=40)
    return measured((TEXTS + more + noise * own).tolist(), model=name, training_seed=seed, **head)


def family(name: str, mores: Sequence[float], **head: object) -> Family:
    return Family(name, tuple(model(f"{name}-{i}", more, seed=i, **head) for i, more in enumerate(mores)))


def test_every_pair_is_tested_once_and_adjusted_for_the_others() -> None:
    runs = [model("a", 0.0), model("b", 0.3), model("c", 0.35), model("d", 2.0, tokenizer="words")]
    found = pairings(runs)
    assert [(one.a.model, one.b.model) for one in found] == [("a", "b"), ("a", "c"), ("a", "d"), ("b", "c"), ("b", "d"), ("c", "d")]
    raw = [difference(one.a, one.b, "text_bytes", RESAMPLES).p for one in found]
    assert all(one.p >= p for one, p in zip(found, raw, strict=True))
    assert min(one.p for one in found) == pytest.approx(6 / (RESAMPLES + 1))
    close = found[3]
    assert (close.claim.better, close.claim.words) == (None, "no difference told")
    assert found[0].claim.better == "a"
    assert "tokens" not in found[2].nats
    assert found[2].refused["tokens"].startswith("other tokenizers")
    assert found[2].claim.better == "a"  # per byte


def test_each_data_set_is_a_family_of_tests_and_says_so() -> None:
    """The same pairs beside another data set's have the p-values that they have alone."""
    runs = [model("a", 0.0), model("b", 0.3), model("c", 0.35)]
    alone = compared("one", runs)
    beside = [compared(data, runs) for data in ("one", "two")]
    assert [one.numbers["pairs"] for one in beside] == [alone.numbers["pairs"]] * 2
    raw = [difference(one.a, one.b, "text_bytes", RESAMPLES).p for one in pairings(runs)]
    assert min(pair["p"] for pair in alone.numbers["pairs"]) == pytest.approx(3 * min(raw))
    assert "adjusted by Holm over the pairs of this data set, not across data sets" in alone.tables[1].note
    families = compared("one", runs, {"a": ["a"], "b": ["b"]})
    assert "not across data sets" in families.tables[2].note


def test_a_pair_that_cannot_be_compared_is_no_test() -> None:
    found = pairings([model("a", 0.0), model("b", 1.0), model("c", 0.0, rules=replace(RULES, end=True))])
    assert [math.isnan(one.p) for one in found] == [False, True, True]
    assert found[0].p == pytest.approx(1 / (RESAMPLES + 1))  # adjusted for itself alone
    assert found[1].nats == {}
    assert found[1].claim == (None, "not comparable: only c counts EOS after each text: measure both alike")


def test_a_family_is_the_mean_of_its_runs_text_by_text() -> None:
    one = family("one", [0.0, 0.5, 1.0])
    runs = [[score.nats for score in run.scores] for run in one.runs]
    assert [score.nats for score in one.averaged().scores] == pytest.approx([mean(texts) for texts in zip(*runs, strict=True)])
    assert one.values("tokens") == pytest.approx([ratio(run, "tokens").value for run in one.runs])
    assert mean(one.values("tokens")) == pytest.approx(ratio(one.averaged(), "tokens").value)


def test_a_claim_about_families_needs_three_seeds_of_each_and_both_tests() -> None:
    low, high = family("low", [0.0, 0.1, 0.2]), family("high", [1.0, 1.1, 1.2])
    sure = family_pairings([low, high])[0]
    texts = seeds.Further(sure.nats["text_bytes"].error, len(low.runs[0].scores) - 1)
    gap = seeds.gap(low.values("text_bytes"), high.values("text_bytes"), further=texts)
    assert sure.claim == ("low", "low is better")
    assert sure.p == gap.p
    assert sure.nats["text_bytes"].value == pytest.approx(gap.mean)

    scattered = family("scattered", [-3.0, 1.0, 5.0])  # texts tell its runs' mean from the other's, seeds do not
    unsure = family_pairings([low, scattered])[0]
    assert unsure.nats["text_bytes"].p < 0.01
    assert (unsure.p > 0.05, unsure.claim.better) == (True, None)

    noisy = family("noisy", [1.0, 1.1, 1.2], noise=20.0)  # and here seeds do, for runs whose texts do not
    alike = replace(noisy, runs=tuple(replace(run, scores=noisy.runs[0].scores) for run in noisy.runs))
    untold = family_pairings([low, alike])[0]
    assert untold.between is not None
    assert untold.between["text_bytes"].p < 0.01
    assert (untold.p > 0.05, untold.claim.better) == (True, None)

    few = family_pairings([low, family("few", [1.0, 1.1])])[0]
    assert few.claim == (None, "no claim: a family needs 3 training seeds")
    assert math.isnan(few.p)


@pytest.mark.parametrize("count", [2, 3, 4])
def test_two_or_three_texts_have_an_error_and_no_interval(count: int) -> None:
    """Their resamples of one text alone have no spread, whatever rounding leaves of it, and are more than 5 % of all."""
    draw = numpy.random.default_rng(count)
    for _ in range(20):
        costs = 10 + draw.gamma(9.0, 2.0, size=(2, count))
        a, b = (measured(nats.tolist(), [7, 11, 13, 17][:count], model=name) for nats, name in zip(costs, "ab", strict=True))
        (pair,) = pairings([a, b])
        assert (pair.nats["tokens"].error > 0, pair.claim.better) == (True, None)
        assert math.isinf(pair.nats["tokens"].high) is (count < 4)
        assert abs(pair.nats["tokens"].value) < 10
        cell = compared("texts", [a, b]).tables[1].rows[0][1]
        assert cell.endswith("(no interval)") is (count < 4), cell


def test_runs_that_are_no_family_are_refused() -> None:
    with pytest.raises(ValueError, match=r"twice has training seeds \[0, 0\]: runs of one seed are not independent"):
        Family("twice", (model("a", 0.0), model("b", 0.1)))
    with pytest.raises(ValueError, match="a and b cannot stand for one family: other tokenizers"):
        Family("mixed", (model("a", 0.0), model("b", 0.1, seed=1, tokenizer="words")))
    with pytest.raises(ValueError, match="a and b cannot stand for one family: one is exact, the other upper bound"):
        Family("kinds", (model("a", 0.0), model("b", 0.1, seed=1, kind="upper bound")))


def test_tables_tell_every_number_with_its_kind_and_its_seed() -> None:
    best, worst = model("a", 0.0), model("b", 1.0, seed=3, kind="upper bound")
    found = compared("texts", [worst, best, model("c", 0.5, tokenizer="words")])
    likelihood, pairs = found.tables
    assert [row[0] for row in likelihood.rows] == ["a", "c", "b"]  # the fewest bits first
    row = dict(zip(likelihood.columns, likelihood.rows[2], strict=True))
    nats = sum(score.nats for score in worst.scores)
    error = ratio(worst, "tokens", RESAMPLES).error
    assert row["nats/token"] == f"{nats / 400:.4f} ± {error:.4f}"
    assert row["perplexity"] == f"{math.exp(nats / 400):.2f}"
    assert row["bits/byte"] == f"{nats / 2000 / math.log(2):.4f} ± {error / 5 / math.log(2):.4f}"
    assert row["bits/character"] == f"{nats / 1600 / math.log(2):.4f}"
    assert row["word perplexity"] == f"{math.exp(nats / 200):.2f}"
    assert (row["kind"], row["calls"], row["seeds"]) == ("upper bound", "40", "one (3)")
    by_pair = {row[0]: dict(zip(pairs.columns, row, strict=True)) for row in pairs.rows}
    assert by_pair["a - b"]["statement"] == "no claim: a bound above an exact value"
    assert by_pair["a - c"]["nats/token (95 %)"] == "-"
    assert by_pair["a - c"]["statement"] == "a is better"
    assert "no difference per token: other tokenizers" in pairs.note
    rules = "\n".join(found.rules)
    for rule in ("[BOS] stands before a text as context and does not count", "no EOS counts", "windows of 128 tokens", "detokenizer: none"):
        assert rule in rules
    assert "upper bounds are means of 1 draws for each window (noise seed 0)" in rules
    assert "characters that a window holds" in rules
    json.dumps(found.numbers, allow_nan=False)
    lossy = compared("texts", [replace(best, lost=0.125), worst])
    assert [row[0] for row in lossy.tables[0].rows] == ["a", "b"]
    assert "the tokenizer of a loses text: 12.5 % of the texts do not come back from their tokens" in "\n".join(lossy.rules)


def test_tables_of_families_set_both_errors_side_by_side() -> None:
    runs = [*family("low", [0.0, 0.1, 0.2]).runs, *family("high", [1.0, 1.1, 1.2]).runs, model("lone", 2.0)]
    groups = {"low": ["low-0", "low-1", "low-2"], "high": ["high-0", "high-1", "high-2"], "lone": ["lone"]}
    found = compared("texts", runs, groups)
    _, families, pairs = found.tables
    low, high, lone = (dict(zip(families.columns, row, strict=True)) for row in families.rows)
    assert [row["seeds"] for row in (low, high, lone)] == ["3", "3", "one seed"]
    assert low["nats/token"] == str(seeds.interval(Family("low", tuple(runs[:3])).values("tokens")))
    assert lone["nats/token"].endswith("(one seed)")
    assert [row[-1] for row in pairs.rows] == ["low is better", *["no claim: a family needs 3 training seeds"] * 2]
    json.dumps(found.numbers, allow_nan=False)


def test_errors_of_passages_say_what_they_are_over() -> None:
    def said(documents: Sequence[int]) -> str:
        return "\n".join(compared("texts", [measured([10.0 + i for i in range(20)], documents=documents)]).rules)

    assert "over documents, taken as independent draws of one law, a document's passages together" in said([i // 2 for i in range(20)])
    assert "over passages, taken as independent draws of one law, for fewer than 8 documents" in said([i // 10 for i in range(20)])


def test_equal_families_are_told_apart_as_seldom_as_said() -> None:
    """Ten seeds each, the error of seeds as large as that of texts: of 300 pairs of equal families 5 % may be told apart, not 17 %."""
    rng, false, trials, texts = numpy.random.default_rng(0), 0, 300, 100
    for _ in range(trials):
        apart = rng.normal(size=texts)  # of the texts, whose mean has the error 0.1
        own = rng.normal(size=(2, 10)) * (10 / 2) ** 0.5 * 0.1  # a gap of seeds whose error is 0.1 too
        shift = float(apart.mean())
        found = seeds.gap(own[0] + shift, own[1], further=seeds.Further(float(apart.std(ddof=1)) / texts**0.5, texts - 1))
        false += found.p < 0.05
    assert 0.02 < false / trials < 0.09
