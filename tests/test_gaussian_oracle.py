import itertools
import math

import pytest
import torch
from torch import Tensor

from tests.contracts import TABLE
from textdiff.batch import Batch, Clean, Example, collate
from textdiff.log_snr import Gumbel, LinearLogSNR, Sqrt
from textdiff.oracle import GaussianOracle, Markov, mixed
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.schedules import CosineSquared

SMALL = Markov(torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), Markov.random(3, 4, seed=2).transition, length=4)
PATHS = torch.tensor(list(itertools.product(range(3), repeat=4)))
PROCESS = Gaussian(LinearLogSNR(-9, 9))
ORACLE = GaussianOracle(SMALL, PROCESS, TABLE[:3] * torch.tensor([[1.0], [0.6], [1.3]], dtype=torch.float64))  # of unequal norms


def log_joint(xt: Tensor, t: Tensor) -> Tensor:
    """log p(path) + log N(xt; a E(path), s^2 I) of each of the 81 paths, (B, 81)."""
    a, s = ORACLE.process.levels(t)
    residual = xt[:, None] - a[:, None] * ORACLE.table[PATHS]
    width = xt[0].numel()
    return (
        SMALL.log_prob(PATHS) - residual.square().sum((-2, -1)) / (2 * s[:, 0] ** 2) - width * (s[:, 0].log() + math.log(2 * math.pi) / 2)
    )


