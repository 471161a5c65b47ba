"""What every schedule, process and sampler owes, checked against enumeration over three states and two positions, or a Markov source.

A process is described to its contract by its noise b_t alone: q(xt = z | x0 = x) = alpha_t 1[z = x] + b_t[z], alpha_t = 1 - sum b_t.
States, posteriors, reverse steps and bounds follow from it here by brute force, independently of the code under test.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy
import torch
from torch import Tensor

from textdiff.batch import Batch, Clean, Example, collate
from textdiff.oracle import GaussianOracle, Markov, Oracle, total_variation
from textdiff.prediction import TablePrediction
from textdiff.processes.base import Process, TokenProcess
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.base import Sampler
from textdiff.schedules import Schedule

STATES = 3
# The joint law of two dependent tokens, every cell positive: entropy 1.80 nats, mutual information 0.31.
DATA = torch.tensor([[0.30, 0.05, 0.02], [0.04, 0.25, 0.03], [0.01, 0.08, 0.22]], dtype=torch.float64)
OTHER = torch.tensor([[0.05, 0.20, 0.10], [0.15, 0.05, 0.10], [0.10, 0.15, 0.10]], dtype=torch.float64)
CONSTANT = torch.full((STATES, STATES), 1 / STATES**2, dtype=torch.float64)


def check_schedule(schedule: Schedule, first: float = 1.0, last: float = 0.0) -> None:
    """alpha falls from `first` to about `last`, its derivative is that of autograd and of finite differences, its inverse is one; all
    float64."""
    t = torch.linspace(0.02, 0.98, 49, dtype=torch.float64, requires_grad=True)
    alpha = schedule.alpha(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    t, alpha = t.detach(), alpha.detach()
    torch.testing.assert_close(schedule.dalpha(t), slope, rtol=1e-9, atol=1e-15)
    finite = (schedule.alpha(t + 1e-6) - schedule.alpha(t - 1e-6)) / 2e-6
    torch.testing.assert_close(schedule.dalpha(t), finite, rtol=1e-5, atol=1e-8)
    assert bool((alpha.diff() < 0).all())
    assert first - 1e-3 <= float(schedule.alpha(torch.zeros(()))) <= 1
    assert 0 <= float(schedule.alpha(torch.ones(()))) <= last + 2e-3
    torch.testing.assert_close(schedule.inverse(alpha), t, rtol=0, atol=1e-8)
    single = torch.full((2, 3), 0.5)
    for function in (schedule.alpha, schedule.dalpha, schedule.inverse):
        assert function(single).dtype == torch.float64
        assert function(single).shape == single.shape


@dataclass(frozen=True)
class Enumeration:
    """Everything there is to know about two tokens of law `data` under noise `b_t`, when the denoiser believes in `belief`."""

    noise: Callable[[float], Tensor]
    data: Tensor = DATA  # (K, K)
    belief: Tensor = DATA  # (K, K)

    def forward(self, t: float) -> Tensor:
        """q(xt | x0), (K, V)."""
        noise = self.noise(t)
        return (1 - noise.sum()) * torch.eye(STATES, len(noise), dtype=torch.float64) + noise

    def transition(self, t: float, s: float) -> Tensor:
        """q(xt | xs), (V, V)."""
        ratio = (1 - self.noise(t).sum()) / (1 - self.noise(s).sum())
        noise = self.noise(t) - ratio * self.noise(s)
        return ratio * torch.eye(len(noise), dtype=torch.float64) + noise

    def pure(self) -> Tensor:
        """The law of noise, (V,)."""
        return self.noise(1.0) / self.noise(1.0).sum()

    def cells(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """All pairs (x0, xt) that can occur: ids (N, 2) each, and their probability (N,)."""
        q = self.forward(t)
        joint = torch.einsum("ab,ay,bz->abyz", self.data, q, q)
        index = joint.nonzero()
        return index[:, :2], index[:, 2:], joint[tuple(index.T)]

    def prediction(self, xt: Tensor, t: float, dtype: torch.dtype = torch.float64) -> TablePrediction:
        """p(x0_l | the other noisy token) of the believed law: the leave-one-out prediction that the bounds ask for."""
        q = self.forward(t)
        first, second = (self.belief @ q).T, (self.belief.T @ q).T  # (V of the other token, K)
        table = torch.stack([first[xt[:, 1]], second[xt[:, 0]]], dim=1)
        log = (table / table.sum(-1, keepdim=True)).log()
        return TablePrediction(torch.nn.functional.pad(log, (0, q.shape[1] - STATES), value=-torch.inf).to(dtype))

    def reverse(self, t: float, s: float) -> Tensor:
        """p(xs_l = i | xt) of the believed law, Bayes' rule summed over every x0: (V, V of xt, V of xt, 2), i first."""
        qs, qt, step = self.forward(s), self.forward(t), self.transition(t, s)
        first = torch.einsum("ab,ai,iy,bz->iyz", self.belief, qs, step, qt)
        second = torch.einsum("ab,bi,iz,ay->iyz", self.belief, qs, step, qt)
        joint = torch.stack([first, second], dim=-1)
        return joint / joint.sum(0)

    def divergence(self, t: float) -> float:
        """E KL( q(xt | x0) || believed law of xt ): what the bound over [0, t] leaves out; the mutual information if the belief is true."""
        q = self.forward(t)
        x0, xt, probability = self.cells(t)
        model = q.T @ self.belief @ q
        ratio = q[x0[:, 0], xt[:, 0]] * q[x0[:, 1], xt[:, 1]] / model[xt[:, 0], xt[:, 1]]
        return float((probability * ratio.log()).sum())

    def nelbo(self, process: Process, t: float, s: float | None = None, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """The process's nats at every cell (N, 2) with the cells' probabilities (N,)."""
        x0, xt, probability = self.cells(t)
        where = torch.ones_like(x0, dtype=torch.bool)
        before = None if s is None else torch.full((len(x0),), s, dtype=torch.float64)
        times = torch.full((len(x0),), t, dtype=torch.float64)
        return process.nelbo_at(self.prediction(xt, t, dtype), Clean(x0, x0), xt, times, where, before), probability

    def integral(self, process: Process, start: float, end: float, nodes: int = 60) -> float:
        """The process's bound over [start, end] by Gauss-Legendre quadrature, summed over both tokens, nats."""
        points, weights = numpy.polynomial.legendre.leggauss(nodes)
        total = 0.0
        for point, weight in zip(points, weights, strict=True):
            nats, probability = self.nelbo(process, float(start + (end - start) * (point + 1) / 2))
            total += float(weight) * (end - start) / 2 * float((nats.sum(1) * probability).sum())
        return total


def check_process(process: Process, noise: Callable[[float], Tensor]) -> None:
    """The contract of a token process bound to ids 0, 1, 2 (data) and perhaps more; `noise(t)` is its b_t (V,) float64."""
    check_enumerated(process, Enumeration(noise))


def check_enumerated(process: Process, truth: Enumeration) -> None:
    """The same for noise that is described by an enumeration of its own."""
    _check_corruption(process, truth)
    _check_step(process, truth)
    _check_bound(process, truth)
    _check_bin(process, truth)
    _check_numerics(process, replace(truth, belief=OTHER))


def _check_frequencies(ids: Tensor, exact: Tensor) -> None:
    """Pairs `ids` (cells, repetitions, 2) follow `exact` (cells, V, V) to five standard errors; what is impossible never occurs."""
    cells, repetitions, _ = ids.shape
    size = exact.shape[-1]
    code = (torch.arange(cells)[:, None] * size + ids[..., 0]) * size + ids[..., 1]
    frequency = torch.bincount(code.flatten(), minlength=exact.numel()).view(exact.shape) / repetitions
    assert bool((frequency[exact < 1e-15] == 0).all())
    slack = 5 * (exact / repetitions).sqrt() + 5 / repetitions
    assert bool(((frequency - exact).abs() <= slack).all()), float(((frequency - exact).abs() / slack).max())


def _check_corruption(process: Process, truth: Enumeration, repetitions: int = 4000) -> None:
    x0 = torch.cartesian_prod(torch.arange(STATES), torch.arange(STATES))
    rows = x0.repeat_interleave(repetitions, 0)
    rng = Rng(0, 0, torch.arange(len(rows)))
    for i, t in enumerate((0.1, 0.5, 0.9)):
        xt = process.corrupt(rows, torch.full((len(rows),), t, dtype=torch.float64), rng.draw(i))
        q = truth.forward(t)
        _check_frequencies(xt.view(len(x0), repetitions, 2), q[x0[:, 0], :, None] * q[x0[:, 1], None, :])
    _check_frequencies(process.prior(rows, rng)[None], (truth.pure()[:, None] * truth.pure())[None])


def _check_step(process: Process, truth: Enumeration, repetitions: int = 4000) -> None:
    """Given each xt, both tokens of xs follow the exact reverse law, independently: so every marginal of law(t) becomes that of law(s)."""
    for i, (t, s) in enumerate(((0.9, 0.6), (0.5, 0.45), (0.3, 0.05))):
        reverse = truth.reverse(t, s)
        xt = torch.unique(truth.cells(t)[1], dim=0)
        rows = xt.repeat_interleave(repetitions, 0)
        times, before = (torch.full((len(rows),), value, dtype=torch.float64) for value in (t, s))
        xs = process.step(truth.prediction(rows, t), rows, times, before, Rng(1, i, torch.arange(len(rows))))
        first, second = reverse[:, xt[:, 0], xt[:, 1]].permute(2, 1, 0)  # (cells, V) each
        _check_frequencies(xs.view(len(xt), repetitions, 2), first[:, :, None] * second[:, None, :])


def _check_bound(process: Process, exact: Enumeration, start: float = 0.05, end: float = 0.95) -> None:
    """Over [start, end] the bound is E KL(q || p) at `start` minus that at `end`, for any consistent belief; on all of [0, 1] it is the
    entropy for the true belief, ln K per token for constant logits, and more than the entropy for any other belief."""
    for belief in (DATA, OTHER, CONSTANT):
        truth = replace(exact, belief=belief)
        bound = truth.integral(process, start, end)
        assert abs(bound - (truth.divergence(start) - truth.divergence(end))) < 1e-7
        if belief is not DATA:
            assert bound > exact.integral(process, start, end) + 1e-3


def _check_bin(process: Process, exact: Enumeration) -> None:
    """At every cell the bin (s, t) is KL( q(xs | xt, x0) || p(xs | xt) )."""
    for belief in (DATA, OTHER):
        truth = replace(exact, belief=belief)
        t, s = 0.6, 0.3
        x0, xt, _ = truth.cells(t)
        posterior = truth.forward(s)[x0] * truth.transition(t, s).T[xt]  # (N, 2, V)
        posterior = posterior / posterior.sum(-1, keepdim=True)
        model = truth.reverse(t, s)[:, xt[:, 0], xt[:, 1]].permute(1, 2, 0)
        kl = (torch.xlogy(posterior, posterior) - torch.xlogy(posterior, model.where(posterior > 0, 1.0))).sum(-1)
        torch.testing.assert_close(truth.nelbo(process, t, s)[0], kl, rtol=1e-9, atol=1e-10)


def _check_numerics(process: Process, truth: Enumeration) -> None:
    """Nats are zero off `where` and the same for t (B,) and (B, L); float32 is near float64; bfloat16 stays finite."""
    x0, xt, _ = truth.cells(0.4)
    where = torch.arange(2 * len(x0)).view(-1, 2) % 3 > 0
    t = torch.full((len(x0),), 0.4, dtype=torch.float64)
    pred, clean = truth.prediction(xt, 0.4), Clean(x0, x0)
    nats = process.nelbo_at(pred, clean, xt, t, where)
    assert bool((nats[~where] == 0).all())
    rounding = {"rtol": 1e-12, "atol": 1e-14}  # vector units round the ends of an array differently
    torch.testing.assert_close(nats, truth.nelbo(process, 0.4)[0].where(where, 0.0), **rounding)
    torch.testing.assert_close(nats, process.nelbo_at(pred, clean, xt, t[:, None].expand(-1, 2), where), **rounding)
    for time in (1e-3, 0.4, 0.999):
        exact = truth.nelbo(process, time)[0]
        single = truth.nelbo(process, time, dtype=torch.float32)[0]
        torch.testing.assert_close(single.double(), exact, rtol=1e-4, atol=1e-4)
        assert bool(truth.nelbo(process, time, dtype=torch.bfloat16)[0].isfinite().all())
    xs = process.step(truth.prediction(xt, 0.4, torch.bfloat16), xt, t, t / 2, Rng(2, 0, torch.arange(len(xt))))
    assert bool(((xs >= 0) & (xs < truth.forward(0.4).shape[1])).all())


# Not stationary: under a stationary law all masked positions tie, and rounding, which depends on the batch, would break the ties.
SOURCE = Markov(torch.tensor([0.7, 0.2, 0.08, 0.02], dtype=torch.float64), Markov.random(4, 8, seed=1).transition, length=8)
# Vectors for its four states, of unit variance and at unequal distances.
TABLE = torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, -1.0], [-1.4, 0.2, 1.0], [-0.5, -0.9, 1.4]], dtype=torch.float64)


