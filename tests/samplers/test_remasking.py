from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from types import FunctionType

import pytest
import torch
from torch import Tensor

from tests.contracts import check_pair_laws, check_sampler
from tests.samplers.enumerated import CASES, HYBRID, MASK, MASKED, UNIFORM, Case, run, stay
from tests.samplers.watched import CHAIN, PAIR, Watched, assert_law, blank, oracle, pair_law
from textdiff.batch import Batch
from textdiff.oracle import Markov, Oracle
from textdiff.processes.base import TokenProcess
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.base import Sampler
from textdiff.samplers.remasking import Capped, ConfidenceBased, ForwardBackward, Loop, Psi, Remasking, Rescaled
from textdiff.schedules import Cosine, Geometric, LogLinear, Schedule

ROWS = 40_000
KAPPA = 0.6
ALL = [Capped(8, 0.3), Rescaled(8, 0.4), ConfidenceBased(8), Loop(8), ForwardBackward(8), Psi(8, KAPPA)]


def name_of(part: object) -> str:
    """The same in every process, so that tests can be shared out among several."""
    if isinstance(part, Case):
        return type(part.process).__name__
    return part.__name__ if isinstance(part, FunctionType) else str(part)


@dataclass(frozen=True)
class Matched(Remasking):
    """The ReMDM that `Psi` is on masks."""

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
        return (1 - KAPPA) * (1 - alpha_s)


def cap(alpha_t: float, alpha_s: float) -> float:
    return min(0.3, 1.0 if alpha_t == 0 else (1 - alpha_s) / alpha_t)


def rescale(alpha_t: float, alpha_s: float) -> float:
    return 0.4 * (1.0 if alpha_t == 0 else min(1.0, (1 - alpha_s) / alpha_t))


def forward_backward(alpha_t: float, alpha_s: float) -> float:
    return 1.0 if alpha_t == 0 else min(1.0, (alpha_s - alpha_t) / alpha_t, (1 - alpha_s) / alpha_t)


def remdm_law(alphas: list[float], sigma: Callable[[float, float], float]) -> Tensor:
    """ReMDM's law over two tokens, step by step, from its definition."""
    tables = []
    for alpha_t, alpha_s in pairwise(alphas):
        sigma_t = sigma(alpha_t, alpha_s)
        table = (1 - sigma_t) * stay()
        table[MASK] += sigma_t
        write = (alpha_s - (1 - sigma_t) * alpha_t) / (1 - alpha_t)
        masked = write * MASKED.belief(1 - alpha_t)
        masked[MASK] += 1 - write
        table[:, MASK, :, 0], table[:, :, MASK, 1] = masked[:, MASK, :, 0], masked[:, :, MASK, 1]
        tables.append(table)
    return run(MASKED.prior(), tables)


def psi_law(case: Case, steps: int, kappa: float) -> Tensor:
    """The mixture of a reverse step and of x0 noised anew."""
    tables = []
    for i in range(steps, 0, -1):
        t, s = i / steps, (i - 1) / steps
        again = torch.einsum("vj,vyzl->jyzl", case.truth.forward(s), case.reverse(t, 0.0)[:3])
        tables.append(kappa * case.reverse(t, s) + (1 - kappa) * again)
    return run(case.prior(), tables)


def drawn(sampler: Sampler, denoiser: Oracle, seed: int = 0, rows: int = ROWS) -> Tensor:
    return sampler.sample(denoiser, blank(rows, 2), Rng(seed, 0, torch.arange(rows)))


@pytest.mark.parametrize(
    ("sampler", "sigma"), [(Capped(4, 0.3), cap), (Rescaled(4, 0.4), rescale), (ForwardBackward(4), forward_backward)], ids=name_of
)
def test_the_law_of_few_steps_is_the_enumerated_one(sampler: Remasking, sigma: Callable[[float, float], float]) -> None:
    alphas = [i / 4 for i in range(5)]
    exact = remdm_law(alphas, sigma)
    assert float((exact - remdm_law(alphas, lambda *_: 0.0)).abs().sum()) > 0.02  # not simply the law of ancestral sampling
    assert_law(drawn(sampler, oracle(PAIR)), exact)


def test_the_law_of_the_loop_is_the_enumerated_one() -> None:
    """At clock 1, .8, .6, .4, .2, 0 with the loop from .6 to .3 the signal is half way to on, on, on, a third of the way on, 1."""
    sampler = Loop(5, eta=0.5, on=0.7, first=0.6, last=0.3)
    times = sampler.times(Masked().bind(PAIR.vocab))
    torch.testing.assert_close(1 - times, torch.tensor([0, 0.35, 0.7, 0.7, 0.8, 1], dtype=torch.float64))
    exact = remdm_law([0, 0.35, 0.7, 0.7, 0.8, 1], lambda t, s: min(0.5, (1 - s) / t) if s == t else 0.0)
    assert_law(drawn(sampler, oracle(PAIR)), exact)