def noisy(rows: int, time: float) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens of the source, the same under noise, and the times."""
    rng, t = Rng(0, 0, torch.arange(rows)), torch.full((rows,), time, dtype=torch.float64)
    tokens = SMALL.sample(rows, rng)
    return tokens, PROCESS.corrupt(ORACLE.table[tokens], t, rng), t


@pytest.mark.parametrize("time", [0.05, 0.4, 0.5, 0.6, 0.95])
def test_beliefs_are_the_posteriors_of_enumeration(time: float) -> None:
    tokens, xt, t = noisy(30, time)
    posterior = log_joint(xt, t).softmax(1)
    exact = torch.stack([posterior @ (v == PATHS).double() for v in range(3)], dim=-1)
    belief = ORACLE.predictor(Batch.of(tokens))(xt, t)
    torch.testing.assert_close(belief.logits().exp(), exact, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(belief.state(), exact @ ORACLE.table, rtol=1e-9, atol=1e-12)


def test_known_tokens_are_certain_and_speak_for_the_rest() -> None:
    tokens, xt, t = noisy(30, 0.5)
    target = torch.tensor([True, False, True, True]).expand(30, 4)
    known = (PATHS[:, 1] == tokens[:, 1, None]).double().log()  # (B, 81)
    posterior = (log_joint(xt, t) + known).softmax(1)
    exact = torch.stack([posterior @ (v == PATHS).double() for v in range(3)], dim=-1)
    belief = ORACLE.predictor(Batch.of(tokens, target=target))(xt, t).logits().exp()
    torch.testing.assert_close(belief, exact, rtol=1e-9, atol=1e-12)
    assert bool((belief[:, 1].gather(1, tokens[:, 1:2]) == 1).all())


@pytest.mark.parametrize("time", [0.2, 0.5, 0.9])
def test_the_score_is_the_gradient_of_the_log_density_of_the_mixture(time: float) -> None:
    tokens, xt, t = noisy(30, time)
    x = xt.clone().requires_grad_()
    (exact,) = torch.autograd.grad(log_joint(x, t).logsumexp(1).sum(), x)
    x0 = ORACLE.predictor(Batch.of(tokens))(xt, t).state()
    torch.testing.assert_close(PROCESS.score(x0, xt, t), exact, rtol=1e-9, atol=1e-9)


def test_padding_and_other_rows_do_not_change_a_belief() -> None:
    lengths = (2, 4, 1)
    batch = collate([Example([0] * n, [True] * n) for n in lengths], pad_id=1)
    _, xt, t = noisy(3, 0.5)
    together = ORACLE.predictor(batch)(xt, t).logits()
    for i, n in enumerate(lengths):
        alone = ORACLE.predictor(Batch.of(batch.tokens[i : i + 1, :n]))(xt[i : i + 1, :n], t[:1]).logits()
        torch.testing.assert_close(alone[0], together[i, :n], rtol=1e-12, atol=1e-12)
    index = torch.tensor([2, 0])
    torch.testing.assert_close(ORACLE.predictor(batch).rows(index)(xt[index], t[index]).logits(), together[index], rtol=1e-12, atol=0)


@pytest.mark.parametrize("gamma", [-33.0, -15.0, 0.0, 30.0, 60.0])
def test_beliefs_are_numbers_at_every_noise_level(gamma: float) -> None:
    """500 positions: at next to no noise the tokens are read off, at next to no signal their own laws are left."""
    source = Markov.random(16, 500, seed=0)
    rng = Rng(0, 0, torch.arange(2))
    table = rng.normal("table", (16, 8))[0]
    oracle = GaussianOracle(source, Gaussian(LinearLogSNR(-34.0, 70.0)), table)
    t = oracle.process.time_of(torch.sigmoid(torch.tensor([-gamma] * 2, dtype=torch.float64)))
    tokens = source.sample(2, rng)
    belief = oracle.predictor(Batch.of(tokens))(oracle.process.corrupt(table[tokens], t, rng), t).logits().exp()
    torch.testing.assert_close(belief.sum(-1), torch.ones(2, 500, dtype=torch.float64))
    if gamma < 0:
        assert torch.equal(belief.argmax(-1), tokens)
    if gamma >= 30:
        torch.testing.assert_close(belief, source.laws().expand(2, -1, -1), rtol=1e-4, atol=1e-6)


def test_the_canvas_are_the_rows_of_the_tokens_and_decoding_undoes_it() -> None:
    tokens = SMALL.sample(20, Rng(0, 0, torch.arange(20)))
    state, target = ORACLE.canvas(Batch.of(tokens))
    assert torch.equal(state, ORACLE.table[tokens])
    assert bool(target.all())
    assert torch.equal(ORACLE.decode(state + 0.2 * torch.ones(3)), tokens)


def test_a_mixed_oracle_is_that_share_of_the_uniform_law() -> None:
    tokens, xt, t = noisy(5, 0.5)
    exact, wrong = (oracle.predictor(Batch.of(tokens))(xt, t).logits().exp() for oracle in (ORACLE, mixed(ORACLE, 0.1)))
    torch.testing.assert_close(wrong, 0.9 * exact + 0.1 / 3)


def bounds(oracle: GaussianOracle, x: Tensor, draws: int) -> Tensor:
    """The bound of each row (B,) nats, stratified over the draws of a row."""
    rows, total = len(x), torch.zeros(len(x), dtype=torch.float64)
    clean, where, process = Clean(x, oracle.table[x]), torch.ones_like(x, dtype=torch.bool), oracle.process
    predictor = oracle.predictor(Batch.of(x))
    for k in range(draws):
        rng, stratum = Rng(0, k, torch.arange(rows)), torch.tensor([k, draws]).expand(rows, 2)
        noised = process.measure(process, clean.x, where, stratum, rng)
        pred = predictor(noised.xt, noised.t)
        total += (process.nelbo_at(pred, clean, noised.xt, noised.t, where) * noised.weight[:, None]).sum(1)
    return total / draws + process.boundary(predictor, clean, where, Rng(0, draws, torch.arange(rows)), process.t_min).sum(1)


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("process", "seed", "draws"),
    [
        (Gaussian(LinearLogSNR(-5, 9)), 0, 16),
        *(pytest.param(Gaussian(LinearLogSNR(-5, 9)), seed, 48, marks=pytest.mark.slow) for seed in (1, 2)),
        *(
            pytest.param(process, 0, 48, marks=pytest.mark.slow)
            for process in (Gaussian(Sqrt(), t_min=1e-3), Gaussian(CosineSquared(), t_min=1e-3), Gaussian(Gumbel(low=-5)))
        ),
    ],
    ids=str,
)
def test_the_bound_of_the_exact_denoiser_is_the_entropy_and_a_wrong_one_is_found_out(process: Gaussian, seed: int, draws: int) -> None:
    """16 states, 64 positions: the mean bound is H within 3 standard errors of at most 0.5 %, and what the prior costs above it; paired
    with the exact -log p(x) of the same sequences too. A belief mixed with 2 % of the uniform law costs more on the same noise."""
    source = Markov.random(16, 64, seed=seed)
    table = torch.nn.functional.normalize(Rng(3, 0, torch.zeros(1, dtype=torch.long)).normal("table", (16, 8))[0], dim=-1) * 8**0.5
    oracle = GaussianOracle(source, process.measured(), table)
    x = source.sample(900, Rng(seed, 0, torch.arange(900)))
    exact = bounds(oracle, x, draws)
    prior = float(oracle.process.prior_divergence(table[x]).sum(1).mean())

    assert prior < 0.005 * source.entropy()
    for gap in (exact - source.entropy(), exact + source.log_prob(x)):
        assert standard_error(gap) < 0.005 * source.entropy()
        assert -3 * standard_error(gap) < float(gap.mean()) < 3 * standard_error(gap) + prior
    excess = bounds(mixed(oracle, 0.02), x[:200], draws) - exact[:200]
    assert float(excess.mean()) > 3 * standard_error(excess)