def check_sampler(sampler: Sampler, process: TokenProcess | Gaussian, rows: int = 3000) -> None:
    """Known tokens stay, no mask is left, a seed fixes the tokens, a ragged batch equals its rows one by one; and where `law` is
    "exact" or "limit", the oracle's source is reproduced (a limit to 0.5 % of the pair law: give it steps enough)."""
    oracle = Oracle.of(SOURCE, process) if isinstance(process, TokenProcess) else GaussianOracle(SOURCE, process, TABLE)
    _check_canvas(sampler, oracle)
    _check_ragged(sampler, oracle)
    if sampler.law in ("exact", "limit"):
        batch = Batch.of(torch.zeros(rows, SOURCE.length, dtype=torch.long))
        samples = sampler.sample(oracle, batch, Rng(3, 0, batch.sample_id))
        check_reproduced(samples, SOURCE, slack=5e-3 if sampler.law == "limit" else 0.0)


def check_reproduced(samples: Tensor, source: Markov, slack: float = 0.0) -> None:
    """Pair laws at distances 1 and 3, and the mean log-probability, are the source's to five standard errors over sequences."""
    for distance in (1, 3):
        code = samples[:, :-distance] * source.states + samples[:, distance:]
        share = torch.nn.functional.one_hot(code, source.states**2).double().mean(1)  # (N, K * K) of each sequence
        error = (share.mean(0) - source.pair_law(distance).flatten()).abs()
        bound = 5 * share.std(0) / len(samples) ** 0.5 + 5 / samples.numel() + slack
        assert bool((error <= bound).all()), f"distance {distance}: {float((error / bound).max()):.2f} times what chance explains"
    surprise = -source.log_prob(samples)
    bound = 5 * float(surprise.std()) / len(samples) ** 0.5 + slack * source.entropy()
    assert abs(float(surprise.mean()) - source.entropy()) <= bound