@pytest.mark.parametrize("case", CASES, ids=lambda c: type(c.process).__name__)
@pytest.mark.parametrize("kappa", [0.0, KAPPA, 1.0])
def test_the_law_of_psi_is_the_enumerated_mixture(case: Case, kappa: float) -> None:
    exact = psi_law(case, 3, kappa)
    assert_law(drawn(Psi(3, kappa), case.oracle), exact)


def test_psi_on_masks_is_remdm() -> None:
    """With kappa = 1 - sigma / (1 - alpha_s): equal by enumeration, and both samplers follow the law."""
    exact = psi_law(MASKED, 4, KAPPA)
    torch.testing.assert_close(exact, remdm_law([0, 0.25, 0.5, 0.75, 1], lambda t, s: (1 - KAPPA) * (1 - s)))
    for sampler in (Psi(4, KAPPA), Matched(4)):
        assert_law(drawn(sampler, oracle(PAIR), seed=1), exact)


@pytest.mark.parametrize(
    ("sampler", "case"),
    [(s, MASKED) for s in ALL if not isinstance(s, ConfidenceBased)] + [(Psi(8, KAPPA), UNIFORM), (Psi(8, KAPPA), HYBRID)],
    ids=name_of,
)
def test_each_token_by_itself_follows_the_process_at_every_level(sampler: Sampler, case: Case) -> None:
    """To five standard errors; the exact law of each token never depends on what is drawn beside it."""
    rows = 10_000
    for canvas in sampler.trajectory(case.oracle, blank(rows, 2), Rng(2, 0, torch.arange(rows))):
        for column in range(2):
            exact = case.noisy_law(canvas.t).sum(1 - column)
            share = torch.bincount(canvas.x[:, column], minlength=4) / rows
            assert bool(((share - exact).abs() <= 5 * (exact * (1 - exact) / rows).sqrt() + 1e-12).all())


@pytest.mark.parametrize("schedule", [LogLinear(eps=0.1), Cosine(), Geometric()], ids=str)
@pytest.mark.parametrize("sampler", ALL, ids=lambda s: type(s).__name__)
def test_no_mask_is_left_and_times_fall_under_any_schedule(sampler: Sampler, schedule: Schedule) -> None:
    canvases = list(sampler.trajectory(oracle(CHAIN, schedule), blank(500, 7), Rng(0, 0, torch.arange(500))))
    assert bool((canvases[-1].x < CHAIN.states).all())
    assert (canvases[0].t, canvases[-1].t) == (1.0, 0.0)
    assert all(a.t >= b.t for a, b in pairwise(canvases))


@pytest.mark.parametrize("sampler", [*ALL, Rescaled(8, 1.0)], ids=str)
def test_written_tokens_are_taken_back_and_known_ones_never(sampler: Sampler) -> None:
    target = torch.arange(7).expand(200, 7) % 2 == 0
    tokens = CHAIN.sample(200, Rng(0, 0, torch.arange(200)))
    batch = Batch.of(tokens, target=target)
    canvases = list(sampler.trajectory(oracle(CHAIN), batch, Rng(1, 0, batch.sample_id)))
    assert all(torch.equal(canvas.x[~target], tokens[~target]) for canvas in canvases)
    mask = CHAIN.states
    assert any(bool(((a.x != mask) & (b.x == mask)).any()) for a, b in pairwise(canvases))
    assert all(torch.equal(canvas.settled, ~target) for canvas in canvases[:-1])
    assert bool(canvases[-1].settled.all())


def test_the_least_certain_tokens_are_masked_again_most_often() -> None:
    """The shares are a softmax over what was written; a row with nothing written has none."""
    certainty = torch.tensor([[0.9, 0.1, torch.inf, 0.5], [torch.inf] * 4], dtype=torch.float64)
    alpha_t, alpha_s = (torch.tensor(a, dtype=torch.float64) for a in (0.5, 0.75))
    sigma = ConfidenceBased(eta=0.8).sigma(alpha_t, alpha_s, certainty)
    weight = torch.tensor([-0.9, -0.1, -torch.inf, -0.5], dtype=torch.float64).exp()
    torch.testing.assert_close(sigma[0], 0.8 * 0.5 * weight / weight.sum())
    assert sigma[1].tolist() == [0] * 4


