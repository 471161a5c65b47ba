from dataclasses import replace
from pathlib import Path

import pytest

from tests.evaluation.given_costs import MANY, TARGET, given, nats_per_token, stop_after
from textdiff.evaluation.likelihood import EvaluationStopped
from textdiff.evaluation.measuring import measure
from textdiff.evaluation.scoring import Running


def test_a_target_ends_the_measurement_early_on_a_random_part_of_the_texts() -> None:
    every = measure(given(noise=0.1), "x", MANY, replace(TARGET, target_se=None))
    early = measure(given(noise=0.1), "x", MANY, replace(TARGET, target_se=0.09))
    assert (len(early.scores), early.draws) == (30, 2)
    assert early.outcome.endswith("meets the target 0.09 with 30 of 80 texts")
    numbers = [score.text for score in early.scores]
    assert numbers == sorted(numbers) != list(range(30))
    assert set(early.scores) < set(every.scores)
    assert nats_per_token(early) == pytest.approx(nats_per_token(every), abs=4 * 0.09)
    other = measure(given(noise=0.1), "x", MANY, replace(TARGET, target_se=0.09, seed=1))
    assert [score.text for score in other.scores] != numbers


def test_where_texts_run_out_the_bound_is_drawn_until_its_noise_no_longer_matters(tmp_path: Path) -> None:
    rows = 80
    quiet = measure(given(noise=3.0), "x", MANY, TARGET)
    assert quiet.outcome.endswith("with 80 of 80 texts")
    rounds = quiet.draws // TARGET.draws
    assert rounds > 2
    assert quiet.forwards == rounds * TARGET.draws * rows
    first = measure(given(noise=3.0), "x", MANY, replace(TARGET, target_se=None))
    exact = measure(given(noise=0.0), "x", MANY, replace(TARGET, target_se=None))
    misses = [sum((a.nats - b.nats) ** 2 for a, b in zip(found.scores, exact.scores, strict=True)) for found in (first, quiet)]
    assert misses[1] < 2 * misses[0] / rounds  # the noise of the rounds is independent
    path = tmp_path / "x.jsonl"
    for batches in (3, 11, 20):
        with pytest.raises(EvaluationStopped):
            measure(given(noise=3.0), "x", MANY, TARGET, path, should_stop=stop_after(batches))
    assert measure(given(noise=3.0), "x", MANY, TARGET, path) == quiet
    assert measure(given(noise=3.0), "x", MANY, TARGET, path) == quiet


def test_a_target_below_the_spread_between_texts_is_given_up_and_said() -> None:
    bound = measure(given(noise=0.5), "x", MANY, replace(TARGET, target_se=0.01))
    assert bound.outcome.endswith("is above it, give more text")
    assert "the spread between texts alone, " in bound.outcome
    assert bound.draws == 2 * TARGET.draws  # a second round tells what the draws do, a third would help nothing
    exact = measure(given(nll_is_bound=False), "x", MANY, replace(TARGET, target_se=0.01))
    assert exact.outcome.endswith("the spread between texts is above it, give more text")
    assert (exact.draws, len(exact.scores)) == (1, 80)
    few = measure(given(noise=0.0), "x", MANY._replace(texts=MANY.texts[:9]), replace(TARGET, target_se=100.0))
    assert few.outcome == "9 texts are too few to know their error, 30 or more are needed: give more text"


def test_passages_of_one_document_are_no_independent_texts() -> None:
    """Forty texts, each given six times: as passages of a document they say no more than once, and an early end takes 30 documents."""
    texts, documents = [text for text in MANY.texts[:40] for _ in range(6)], [i for i in range(40) for _ in range(6)]
    model, every = given(nll_is_bound=False), replace(TARGET, target_se=1e-9)
    told: dict[str, list[Running]] = {"once": [], "apart": [], "together": []}
    for name, data in (
        ("once", MANY._replace(texts=MANY.texts[:40])),
        ("apart", MANY._replace(texts=texts)),
        ("together", MANY._replace(texts=texts, documents=documents)),
    ):
        measure(model, "x", data, every, progress=told[name].append)
    once, apart, together = (running[-1].error for running in told.values())
    assert together == pytest.approx(once, rel=1e-12)
    assert apart == pytest.approx(once / 6**0.5, rel=0.02)
    found = measure(model, "x", MANY._replace(texts=texts, documents=documents), replace(every, target_se=1.1 * once))
    assert len({score.document for score in found.scores}) >= 30
    assert len(found.scores) < 240
    assert [score.document for score in found.scores] == [documents[score.text] for score in found.scores]
    few = MANY._replace(texts=texts[:120], documents=documents[:120])
    assert len(measure(model, "x", few, replace(every, target_se=1.0)).scores) == 120
