from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.contracts import check_pair_laws, check_sampler
from tests.samplers.enumerated import CASES, HYBRID, MASKED, UNIFORM, Case, moved, stay
from tests.samplers.watched import CHAIN, Watched, assert_law, blank, oracle, pair_law
from textdiff.batch import Batch
from textdiff.oracle import Markov, Oracle
from textdiff.processes.base import TokenProcess
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.corrector import Corrected, Gibbs, LeastConfident, RandomPositions

ROWS = 40_000
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: type(c.process).__name__)


def one_redrawn(case: Case, s: float, column: int) -> Tensor:
    """The table that redraws one token given the other."""
    table = stay()
    table[..., column] = case.smoothed(s)[..., column]
    return table


def gibbs(case: Case, law: Tensor, s: float) -> Tensor:
    return (moved(law, one_redrawn(case, s, 0)) + moved(law, one_redrawn(case, s, 1))) / 2


def both(case: Case, law: Tensor, s: float) -> Tensor:
    if case is MASKED:  # both are hidden, so neither tells the network of the other
        product = pair_law().sum(1)[:, None] * pair_law().sum(0)
        q = case.truth.forward(s)
        return q.T @ product @ q
    return moved(law, case.smoothed(s))


def least(case: Case, law: Tensor, s: float) -> Tensor:
    """The token that is less probable given the other, the first of equals."""
    smoothed, state = case.smoothed(s), torch.arange(4)
    first_own = smoothed[state[:, None], state[:, None], state, 0]  # of the pair (y, z) in row y and column z
    second = smoothed[state, state[:, None], state, 1] < first_own
    return moved(law.masked_fill(second, 0), one_redrawn(case, s, 0)) + moved(law.masked_fill(~second, 0), one_redrawn(case, s, 1))


def corrected_law(case: Case, steps: int, corrections: int, correct: object) -> Tensor:
    law = case.prior()
    for i in range(steps, 0, -1):
        law = moved(law, case.reverse(i / steps, (i - 1) / steps))
        for _ in range(corrections if i > 1 else 0):
            law = correct(case, law, (i - 1) / steps)  # type: ignore[operator]
    return law[:3, :3]


@EACH
def test_the_law_of_few_steps_is_the_enumerated_one(case: Case) -> None:
    exact = corrected_law(case, 3, 2, gibbs)
    assert float((exact - corrected_law(case, 3, 0, gibbs)).abs().sum()) > 0.02
    assert_law(Gibbs(3, corrections=2).sample(case.oracle, blank(ROWS, 2), Rng(0, 0, torch.arange(ROWS))), exact)


@EACH
def test_two_tokens_redrawn_at_once_do_not_see_each_other(case: Case) -> None:
    exact = corrected_law(case, 3, 1, both)
    assert_law(RandomPositions(3, positions=2).sample(case.oracle, blank(ROWS, 2), Rng(1, 0, torch.arange(ROWS))), exact)


@pytest.mark.parametrize("case", [UNIFORM, HYBRID], ids=["uniform", "hybrid"])
def test_the_least_probable_token_is_redrawn(case: Case) -> None:
    exact = corrected_law(case, 3, 1, least)
    assert float((exact - corrected_law(case, 3, 1, gibbs)).abs().sum()) > 0.005
    assert_law(LeastConfident(3, positions=1).sample(case.oracle, blank(ROWS, 2), Rng(2, 0, torch.arange(ROWS))), exact)


@EACH
def test_one_random_token_keeps_the_noisy_law_and_other_choices_do_not(case: Case) -> None:
    for s in (0.2, 0.7):
        law = case.noisy_law(s)
        torch.testing.assert_close(gibbs(case, law, s), law)
        assert float((both(case, law, s) - law).abs().sum()) > 1e-3
        if case is not MASKED:
            assert float((least(case, law, s) - law).abs().sum()) > 1e-3
    assert (Gibbs.law, RandomPositions.law, LeastConfident.law) == ("limit", "approximate", "approximate")


