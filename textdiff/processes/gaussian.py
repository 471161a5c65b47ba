"""Variance-preserving Gaussian diffusion of vectors (DDPM, Ho et al. 2020; VDM, Kingma et al. 2021), for any schedule and any two times.

    xt = a x0 + s n, n ~ N(0, I), a^2 = alpha(t), s^2 = 1 - alpha(t)        SNR = a^2 / s^2, gamma = -log SNR
    q(xt | xs):      r = a_t / a_s,  tau^2 = s_t^2 - r^2 s_s^2              (beta_t when s is the step before t)
    q(xs | xt, x0):  mean (r s_s^2 xt + a_s tau^2 x0) / s_t^2, variance tau^2 s_s^2 / s_t^2

Tokens are read back at `t_min`, at the noise the schedule has there; a reverse step to time 0 arrives at the clean state.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import torch
from torch import Tensor

from textdiff.batch import Clean
from textdiff.log_snr import LinearLogSNR, gamma_of
from textdiff.prediction import Prediction
from textdiff.processes.base import Noising, Predict, Process, UniformTime, keep_known
from textdiff.randomness import Rng
from textdiff.schedules import Schedule
from textdiff.state_prediction import StatePrediction
from textdiff.vocab import Vocab

_FAINTEST = 15.0  # gamma at which 3e-7 of the variance is signal


class Posterior(NamedTuple):
    """q(xs | xt, x0) = N(mean, variance I)."""

    mean: Tensor  # (B, L, D)
    variance: Tensor  # (B, 1, 1) or (B, L, 1) float64
    forward: Tensor  # tau^2, the variance of q(xt | xs), shaped like `variance`


@dataclass(frozen=True)
class Gaussian(Process):
    """Gaussian noise on states (B, L, D) that were scaled to unit variance; times are (B,) or (B, L)."""

    schedule: Schedule = LinearLogSNR()
    t_min: float = 0.0  # 1e-3 or so for schedules without noise at t = 0
    large_variance: bool = False  # ancestral steps with the noise tau^2 of q(xt | xs), not with that of q(xs | xt, x0) (DDPM, section 3.2)

    def __post_init__(self) -> None:
        if not 0 <= self.t_min < 1:
            raise ValueError(f"t_min is {self.t_min}, expected a time in [0, 1)")
        if float(self.schedule.alpha(torch.tensor(self.t_min, device="cpu"))) >= 1:
            raise ValueError(f"{type(self.schedule).__name__} leaves no noise at t_min = {self.t_min}: raise t_min, 1e-3 will do")

    def bind(self, vocab: Vocab) -> Self:
        """Vectors need no ids."""
        return self

    @property
    def measure(self) -> Noising:
        """How times are drawn for a likelihood: all of [t_min, 1]."""
        return UniformTime(self.t_min)

    def measured(self) -> Self:
        """The same noise levels run through evenly in gamma, from that of t_min to that of t = 1 or 15: the continuous bound is the same
        under every schedule between two levels (VDM, section 5.1), and its estimate here has no levels that are never drawn."""
        low, high = (float(self.gamma(torch.tensor(t, dtype=torch.float64, device="cpu"))) for t in (self.t_min, 1.0))
        return replace(self, schedule=LinearLogSNR(low, min(high, _FAINTEST)), t_min=0.0)

    def levels(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """(a, s) at times (B,) or (B, L), shaped (B, 1, 1) or (B, L, 1), float64."""
        return _both(self.alpha(t))

    def arrival(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """The same at the end of a reverse step: (1, 0) at time 0."""
        return _both(self.alpha(s).where(s > 0, 1.0))

    def gamma(self, t: Tensor) -> Tensor:
        """-log SNR at times of any shape, at least that of t_min, float64."""
        return gamma_of(self.alpha(t.clamp(min=self.t_min)))

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        return rng.normal("prior", like.shape[1:]).to(like.dtype)

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        a, s = self.levels(t)
        return a.to(x0.dtype) * x0 + s.to(x0.dtype) * rng.normal("corrupt", x0.shape[1:]).to(x0.dtype)

    def posterior(self, x0: Tensor, xt: Tensor, t: Tensor, s: Tensor) -> Posterior:
        """q(xs | xt, x0) between any two times s < t."""
        (a_t, s_t), (a_s, s_s) = self.levels(t), self.arrival(s)
        ratio = a_t / a_s
        forward = s_t**2 - ratio**2 * s_s**2
        of_xt, of_x0 = ratio * (s_s / s_t) ** 2, a_s * forward / s_t**2
        return Posterior(of_xt.to(xt.dtype) * xt + of_x0.to(xt.dtype) * x0, forward * (s_s / s_t) ** 2, forward)

    def noise_of(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """eps = (xt - a x0) / s."""
        a, s = self.levels(t)
        return ((xt - a * x0) / s).to(xt.dtype)

    def from_noise(self, noise: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0 = (xt - s eps) / a; a is never below 1e-6, where eps says nothing of x0."""
        a, s = self.levels(t)
        return ((xt - s * noise) / a.clamp(min=1e-6)).to(xt.dtype)

    def velocity_of(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """v = a eps - s x0 = (a xt - x0) / s (Salimans & Ho 2022)."""
        a, s = self.levels(t)
        return ((a * xt - x0) / s).to(xt.dtype)

    def from_velocity(self, velocity: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """x0 = a xt - s v."""
        a, s = self.levels(t)
        return (a * xt - s * velocity).to(xt.dtype)

    def score(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """grad log p(xt) = (a x0 - xt) / s^2, of the mean x0 that a network believes in."""
        a, s = self.levels(t)
        return ((a * x0 - xt) / s**2).to(xt.dtype)

    def snr(self, t: Tensor) -> Tensor:
        """a^2 / s^2, shaped like t."""
        alpha = self.alpha(t)
        return alpha / (1 - alpha)

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        """-SNR'(t) |x0 - x0hat|^2 / 2, or (SNR(s) - SNR(t)) |x0 - x0hat|^2 / 2 of a bin (VDM, eq. 11 and 13); the bin that begins at time
        0 is the reconstruction -log p(x0 | xt). Float32 or better; raises ValueError for a belief about tokens alone."""
        belief = states_of(pred)
        error = ((clean.x[where] - belief.state(where)).to(torch.promote_types(xt.dtype, torch.float32)) ** 2).sum(-1)
        rate = -self.dalpha(t) / (1 - self.alpha(t)) ** 2 if s is None else self.snr(s.clamp(min=self.t_min)) - self.snr(t)
        rate = (rate if rate.dim() == 2 else rate[:, None]).expand(where.shape)[where]
        nats = 0.5 * rate.to(error.dtype) * error
        if s is not None:
            first = (s if s.dim() == 2 else s[:, None]).expand(where.shape) <= 0
            reading = first & where
            nats = nats.masked_scatter(first[where], -belief.log_prob(clean.tokens, reading).to(nats.dtype))
        return nats.new_zeros(where.shape).masked_scatter(where, nats)

    def boundary(self, predict: Predict, clean: Clean, where: Tensor, rng: Rng, t_min: float) -> Tensor:
        """-log p(tokens | x at t_min), which calls the network, and KL( q(x1 | x0) || N(0, I) )."""
        t = torch.full((len(where),), t_min, dtype=torch.float64, device=where.device)
        x = keep_known(self.corrupt(clean.x, t, rng), clean.x, where)
        log_prob = predict(x, t).log_prob(clean.tokens, where)
        nats = log_prob.new_zeros(where.shape).masked_scatter(where, -log_prob)
        return nats + self.prior_divergence(clean.x).to(nats.dtype).where(where, 0.0)

    def prior_divergence(self, x0: Tensor) -> Tensor:
        """KL( q(x1 | x0) || N(0, I) ) = (a^2 |x0|^2 + D (s^2 - 1 - log s^2)) / 2 at t = 1, (B, L) nats float64."""
        alpha = self.alpha(torch.ones((), dtype=torch.float64, device=x0.device))
        return 0.5 * (alpha * x0.double().square().sum(-1) - x0.shape[-1] * (alpha + torch.log1p(-alpha)))

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """One draw from q(xs | xt, x0hat); the last step, to time 0, lands on the clean state (DDPM, Algorithm 2)."""
        belief = states_of(pred)
        if not bool((s > 0).any()):
            return belief.landing()
        mean, small, large = self.posterior(belief.state(), xt, t, s)
        variance = large.where(small > 0, 0.0) if self.large_variance else small
        return mean + variance.sqrt().to(mean.dtype) * rng.normal("step", xt.shape[1:]).to(mean.dtype)


def states_of(pred: Prediction) -> StatePrediction:
    """A belief about vectors; raises ValueError for one about tokens alone."""
    if not isinstance(pred, StatePrediction):
        raise ValueError(f"Gaussian noise needs a belief about vectors and {type(pred).__name__} is about tokens: use EmbeddingDiffusion")
    return pred


def _both(alpha: Tensor) -> tuple[Tensor, Tensor]:
    alpha = alpha[..., None] if alpha.dim() == 2 else alpha[:, None, None]
    return alpha.sqrt(), (1 - alpha).sqrt()
