from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.contracts import check_pair_laws, check_sampler
from tests.samplers.enumerated import CASES, MASK, Case, run, stay
from tests.samplers.watched import CHAIN, Watched, assert_law, blank, oracle, pair_law
from textdiff.oracle import Markov, Oracle
from textdiff.processes.base import TokenProcess
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.rates import Analytic, Euler, Scores, ScoreSampler, TauLeaping, noise_and_rate, tweedie
from textdiff.vocab import Vocab

ROWS = 40_000
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: type(c.process).__name__)
VOCAB = Vocab(size=4, tokens=4, mask_id=MASK)


def first(case: Case) -> float:
    """Where the signal is 1e-4."""
    return float(case.process.bind(VOCAB).time_of(torch.tensor(1e-4, dtype=torch.float64)))


def rate_table(case: Case, t: float, s: float, chance: Callable[[Tensor], Tensor]) -> Tensor:
    """A jump with probability chance(total rate * (t - s)), to a token in proportion to its rate w_t(z) p(j) / p(z)."""
    smoothed, jumps, total = case.smoothed(t), torch.zeros_like(stay()), torch.zeros(4, 4, 2, dtype=torch.float64)
    for y in range(4):
        for z in range(4):
            for column, own in ((0, y), (1, z)):
                if float(smoothed[own, y, z, column]) > 0:
                    jumps[:, y, z, column] = case.rate(t)[own] * smoothed[:, y, z, column] / smoothed[own, y, z, column]
                    jumps[own, y, z, column] = 0
                    total[y, z, column] = jumps[:, y, z, column].sum()
    leaves = chance(total * (t - s))
    return leaves * jumps / total.clamp_min(1e-300) + (1 - leaves) * stay()


def rate_law(case: Case, steps: int, chance: Callable[[Tensor], Tensor]) -> Tensor:
    times = torch.linspace(first(case), 0, steps + 1, dtype=torch.float64).tolist()
    tables = [rate_table(case, t, s, chance) for t, s in pairwise(times[:-1])]
    return run(case.prior(), [*tables, case.reverse(times[-2], 0.0)])


@EACH
@pytest.mark.parametrize("steps", [1, 3])
def test_analytic_steps_have_the_law_of_ancestral_sampling(case: Case, steps: int) -> None:
    """Tweedie's formula on exact scores is Bayes' rule, whatever the noise."""
    times = torch.linspace(first(case), 0, steps + 1, dtype=torch.float64).tolist()
    exact = run(case.prior(), [case.reverse(t, s) for t, s in pairwise(times)])
    assert_law(Analytic(steps).sample(case.oracle, blank(ROWS, 2), Rng(steps, 0, torch.arange(ROWS))), exact)


@EACH
def test_the_law_of_few_euler_steps_is_the_enumerated_one(case: Case) -> None:
    exact = rate_law(case, 6, lambda expected: expected.clamp_max(1))
    assert_law(Euler(6).sample(case.oracle, blank(ROWS, 2), Rng(0, 0, torch.arange(ROWS))), exact)


@EACH
def test_the_law_of_few_leaps_is_the_enumerated_one(case: Case) -> None:
    exact = rate_law(case, 6, lambda expected: 1 - (-expected).exp())
    assert_law(TauLeaping(6).sample(case.oracle, blank(ROWS, 2), Rng(0, 0, torch.arange(ROWS))), exact)


def test_the_last_of_poisson_many_jumps_is_what_a_leap_draws() -> None:
    """Counts for every token drawn one by one, their jumps in random order: the last one decides."""
    expected, repetitions = torch.tensor([0.7, 0.1, 0.4], dtype=torch.float64), 40_000
    counts = torch.poisson(expected.expand(repetitions, 3), generator=torch.Generator().manual_seed(0))
    last = torch.rand(repetitions, 3, generator=torch.Generator().manual_seed(1)) ** (1 / counts)  # the latest of as many uniform times
    went = torch.where(counts.sum(1) > 0, last.nan_to_num(0.0).masked_fill(counts == 0, -1).argmax(1), 3)
    share = torch.bincount(went, minlength=4) / repetitions
    total = expected.sum()
    exact = torch.cat([(1 - (-total).exp()) * expected / total, (-total).exp()[None]])
    assert bool(((share - exact).abs() < 4.5 * (exact / repetitions).sqrt()).all())


@EACH
def test_noise_and_rates_are_those_of_the_process(case: Case) -> None:
    like = torch.zeros(1, 4)
    for t in (0.1, 0.5, 0.9):
        noise, rate = noise_and_rate(case.process.bind(VOCAB), torch.tensor(t, dtype=torch.float64), like)
        torch.testing.assert_close(noise, case.noise(t))
        torch.testing.assert_close(rate, case.rate(t), rtol=1e-6, atol=1e-9)


