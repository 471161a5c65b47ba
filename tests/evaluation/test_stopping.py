import itertools
import math

import numpy as np
import pytest

from textdiff.evaluation.stopping import FEWEST, MOST_ROUNDS, Errors, looks, outcome


def simulated(generator: np.random.Generator, texts: int, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Nats and tokens of texts whose cost per token is normal around 3."""
    tokens = generator.integers(50, 400, texts).astype(float)
    return generator.normal(3, spread, texts) * tokens, tokens


def test_the_error_is_looked_at_when_the_texts_have_grown_by_a_quarter() -> None:
    assert looks(1000, None) == [1000]
    found = looks(1000, 0.01)
    assert (found[:3], found[-1]) == ([30, 38, 48], 1000)
    assert all(later <= math.ceil(1.25 * earlier) for earlier, later in itertools.pairwise(found))
    assert (looks(30, 0.01), looks(31, 0.01), looks(5, 0.01)) == ([30], [30, 31], [5])


def test_the_whole_error_is_the_spread_of_the_mean_over_repetitions() -> None:
    """Of texts drawn anew, each with its own noise of the draws: the spread of many means, which needs no formula."""
    generator, means, errors = np.random.default_rng(0), [], []
    for _ in range(2000):
        nats, tokens = simulated(generator, 50, 0.5)
        drawn = nats + generator.normal(0, 100, (3, 50))
        means.append(drawn.mean(0).sum() / tokens.sum())
        errors.append(Errors.of(drawn, tokens).total)
    assert np.mean(errors) == pytest.approx(np.std(means), rel=0.05)


def test_the_error_of_the_draws_is_the_spread_of_the_mean_over_noise_on_the_same_texts() -> None:
    generator = np.random.default_rng(1)
    nats, tokens = simulated(generator, 50, 0.5)
    spread = generator.uniform(20, 200, 50)
    drawn = nats + spread * generator.normal(0, 1, (2000, 4, 50))
    errors = [Errors.of(rounds, tokens) for rounds in drawn]
    of_draws = math.sqrt(np.mean([error.of_draws**2 for error in errors]))
    assert of_draws == pytest.approx(np.std(drawn.mean(1).sum(1) / tokens.sum()), rel=0.05)
    doubts, truth = [error.doubt for error in errors], np.std([error.total**2 - error.of_draws**2 for error in errors])
    assert truth <= np.mean(doubts) <= 1.2 * truth  # noise of unequal variance is squared: a little cautious
    without_noise = Errors.of(nats[None], tokens, exact=True)
    assert without_noise == (without_noise.total, 0.0, 0.0)
    assert math.sqrt(np.mean([error.total**2 - error.of_draws**2 for error in errors])) == pytest.approx(without_noise.total, rel=0.05)


def test_what_is_unknown_is_nan() -> None:
    nats, tokens = simulated(np.random.default_rng(2), 4, 0.5)
    assert math.isnan(Errors.of(nats[None], tokens).of_draws)
    assert math.isnan(Errors.of(nats[None, :1], tokens[:1], exact=True).total)


def test_the_outcome_says_what_keeps_the_error_up() -> None:
    one_round, texts = math.nan, 100

    def said(errors: Errors, scored: int = texts, rounds: int = 2, independent: int = 30) -> str:
        return outcome(0.1, errors, scored, texts, rounds, independent)

    assert said(Errors(0.09, 0.0), 38) == "the standard error 0.09 meets the target 0.1 with 38 of 100 texts"
    assert said(Errors(0.11, 0.0), 38) == ""  # more texts
    assert said(Errors(0.09, 0.0), 38, independent=29) == ""  # of too few documents
    assert said(Errors(0.09, 0.0), independent=29) == "the standard error 0.09 meets the target 0.1 with 100 of 100 texts"
    assert said(Errors(0.11, one_round, math.nan), rounds=1) == ""  # another round, to know the part of the draws
    assert said(Errors(0.11, 0.05)) == ""  # another round: sqrt(0.11^2 - 0.05^2) is 0.098
    assert said(Errors(0.11, 0.04, 0.0003)) == ""  # another round: 0.0105 is hardly above 0.01
    alone = "the spread between texts alone, 0.1, is above it, give more text"
    assert said(Errors(0.11, 0.04)) == f"the standard error 0.11 misses the target 0.1: {alone}"
    exact = "the spread between texts is above it, give more text"
    assert said(Errors(0.11, 0.0), rounds=1) == f"the standard error 0.11 misses the target 0.1: {exact}"
    assert "after 64 rounds of draws: raise draws" in said(Errors(0.11, 0.05), rounds=MOST_ROUNDS)
    few = "29 texts are too few to know their error, 30 or more are needed: give more text"
    assert outcome(0.1, Errors(0.0, 0.0), FEWEST - 1, FEWEST - 1, 1, FEWEST - 1) == few


def test_intervals_of_stopped_measurements_cover_nearly_as_often_as_they_say() -> None:
    generator, covered, used, trials = np.random.default_rng(3), 0, [], 500
    for _ in range(trials):
        nats, tokens = simulated(generator, 1000, 0.6)
        for count in looks(1000, 0.06):
            errors = Errors.of(nats[None, :count], tokens[:count], exact=True)
            if errors.total <= 0.06:
                break
        covered += abs(nats[:count].sum() / tokens[:count].sum() - 3) <= 1.96 * errors.total
        used.append(count)
    assert 100 < np.mean(used) < 200  # the target is met long before the end
    assert 0.92 <= covered / trials <= 0.97  # binomial error 0.01