@EACH
def test_corrections_mend_what_one_large_step_got_wrong(case: Case) -> None:
    """A quarter of it with one, nearly all with many."""
    law = moved(case.prior(), case.reverse(1.0, 0.2))
    errors = []
    for _ in range(20):
        errors.append(float((law - case.noisy_law(0.2)).abs().sum()))
        law = gibbs(case, law, 0.2)
    assert errors[1] < 0.75 * errors[0]
    assert errors[-1] < 0.05 * errors[0]


@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid(share=0.3)], ids=["masked", "uniform", "hybrid"])
def test_keeps_the_contract(process: TokenProcess) -> None:
    check_sampler(Gibbs(60), process, rows=1000)
    check_sampler(RandomPositions(6, positions=3), process)
    if not isinstance(process, Masked):
        check_sampler(LeastConfident(6, positions=3), process)


@pytest.mark.parametrize("sampler", [Gibbs(8, corrections=3), RandomPositions(8, positions=3)], ids=lambda s: type(s).__name__)
def test_a_masked_network_is_never_asked_about_a_token_that_it_sees(sampler: Corrected) -> None:
    watched = Watched(oracle(CHAIN))
    canvases = list(sampler.trajectory(watched, blank(20, 7), Rng(0, 0, torch.arange(20))))
    for call in watched.calls:
        assert all(bool((call.xt[where] == CHAIN.states).all()) for where in call.asked)
    assert any(bool(((a.x < CHAIN.states) & (b.x == CHAIN.states)).any()) for a, b in pairwise(canvases))
    assert all((a.t, 1) >= (b.t, 0) for a, b in pairwise(canvases))


@EACH
def test_calls_are_counted_and_every_level_between_is_corrected(case: Case) -> None:
    watched = Watched(Oracle.of(CHAIN, case.process))
    canvases = list(RandomPositions(4, 3, positions=7).trajectory(watched, blank(5, 7), Rng(0, 0, torch.arange(5))))
    assert [canvas.t for canvas in canvases] == [1.0, *[0.75] * 4, *[0.5] * 4, *[0.25] * 4, 0.0]
    assert int(canvases[-1].nfe.sum()) == sum(len(call.xt) for call in watched.calls)
    assert bool((canvases[-1].nfe <= 4 + 3 * 3).all())


@EACH
def test_known_tokens_are_never_redrawn(case: Case) -> None:
    target = torch.arange(7).expand(100, 7) % 2 == 0
    tokens = CHAIN.sample(100, Rng(0, 0, torch.arange(100)))
    batch = Batch.of(tokens, target=target)
    for canvas in RandomPositions(5, positions=20).trajectory(Oracle.of(CHAIN, case.process), batch, Rng(1, 0, batch.sample_id)):
        assert torch.equal(canvas.x[~target], tokens[~target])


@pytest.mark.slow
@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid(share=0.3)], ids=["masked", "uniform", "hybrid"])
def test_long_source_of_sixteen_states_is_reproduced_as_closely_as_true_samples_do(process: TokenProcess) -> None:
    source, ids = Markov.random(16, 64, seed=3), torch.arange(2000)
    samples = Gibbs(1000).sample(Oracle.of(source, process), blank(2000, 64), Rng(0, 0, ids))
    check_pair_laws(samples, source)


def test_what_it_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^corrections is 0, expected 1 or more at each level: without any, use Ancestral$"):
        Gibbs(corrections=0)
    with pytest.raises(ValueError, match=r"^positions is 0, expected 1 or more tokens to redraw$"):
        RandomPositions(positions=0)
    with pytest.raises(ValueError, match=r"^LeastConfident samples a Interpolating process and the model's is Masked"):
        LeastConfident().sample(oracle(CHAIN), blank(1, 7), Rng(0, 0, torch.arange(1)))
