"""Score-based samplers (Song et al. 2021): the reverse SDE, the probability-flow ODE, and Langevin steps at one noise level.

forward: dx = -beta/2 x dt + sqrt(beta) dW, beta dt = -d log alpha; score = (a x0hat - x) / s^2
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.continuous import Belief, Continuous, Solver, Walk
from textdiff.samplers.ddim import DDIM


@dataclass(frozen=True)
class ReverseSDE(Solver):
    """Euler-Maruyama of dx = -(beta/2 x + beta score) dt + sqrt(beta) dW, run backwards (eq. 6): xs = xt + h (xt / 2 + score) + sqrt(h) z.

    h = 1 - alpha_t / alpha_s, DDPM's beta between two times: the integral of beta dt to first order, and never above 1 where that is
    infinite, so that noise without any signal can be left.
    """

    law: ClassVar[str] = "limit"

    def move(self, walk: Walk, now: Belief, before: Belief | None, xt: Tensor, s: Tensor, rng: Rng) -> Tensor:
        (a_t, _), (a_s, _) = walk.process.levels(now.t), walk.process.levels(s)
        h = 1 - (a_t / a_s) ** 2
        drift = 0.5 * xt + walk.process.score(now.x0, xt, now.t)
        return xt + h.to(xt.dtype) * drift + h.sqrt().to(xt.dtype) * rng.normal("step", xt.shape[1:]).to(xt.dtype)


@dataclass(frozen=True)
class ProbabilityFlow(Solver):
    """Euler's rule for the ODE with the SDE's marginals, dx = -beta/2 (x + score) dt (eq. 13).

    In the angle phi with tan phi = s / a it reads dx = v dphi, v = (a x - x0hat) / s (Salimans & Ho 2022, appendix D), which is finite at
    both ends: xs = xt + (phi_s - phi_t) v.
    """

    law: ClassVar[str] = "limit"

    def move(self, walk: Walk, now: Belief, before: Belief | None, xt: Tensor, s: Tensor, rng: Rng) -> Tensor:
        turn = _angle(walk.process, s) - _angle(walk.process, now.t)
        return xt + turn.to(xt.dtype) * self.slope(walk, now, xt, s, turn)

    def slope(self, walk: Walk, now: Belief, xt: Tensor, s: Tensor, turn: Tensor) -> Tensor:
        """dx / dphi (B, L, D) over the whole move."""
        return walk.process.velocity_of(now.x0, xt, now.t)


@dataclass(frozen=True)
class HeunFlow(ProbabilityFlow):
    """Heun's rule for the same ODE: the mean of the slopes at both ends (EDM, Karras et al. 2022, Algorithm 1); two calls a move but for
    the last, second order."""

    def slope(self, walk: Walk, now: Belief, xt: Tensor, s: Tensor, turn: Tensor) -> Tensor:
        here = super().slope(walk, now, xt, s, turn)
        xs = walk.kept(xt + turn.to(xt.dtype) * here)
        return (here + super().slope(walk, walk.ask(xs, s), xs, s, turn)) / 2


@dataclass(frozen=True)
class LangevinCorrector(Continuous):
    """After every move of another sampler but the last, `corrections` steps x += e score + sqrt(2 e) z at the level arrived at, with
    e = 2 (snr |z| / |score|)^2 (Song et al. 2021, Algorithm 5). Each is a network call.

    The norms are those of one row's targets, with |z|^2 at its mean, so that no row depends on its batch. Steps of finite size settle
    where a Gaussian's variance is 1 + snr^2 times what it should be, however many there are: "approximate".
    """

    inner: Solver = DDIM(eta=1.0)
    snr: float = 0.16
    corrections: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.snr < 1 or self.corrections < 1:
            raise ValueError(f"snr {self.snr}, corrections {self.corrections}: expected a number in (0, 1) and 1 or more")

    def times(self, process: Gaussian) -> Tensor:
        return self.inner.times(process)

    def move(self, walk: Walk, now: Belief, before: Belief | None, xt: Tensor, s: Tensor, rng: Rng) -> Tensor:
        x = walk.kept(self.inner.move(walk, now, before, xt, s, rng))
        target = walk.target[..., None]
        numbers = walk.target.sum(1)[:, None, None] * x.shape[-1]
        for i in range(self.corrections):
            score = walk.process.score(walk.ask(x, s).x0, x, s)
            square = score.double().square().where(target, 0.0).sum((1, 2), keepdim=True)
            step = 2 * self.snr**2 * numbers / square.clamp(min=1e-300)
            noise = rng.normal(f"correction {i}", x.shape[1:]).to(x.dtype)
            x = walk.kept(x + step.to(x.dtype) * score + (2 * step).sqrt().to(x.dtype) * noise)
        return x


def _angle(process: Gaussian, t: Tensor) -> Tensor:
    """phi with cos phi = a and sin phi = s, (B, 1, 1) float64."""
    a, sigma = process.levels(t)
    return torch.atan2(sigma, a)
