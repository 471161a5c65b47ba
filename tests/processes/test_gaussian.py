import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from textdiff.batch import Clean
from textdiff.log_snr import Gumbel, LinearBeta, LinearLogSNR, Shifted, Sqrt
from textdiff.models.reading import Softmax
from textdiff.prediction import TablePrediction
from textdiff.processes.base import Bins
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.schedules import CosineSquared, LogLinear
from textdiff.state_prediction import StatePrediction, TabledState

PROCESSES = [
    Gaussian(),
    Gaussian(LinearLogSNR(-9, 9)),
    Gaussian(Sqrt(), t_min=1e-3),
    Gaussian(CosineSquared(), t_min=1e-3),
    Gaussian(LinearBeta(), t_min=1e-3),
    Gaussian(Shifted(factor=3.0), t_min=1e-3),
    Gaussian(Gumbel()),
]
B, L, D, V = 4, 3, 5, 7
RNG = Rng(0, 0, torch.arange(B))
TABLE = RNG.normal("table", (V, D))[0]
TOKENS = RNG.integers("tokens", (L,), V)
X0 = TABLE[TOKENS]
BELIEF = TabledState(RNG.normal("belief", (L, V)).log_softmax(-1), TABLE)
T = torch.tensor([0.9, 0.6, 0.35, 0.05], dtype=torch.float64)
S = torch.tensor([0.5, 0.55, 0.01, 0.02], dtype=torch.float64)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_conversions_round_trip_and_agree_with_one_another(process: Gaussian) -> None:
    a, s = process.levels(T)
    noise = RNG.normal("noise", (L, D))
    xt = a * X0 + s * noise
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(process.noise_of(X0, xt, T), noise, **close)
    torch.testing.assert_close(process.from_noise(noise, xt, T), X0, **close)
    velocity = process.velocity_of(X0, xt, T)
    torch.testing.assert_close(velocity, a * noise - s * X0, **close)
    torch.testing.assert_close(process.from_velocity(velocity, xt, T), X0, **close)
    torch.testing.assert_close(process.score(X0, xt, T), -noise / s, **close)
    torch.testing.assert_close(process.snr(T).log(), -process.gamma(T), **close)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_corrupted_states_have_the_marginal_mean_and_variance(process: Gaussian) -> None:
    rows = 40_000
    x0, t = X0[:1].expand(rows, -1, -1), torch.full((rows,), 0.4, dtype=torch.float64)
    xt = process.corrupt(x0, t, Rng(1, 0, torch.arange(rows)))
    a, s = (float(level) for level in process.levels(t[:1]))
    assert a**2 + s**2 == pytest.approx(1)
    assert bool(((xt.mean(0) - a * X0[0]).abs() < 4.5 * s / rows**0.5).all())
    assert bool(((xt.var(0) / s**2 - 1).abs() < 4.5 * (2 / rows) ** 0.5).all())


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_kernels_between_neighbouring_times_compose_to_the_marginal(process: Gaussian) -> None:
    times = torch.linspace(0.1, 1.0, 10, dtype=torch.float64)
    variance = 1 - process.alpha(times[0])
    for s, t in pairwise(times):
        forward = process.posterior(X0[:1], X0[:1], t[None], s[None]).forward[0, 0, 0]
        variance = process.alpha(t) / process.alpha(s) * variance + forward
        torch.testing.assert_close(variance, 1 - process.alpha(t), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_posterior_between_any_two_times_is_bayes_rule_and_that_of_many_small_steps(process: Gaussian, dtype: torch.dtype) -> None:
    """By precisions: 1 / var = 1 / s_s^2 + r^2 / tau^2; and by composing q(xu | xt, x0) with q(xs | xu, x0) through eight times u."""
    close = {"rtol": 1e-12, "atol": 1e-13} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    x0, xt = X0.to(dtype), RNG.normal("xt", (L, D)).to(dtype)
    found = process.posterior(x0, xt, T, S)
    (a_t, s_t), (a_s, s_s) = process.levels(T), process.levels(S)
    ratio = a_t / a_s
    tau = s_t**2 - ratio**2 * s_s**2
    variance = 1 / (1 / s_s**2 + ratio**2 / tau)
    torch.testing.assert_close(found.variance, variance, rtol=1e-11, atol=0)
    torch.testing.assert_close(found.mean.double(), variance * (a_s * x0.double() / s_s**2 + ratio * xt.double() / tau), **close)

    mean, spread = xt, torch.zeros(B, 1, 1, dtype=torch.float64)
    one, zero = torch.ones_like(xt), torch.zeros_like(xt)
    for i in range(8):
        t, s = T + (S - T) * i / 8, T + (S - T) * (i + 1) / 8
        step, slope = process.posterior(x0, mean, t, s), process.posterior(zero, one, t, s).mean[..., :1, :1].double()
        mean, spread = step.mean, slope**2 * spread + step.variance
    torch.testing.assert_close(mean, found.mean, **close)
    torch.testing.assert_close(spread, found.variance, rtol=1e-10 if dtype == torch.float64 else 1e-4, atol=0)


@pytest.mark.parametrize("large", [False, True])
def test_a_step_is_a_draw_from_the_posterior_at_the_believed_mean(large: bool) -> None:
    process, rows = Gaussian(CosineSquared(), t_min=1e-3, large_variance=large), 40_000
    xt = X0[:1].expand(rows, -1, -1)
    belief = TabledState(BELIEF.log_probs[:1].expand(rows, -1, -1), TABLE)
    t, s = (torch.full((rows,), time, dtype=torch.float64) for time in (0.6, 0.3))
    xs = process.step(belief, xt, t, s, Rng(2, 0, torch.arange(rows)))
    exact = process.posterior(belief.state()[:1], xt[:1], t[:1], s[:1])
    variance = float(exact.forward if large else exact.variance)
    assert bool(((xs.mean(0) - exact.mean[0]).abs() < 4.5 * (variance / rows) ** 0.5).all())
    assert bool(((xs.var(0) / variance - 1).abs() < 4.5 * (2 / rows) ** 0.5).all())
    last = process.step(belief, xt, t, torch.zeros_like(s), Rng(2, 0, torch.arange(rows)))
    assert torch.equal(last, belief.landing())


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_a_bin_is_the_divergence_of_two_gaussians_and_the_integrand_is_the_limit_of_bins(process: Gaussian) -> None:
    xt, where = process.corrupt(X0, T, RNG), torch.ones(B, L, dtype=torch.bool)
    clean = Clean(TOKENS, X0)
    q, p = (process.posterior(x0, xt, T, S) for x0 in (X0, BELIEF.state()))
    kl = kl_divergence(Normal(q.mean, q.variance.sqrt()), Normal(p.mean, p.variance.sqrt())).sum(-1)
    torch.testing.assert_close(process.nelbo_at(BELIEF, clean, xt, T, where, S), kl, rtol=1e-9, atol=1e-12)

    width = 1e-6
    bins = process.nelbo_at(BELIEF, clean, xt, T + width / 2, where, T - width / 2) / width
    torch.testing.assert_close(process.nelbo_at(BELIEF, clean, xt, T, where), bins, rtol=1e-5, atol=1e-8)


def test_the_first_bin_reads_the_tokens() -> None:
    t, where = torch.full((B,), 0.01, dtype=torch.float64), torch.ones(B, L, dtype=torch.bool)
    nats = Gaussian().nelbo_at(BELIEF, Clean(TOKENS, X0), X0, t, where, torch.zeros_like(t))
    torch.testing.assert_close(nats, -BELIEF.log_probs.gather(-1, TOKENS[..., None])[..., 0])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_the_boundary_is_the_reading_at_t_min_and_the_divergence_from_the_prior(process: Gaussian) -> None:
    asked = list[tuple[Tensor, Tensor]]()

    def predict(xt: Tensor, t: Tensor) -> StatePrediction:
        asked.append((xt, t))
        return BELIEF

    where = torch.arange(B * L).view(B, L) % 3 > 0
    nats = process.boundary(predict, Clean(TOKENS, X0), where, RNG, process.t_min)
    a, s = process.levels(torch.ones(1, dtype=torch.float64))
    prior = kl_divergence(Normal(a * X0, s.expand_as(X0)), Normal(0.0, 1.0)).sum(-1)
    reading = -BELIEF.log_probs.gather(-1, TOKENS[..., None])[..., 0]
    torch.testing.assert_close(nats, (prior + reading).where(where, 0.0), rtol=1e-9, atol=1e-9)
    (xt, t), *_ = asked
    assert len(asked) == 1
    assert t.tolist() == [process.t_min] * B
    assert torch.equal(xt[~where], X0[~where])


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_times_of_tokens_act_as_times_of_rows_do(process: Gaussian) -> None:
    """Equal times agree; and of unequal ones each token goes its own way."""
    where = torch.ones(B, L, dtype=torch.bool)
    per_token, before = T[:, None].expand(B, L), S[:, None].expand(B, L)
    mixed, mixed_before = T[:3].expand(B, L), S[:3].expand(B, L)
    clean = Clean(TOKENS, X0)

    def everything(t: Tensor, s: Tensor) -> list[Tensor]:
        xt = process.corrupt(X0, t, RNG)
        nats = [process.nelbo_at(BELIEF, clean, xt, t, where), process.nelbo_at(BELIEF, clean, xt, t, where, s)]
        return [xt, process.step(BELIEF, xt, t, s, RNG), *nats]

    close = {"rtol": 1e-12, "atol": 1e-14}
    for by_row, by_token in zip(everything(T, S), everything(per_token, before), strict=True):
        torch.testing.assert_close(by_row, by_token, **close)
    for column in range(L):
        rows = everything(T[column].expand(B), S[column].expand(B))
        for by_row, by_token in zip(rows, everything(mixed, mixed_before), strict=True):
            torch.testing.assert_close(by_row[:, column], by_token[:, column], **close)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
@pytest.mark.parametrize("time", [1e-3, 0.4, 1.0])
def test_bfloat16_stays_finite_and_float32_is_near_float64(process: Gaussian, time: float) -> None:
    t = torch.full((B,), time, dtype=torch.float64)
    where = torch.arange(B * L).view(B, L) % 3 > 0

    def numbers(dtype: torch.dtype) -> list[Tensor]:
        belief, clean = TabledState(BELIEF.log_probs.to(dtype), TABLE.to(dtype)), Clean(TOKENS, X0.to(dtype))
        xt = process.corrupt(clean.x, t, RNG)
        assert xt.dtype == process.step(belief, xt, t, t / 2, RNG).dtype == dtype
        nats = process.nelbo_at(belief, clean, xt, t, where, t / 2)
        assert bool((nats[~where] == 0).all())
        return [xt, process.step(belief, xt, t, t / 2, RNG), process.step(belief, xt, t, 0 * t, RNG), nats]

    for half, single, double in zip(numbers(torch.bfloat16), numbers(torch.float32), numbers(torch.float64), strict=True):
        assert bool(half.isfinite().all())
        torch.testing.assert_close(single.double(), double.double(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Gaussian(t_min=1.0), "t_min is 1.0"),
        (lambda: Gaussian(CosineSquared()), "CosineSquared leaves no noise at t_min = 0.0"),
        (lambda: Gaussian(LogLinear()), "LogLinear leaves no noise"),
        (lambda: Gaussian().step(TablePrediction(BELIEF.log_probs), X0, T, S, RNG), "TablePrediction is about tokens"),
    ],
)
def test_what_cannot_be_is_refused(build: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


def law_of(kind: str, size: int) -> Tensor:
    weight = torch.ones(size, dtype=torch.float64) if kind == "uniform" else 1 / torch.arange(1, size + 1, dtype=torch.float64)
    return weight / weight.sum()


class Memoryless:
    """Independent tokens of law p (V,) beside the Bayes posterior of each: the model's own softmax head on a trunk that says nothing but
    log p, whose prior term is log N(xt; a E_w, s^2 I)."""

    def __init__(self, law: Tensor, width: int, rows: int) -> None:
        size = len(law)
        rng = Rng(7, 0, torch.arange(rows))
        self.table = torch.nn.functional.normalize(rng.rows(torch.tensor([0])).normal("table", (size, width))[0], dim=-1) * width**0.5
        self.tokens = torch.searchsorted(law.cumsum(0), rng.uniform("tokens", (1,))).clamp_max(size - 1)
        self.clean = Clean(self.tokens, self.table[self.tokens])
        self.where = torch.ones_like(self.tokens, dtype=torch.bool)
        self.surprise = -law.log()[self.tokens[:, 0]]  # -log p of each row
        self.entropy = float(torch.special.entr(law).sum())
        self.head = Softmax(prior=True).build(size, width, hidden=1).double()
        self.head.load_state_dict({"weight": torch.zeros(width, 1), "bias": law.log()})
        self.head.requires_grad_(False)

    def predict(self, process: Gaussian) -> Callable[[Tensor, Tensor], StatePrediction]:
        def call(xt: Tensor, t: Tensor) -> StatePrediction:
            return self.head(xt.new_zeros(*xt.shape[:2], 1), xt, t, process, self.table, None)

        return call

    def bound(self, process: Gaussian, draws: int, steps: int | None = None) -> Tensor:
        """The bound of each row (B,) nats, continuous or of `steps` bins; stratified over the draws."""
        predict, total = self.predict(process), torch.zeros(len(self.tokens), dtype=torch.float64)
        for k in range(draws):
            stratum = torch.tensor([k, draws]).expand(len(self.tokens), 2)
            rng = Rng(8, k, torch.arange(len(self.tokens)))
            noised = (process.measure if steps is None else Bins(steps))(process, self.clean.x, self.where, stratum, rng)
            pred = predict(noised.xt, noised.t)
            nats = process.nelbo_at(pred, self.clean, noised.xt, noised.t, self.where, noised.s)
            total += nats[:, 0] * noised.weight
            if steps is None:
                total += process.boundary(predict, self.clean, self.where, rng.draw(1), process.t_min)[:, 0]
            else:
                total += process.prior_divergence(self.clean.x)[:, 0]
        return total / draws


def standard_error(values: Tensor) -> float:
    return float(values.std()) / math.sqrt(len(values))


def check_calibrated(process: Gaussian, kind: str, size: int, width: int, rows: int = 2000) -> None:
    """The mean bound of the Bayes posterior is the entropy, within three standard errors and at most the prior's divergence above it;
    paired with -log p of the same tokens too, which is sharper."""
    data = Memoryless(law_of(kind, size), width, rows)
    bound = data.bound(process, draws=96)
    prior = float(process.prior_divergence(data.clean.x).mean())
    assert -3 * standard_error(bound) < float(bound.mean()) - data.entropy < 3 * standard_error(bound) + prior
    gap = bound - data.surprise
    assert standard_error(gap) < 0.01 * data.entropy
    assert -3 * standard_error(gap) < float(gap.mean()) < 3 * standard_error(gap) + prior


@pytest.mark.parametrize("kind", ["uniform", "zipf"])
@pytest.mark.parametrize(("size", "width"), [(3, 2), (13, 4), (200, 16)])
def test_the_bound_of_the_bayes_posterior_is_the_entropy(kind: str, size: int, width: int) -> None:
    check_calibrated(Gaussian(), kind, size, width)


@pytest.mark.parametrize("process", PROCESSES[1:], ids=str)
def test_so_it_is_under_every_schedule(process: Gaussian) -> None:
    check_calibrated(process.measured(), "zipf", 13, 4)


@pytest.mark.parametrize("process", [PROCESSES[i] for i in (1, 2, 3)], ids=str)
def test_so_it_is_with_times_drawn_by_the_schedule_itself(process: Gaussian) -> None:
    check_calibrated(process, "zipf", 13, 4, rows=4000)


def test_a_wrong_posterior_is_found_out() -> None:
    data = Memoryless(law_of("zipf", 13), 4, rows=4000)
    exact = data.bound(Gaussian(), 8)
    data.head.load_state_dict({"weight": torch.zeros(4, 1), "bias": torch.zeros(13)})
    excess = data.bound(Gaussian(), 8) - exact
    assert float(excess.mean()) > 3 * standard_error(excess)


def test_the_bound_of_few_steps_falls_to_the_entropy_as_steps_grow() -> None:
    """T bins over the whole run, the first of which is the reconstruction, beside the prior: above the entropy by a part that halves as T
    doubles, so that twice the bound of 2 T less that of T is the entropy."""
    data = Memoryless(law_of("zipf", 13), 4, rows=1500)
    excess = {steps: data.bound(Gaussian(LinearLogSNR(-6, 9)), draws=steps, steps=steps) - data.surprise for steps in (32, 64, 128, 256)}
    for few, many in pairwise(excess.values()):
        assert float(many.mean()) > 3 * standard_error(many)
        assert float(few.mean() / many.mean()) == pytest.approx(2, rel=0.25)
    limit = 2 * excess[256] - excess[128]
    assert abs(float(limit.mean())) < 3 * standard_error(limit)


def test_measuring_keeps_both_ends_of_the_noise_and_runs_evenly_between() -> None:
    for process in PROCESSES:
        measured = process.measured()
        ends = process.gamma(torch.tensor([process.t_min, 1.0], dtype=torch.float64)).clamp(max=15)
        gamma = measured.gamma(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
        torch.testing.assert_close(gamma, torch.stack([ends[0], ends.mean(), ends[1]]), rtol=1e-8, atol=1e-8)
        assert replace(process, schedule=measured.schedule, t_min=0.0) == measured
