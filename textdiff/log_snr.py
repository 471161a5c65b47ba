"""Schedules of Gaussian noise: alpha(t) is the signal's share abar = a^2 of the variance, 1 - alpha = s^2 the noise's, and
gamma = -log SNR = log(s^2 / a^2), so that alpha = sigmoid(-gamma).

Sources: DDPM (Ho et al. 2020), improved DDPM (Nichol & Dhariwal 2021: `CosineSquared` of textdiff.schedules), Diffusion-LM (Li et al.
2022), VDM (Kingma et al. 2021), Plaid (Gulrajani & Hashimoto 2023), Difformer (Gao et al. 2024), LangFlow (arXiv 2604.11748).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.schedules import CosineSquared, Schedule


def gamma_of(alpha: Tensor) -> Tensor:
    """-log SNR at a share of signal alpha in (0, 1); infinite at the ends."""
    return torch.log1p(-alpha) - alpha.log()


@dataclass(frozen=True)
class Sqrt(Schedule):
    """alpha = f(t) / f(0), f(u) = 1 - sqrt(u + 1e-4) (Diffusion-LM, section 4.3): at t = i / steps exactly the product of their
    1 - beta_j, whose last factor is cut at 0.001; within the last step alpha is linear. The paper's f starts at 0.99, its code at 1."""

    steps: int = 2000
    offset: float = 1e-4

    def __post_init__(self) -> None:
        if not 0 < self.offset <= 0.01:
            raise ValueError(f"offset is {self.offset}, expected a small part of the run, 1e-4 or so")
        if not 2 <= self.steps < 0.99 / self.offset:  # beyond, f has passed 0 before the last step
            raise ValueError(f"steps is {self.steps}, expected 2 or more and fewer than 0.99 / offset = {0.99 / self.offset:.0f}")

    @property
    def _before(self) -> float:
        return 1 - 1 / self.steps

    def _raw(self, t: Tensor) -> Tensor:
        return (1 - (t + self.offset).sqrt()) / (1 - math.sqrt(self.offset))

    def _last(self) -> tuple[float, float]:
        """alpha at the two ends of the last step."""
        start = float(self._raw(torch.tensor(self._before, dtype=torch.float64, device="cpu")))
        return start, 1e-3 * start

    def alpha(self, t: Tensor) -> Tensor:
        t, (start, end) = t.double(), self._last()
        linear = start + (t - self._before) * self.steps * (end - start)
        return torch.where(t > self._before, linear, self._raw(t.clamp(max=self._before)))

    def dalpha(self, t: Tensor) -> Tensor:
        t, (start, end) = t.double(), self._last()
        slope = -0.5 / (t + self.offset).sqrt() / (1 - math.sqrt(self.offset))
        return torch.where(t > self._before, (end - start) * self.steps, slope)

    def inverse(self, alpha: Tensor) -> Tensor:
        alpha, (start, end) = alpha.double(), self._last()
        linear = self._before + (start - alpha) / (start - end) / self.steps
        return torch.where(alpha < start, linear, (1 - alpha * (1 - math.sqrt(self.offset))) ** 2 - self.offset)


@dataclass(frozen=True)
class LinearBeta(Schedule):
    """alpha = exp(-(low t + (high - low) t^2 / 2)), beta rising linearly: the limit of DDPM's beta_1 = 1e-4 .. beta_1000 = 0.02."""

    low: float = 0.1
    high: float = 20.0

    def alpha(self, t: Tensor) -> Tensor:
        t = t.double()
        return torch.exp(-(self.low * t + (self.high - self.low) * t**2 / 2))

    def dalpha(self, t: Tensor) -> Tensor:
        return -(self.low + (self.high - self.low) * t.double()) * self.alpha(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        slope = self.high - self.low
        return (torch.sqrt(self.low**2 - 2 * slope * alpha.double().log()) - self.low) / slope


@dataclass(frozen=True)
class LinearLogSNR(Schedule):
    """gamma rises linearly from `low` to `high` (VDM; Plaid's range is -3 .. 6): some noise is left at t = 0."""

    low: float = -3.0
    high: float = 6.0

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ValueError(f"gamma runs from {self.low} to {self.high}, expected the first to be the lower one")

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-(self.low + (self.high - self.low) * t.double()))

    def dalpha(self, t: Tensor) -> Tensor:
        alpha = self.alpha(t)
        return -(self.high - self.low) * alpha * (1 - alpha)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (gamma_of(alpha.double()) - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Gumbel(Schedule):
    """gamma follows a Gumbel law cut off outside [low, high] (LangFlow): with the location and scale at which it is the law of the
    information rate, a network learns as much from one noise level as from any other."""

    location: float = 1.5
    scale: float = 1.0
    low: float = -4.0
    high: float = 8.0

    def __post_init__(self) -> None:
        if self.low >= self.high or self.scale <= 0:
            raise ValueError(f"scale {self.scale}, gamma {self.low} .. {self.high}: expected a positive scale and a range that rises")

    def _mass(self, gamma: Tensor) -> Tensor:
        return torch.exp(-torch.exp(-(gamma - self.location) / self.scale))

    def _ends(self, like: Tensor) -> tuple[Tensor, Tensor]:
        low, high = (self._mass(like.new_tensor(end)) for end in (self.low, self.high))
        return low, high

    def _gamma(self, t: Tensor) -> Tensor:
        low, high = self._ends(t)
        level = low + (high - low) * t
        gamma = self.location - self.scale * torch.log(-level.clamp(1e-300, 1 - 1e-16).log())
        return gamma.clamp(self.low, self.high).where(t > 0, self.low)  # whose level may be too small for float64

    def alpha(self, t: Tensor) -> Tensor:
        return torch.sigmoid(-self._gamma(t.double()))

    def dalpha(self, t: Tensor) -> Tensor:
        t = t.double()
        low, high = self._ends(t)
        gamma = self._gamma(t)
        below = (gamma - self.location) / self.scale
        density = torch.exp(-below - torch.exp(-below)) / self.scale / (high - low)  # of t over gamma
        alpha = torch.sigmoid(-gamma)
        return -alpha * (1 - alpha) / density

    def inverse(self, alpha: Tensor) -> Tensor:
        alpha = alpha.double()
        low, high = self._ends(alpha)
        return (self._mass(gamma_of(alpha)) - low) / (high - low)


@dataclass(frozen=True)
class Shifted(Schedule):
    """Another schedule with `factor` times the noise: alpha / (F^2 - (F^2 - 1) alpha), which adds 2 ln F to gamma at every t (Difformer's
    noise factor; LD4LG's scale is 1 / F). What d numbers tell about a token grows with d, and F brings it back."""

    inner: Schedule = CosineSquared(eps=0.0)
    factor: float = 2.0

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"factor is {self.factor}, expected more than 0")

    def alpha(self, t: Tensor) -> Tensor:
        alpha, square = self.inner.alpha(t), self.factor**2
        return alpha / (square - (square - 1) * alpha)

    def dalpha(self, t: Tensor) -> Tensor:
        alpha, square = self.inner.alpha(t), self.factor**2
        return self.inner.dalpha(t) * square / (square - (square - 1) * alpha) ** 2

    def inverse(self, alpha: Tensor) -> Tensor:
        alpha, square = alpha.double(), self.factor**2
        return self.inner.inverse(square * alpha / (1 + (square - 1) * alpha))