def test_certainty_is_the_probability_a_token_had_when_it_was_written() -> None:
    """A sampler that masks again exactly what was improbable, which the test knows from the calls it watches."""

    @dataclass(frozen=True)
    class Doubtful(Remasking):
        def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
            return (certainty < 0.5).double() * (alpha_s < 1)

    rows, mask = 300, CHAIN.states
    canvases = list(Doubtful(6).trajectory(oracle(CHAIN), blank(rows, 7), Rng(0, 0, torch.arange(rows))))
    predictor = oracle(CHAIN).predictor(blank(rows, 7))
    chance = torch.full((rows, 7), torch.inf, dtype=torch.float64)
    for before, after in list(pairwise(canvases))[:-1]:
        erased = (before.x != mask) & (after.x == mask)
        assert torch.equal(erased, (before.x != mask) & (chance < 0.5))
        belief = predictor(before.x, torch.ones(rows)).table.exp().gather(-1, after.x[..., None])[..., 0]
        chance = torch.where(before.x == mask, belief, chance).masked_fill(after.x == mask, torch.inf)


@pytest.mark.parametrize("sampler", ALL, ids=lambda s: type(s).__name__)
def test_calls_are_counted_row_by_row_and_only_what_is_written_is_projected(sampler: Sampler) -> None:
    watched = Watched(oracle(CHAIN))
    canvases = list(sampler.trajectory(watched, blank(6, 7), Rng(3, 0, torch.arange(6))))
    assert int(canvases[-1].nfe.sum()) == sum(len(call.xt) for call in watched.calls)
    assert len(canvases) == 9
    written = sum(int(((a.x == CHAIN.states) & (b.x < CHAIN.states)).sum()) for a, b in pairwise(canvases))
    assert sum(int(where.sum()) for call in watched.calls for where in call.asked) == written
    for call in watched.calls:
        (where,) = call.asked
        assert bool(where.any(1).all())
        assert bool((call.xt[where] == CHAIN.states).all())


@pytest.mark.parametrize(
    "sampler",
    [Capped(200), Rescaled(200), ConfidenceBased(8), Loop(8), ForwardBackward(200), Psi(200, 0.98)],
    ids=lambda s: type(s).__name__,
)
def test_keeps_the_contract_on_masks(sampler: Sampler) -> None:
    check_sampler(sampler, Masked(), rows=1000)


@pytest.mark.parametrize("process", [Uniform(), Hybrid(share=0.3)], ids=["uniform", "hybrid"])
def test_psi_keeps_the_contract_on_other_noise(process: TokenProcess) -> None:
    check_sampler(Psi(200, 0.98), process, rows=1000)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sampler", "process"),
    [
        (ForwardBackward(1000), Masked()),
        (Capped(1000), Masked()),
        (Psi(1000, 0.99), Masked()),
        (Psi(1000, 0.99), Uniform()),
        (Psi(1000, 0.99), Hybrid(share=0.3)),
    ],
    ids=str,
)
def test_long_source_of_sixteen_states_is_reproduced_as_closely_as_true_samples_do(sampler: Sampler, process: Masked) -> None:
    source, ids = Markov.random(16, 64, seed=3), torch.arange(2000)
    samples = sampler.sample(Oracle.of(source, process), blank(2000, 64), Rng(0, 0, ids))
    check_pair_laws(samples, source)


def error(law: Tensor) -> float:
    return float((law - pair_law()).abs().sum())


def test_laws_converge_where_they_say_so() -> None:
    """By enumeration, 4 times the steps leave a quarter of the error, half of it, or all of it."""

    def remdm(sigma: Callable[[float, float], float], steps: int) -> float:
        return error(remdm_law([i / steps for i in range(steps + 1)], sigma))

    def loop(steps: int) -> float:
        times = Loop(steps).times(Masked().bind(PAIR.vocab))
        return error(remdm_law((1 - times).tolist(), lambda t, s: min(0.3, (1 - s) / t) if t == s else 0.0))

    assert remdm(forward_backward, 640) < 0.27 * remdm(forward_backward, 160)
    assert remdm(cap, 640) < 0.52 * remdm(cap, 160)
    assert remdm(rescale, 640) < 0.52 * remdm(rescale, 160)
    assert loop(640) > 0.95 * loop(160)
    for case in CASES:
        assert error(psi_law(case, 160, KAPPA)) < 0.57 * error(psi_law(case, 40, KAPPA))
    assert {sampler.law for sampler in (Capped, Rescaled, ForwardBackward, Psi)} == {"limit"}
    assert {sampler.law for sampler in (ConfidenceBased, Loop)} == {"approximate"}


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^eta is 1.5, expected a share of the written tokens in \[0, 1\]$"):
        Capped(eta=1.5)
    with pytest.raises(ValueError, match=r"^kappa is -0.1, expected the chance of a reverse step in \[0, 1\]$"):
        Psi(kappa=-0.1)
    with pytest.raises(ValueError, match=r"^on is 0.9, first 0.1 and last 0.5: expected 0 < on < 1 and 0 < last < first < 1$"):
        Loop(first=0.1, last=0.5)
    with pytest.raises(ValueError, match=r"^Capped samples a Masked process and the model's is Uniform: choose a sampler made for it$"):
        Capped().sample(Oracle.of(CHAIN, Uniform()), blank(1, 7), Rng(0, 0, torch.arange(1)))