@EACH
def test_errors_fall_with_the_steps(case: Case) -> None:
    for chance in (lambda expected: expected.clamp_max(1), lambda expected: 1 - (-expected).exp()):
        far, near = (float((rate_law(case, steps, chance) - pair_law()).abs().sum()) for steps in (20, 200))
        assert near < 0.25 * far


@pytest.mark.parametrize("absorbing", [False, True])
def test_inconsistent_scores_are_cut_at_zero_as_by_matrix_exponentials(absorbing: bool) -> None:
    """SEDD's analytic step from its rate matrix Q: p_j in proportion to (exp(-d Q) score)_j * exp(d Q)[j to z], cut at 0."""
    process: TokenProcess = Masked().bind(VOCAB) if absorbing else Uniform(every_id=True).bind(VOCAB)
    t, s = (torch.tensor(time, dtype=torch.float64) for time in (0.6, 0.45))
    d = float((process.alpha(s) / process.alpha(t)).log())
    eye = torch.eye(4, dtype=torch.float64)
    into = eye[MASK].expand(4, 4) if absorbing else torch.full((4, 4), 0.25, dtype=torch.float64)
    generator, rows, cut = torch.Generator().manual_seed(0), 20_000, 0
    for z in (MASK,) if absorbing else range(4):
        for _ in range(4):
            score = torch.exp(2 * torch.randn(4, dtype=torch.float64, generator=generator)).index_fill(0, torch.tensor([z]), 1.0)
            before = torch.linalg.matrix_exp(-d * (into - eye)).T @ score
            exact = before.clamp_min(0) * torch.linalg.matrix_exp(d * (into - eye))[:, z]
            cut += int((before < 0).any())
            exact = exact / exact.sum()
            uniform = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
            scores = Scores(score.log().expand(rows, 4), torch.full((rows,), z), uniform, uniform)
            share = torch.bincount(tweedie(process, scores, t, s), minlength=4) / rows
            assert float((share - exact).abs().max()) < 2 / rows
    assert cut > 0


@pytest.mark.parametrize("process", [Masked(), Hybrid(share=0.3)], ids=["masked", "hybrid"])
def test_no_mask_is_left_whatever_the_scores(process: TokenProcess) -> None:
    scores = Scores(torch.zeros(5, 4), torch.full((5,), MASK), torch.rand(5, dtype=torch.float64), torch.rand(5, dtype=torch.float64))
    end = torch.zeros((), dtype=torch.float64)
    assert bool((tweedie(process.bind(VOCAB), scores, end + 0.01, end) < MASK).all())


@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid(share=0.3)], ids=["masked", "uniform", "hybrid"])
@pytest.mark.parametrize("sampler", [Analytic(100), Euler(200), TauLeaping(200)], ids=lambda s: type(s).__name__)
def test_keeps_the_contract(sampler: ScoreSampler, process: TokenProcess) -> None:
    check_sampler(sampler, process, rows=500)


def test_rows_that_can_change_no_more_are_not_run_and_a_known_row_costs_nothing() -> None:
    watched = Watched(oracle(CHAIN))
    canvases = list(Euler(10).trajectory(watched, blank(6, 7), Rng(3, 0, torch.arange(6))))
    assert int(canvases[-1].nfe.sum()) == sum(len(call.xt) for call in watched.calls)
    for a, b in pairwise(canvases):
        assert torch.equal(b.nfe - a.nfe, (a.x == CHAIN.states).any(1).long())
    for call in watched.calls:
        assert all(torch.equal(where, call.xt == CHAIN.states) or not bool(where.any()) for where in call.asked)


def test_many_positions_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = blank(30, 7)
    whole = Analytic(5).sample(oracle(CHAIN), batch, Rng(0, 0, batch.sample_id))
    monkeypatch.setattr("textdiff.samplers.rates.chunk_rows", lambda *_: 80)
    assert torch.equal(Analytic(5).sample(oracle(CHAIN), batch, Rng(0, 0, batch.sample_id)), whole)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "process"),
    [(Analytic(1000), Hybrid(share=0.3)), (Euler(1000), Masked()), (TauLeaping(1000), Uniform())],
    ids=["analytic-hybrid", "euler-masked", "leaping-uniform"],
)
def test_long_source_of_sixteen_states_is_reproduced_as_closely_as_true_samples_do(sampler: ScoreSampler, process: TokenProcess) -> None:
    source, ids = Markov.random(16, 64, seed=3), torch.arange(500)
    samples = sampler.sample(Oracle.of(source, process), blank(500, 64), Rng(0, 0, ids))
    check_pair_laws(samples, source)


class Unknown(TokenProcess):
    """Noise of which nothing is known."""


def test_noise_without_rates_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the jump rates of Unknown are not known: use Ancestral$"):
        noise_and_rate(Unknown(), torch.tensor(0.5), torch.zeros(1, 4))