def check_pair_laws(samples: Tensor, source: Markov, draws: int = 8) -> None:
    """Pair laws at distances 1, 2 and 8 are as near the source's as those of true samples: 1.2 times their mean total variation over
    `draws` draws of as many, because a single draw varies by a tenth."""
    ids = torch.arange(len(samples))
    true = [source.sample(len(samples), Rng(1 + i, 0, ids)) for i in range(draws)]
    for distance in (1, 2, 8):
        expected = sum(total_variation(draw, source, distance) for draw in true) / draws
        found = total_variation(samples, source, distance)
        print(f"total variation at distance {distance}: {found:.5f}, of true samples {expected:.5f}")
        assert found < 1.2 * expected


def _check_canvas(sampler: Sampler, oracle: Oracle | GaussianOracle) -> None:
    rng = Rng(4, 0, torch.arange(40))
    tokens = oracle.source.sample(40, rng)
    target = rng.uniform("target", tokens.shape[1:]) < 0.6
    target[0] = False  # a row with nothing to generate
    batch = Batch.of(tokens, target=target)
    sampled = sampler.sample(oracle, batch, Rng(5, 0, batch.sample_id))
    assert torch.equal(sampled[~target], tokens[~target])
    assert bool((sampled < oracle.source.states).all())
    assert torch.equal(sampled, sampler.sample(oracle, batch, Rng(5, 0, batch.sample_id)))
    assert torch.equal(batch.tokens, tokens)


def _check_ragged(sampler: Sampler, oracle: Oracle | GaussianOracle) -> None:
    lengths = (8, 3, 5, 1)
    examples = [Example([0] * n, [True] * n) for n in lengths]
    batch = collate(examples, pad_id=0)
    together = sampler.sample(oracle, batch, Rng(6, 0, batch.sample_id))
    for i, example in enumerate(examples):
        single = collate([example], pad_id=0, sample_id=[i])
        assert torch.equal(sampler.sample(oracle, single, Rng(6, 0, single.sample_id))[0], together[i, : lengths[i]])
        assert bool((together[i, lengths[i] :] == 0).all())
