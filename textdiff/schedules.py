"""Signal schedules alpha(t): 1 at t = 0 (clean), about 0 at t = 1 (noise), always float64, with derivative and inverse in closed form.

Sources: MDLM (Sahoo et al. 2024), UDLM (Schiff et al. 2024), BD3-LM (Arriola et al. 2025), Duo (Sahoo et al. 2025), SEDD (Lou et al. 2024),
discrete flow matching (Gat et al. 2024). `eps` is the signal left at t = 1.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

_LEAST = 1e-9


def inside(t: Tensor) -> Tensor:
    """Times kept in [1e-9, 1 - 1e-9]: the one place where they are kept off the ends, at which rates are infinite or a clock stands still.

    No nearer limit is needed: of a bound only the sums over the vocabulary are float32, everything else is float64.
    """
    return t.clamp(_LEAST, 1 - _LEAST)


@dataclass(frozen=True)
class Schedule:
    """alpha(t), its derivative and its inverse; t in [0, 1] of any shape, results float64 of the same shape."""

    def alpha(self, t: Tensor) -> Tensor:
        """Signal left at time t."""
        raise NotImplementedError

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt, never positive."""
        raise NotImplementedError

    def inverse(self, alpha: Tensor) -> Tensor:
        """The time at which the signal is alpha."""
        raise NotImplementedError


@dataclass(frozen=True)
class LogLinear(Schedule):
    """alpha = 1 - (1 - eps) t; -log alpha is log-linear (SEDD, MDLM; GIDD uses eps = 1e-4). With eps = 0 the masked weight is 1/t."""

    eps: float = 0.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - (1 - self.eps) * t.double()

    def dalpha(self, t: Tensor) -> Tensor:
        return torch.full_like(t, -(1 - self.eps), dtype=torch.float64)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - alpha.double()) / (1 - self.eps)


@dataclass(frozen=True)
class Cosine(Schedule):
    """alpha = eps + (1 - eps) cos(pi t / 2) (MDLM)."""

    eps: float = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * torch.cos(math.pi / 2 * t.double())

    def dalpha(self, t: Tensor) -> Tensor:
        return -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi / 2 * t.double())

    def inverse(self, alpha: Tensor) -> Tensor:
        return 2 / math.pi * torch.acos(((alpha.double() - self.eps) / (1 - self.eps)).clamp(0, 1))


@dataclass(frozen=True)
class CosineSquared(Schedule):
    """alpha = eps + (1 - eps) cos(pi t / 2)^2 (MDLM)."""

    eps: float = 1e-3

    def alpha(self, t: Tensor) -> Tensor:
        return self.eps + (1 - self.eps) * torch.cos(math.pi / 2 * t.double()) ** 2

    def dalpha(self, t: Tensor) -> Tensor:
        return -(1 - self.eps) * math.pi / 2 * torch.sin(math.pi * t.double())

    def inverse(self, alpha: Tensor) -> Tensor:
        return 2 / math.pi * torch.acos(((alpha.double() - self.eps) / (1 - self.eps)).clamp(0, 1).sqrt())


@dataclass(frozen=True)
class OneMinusCosine(Schedule):
    """alpha = 1 - cos(y), y = pi (1 - (1 - eps) t) / 2 (Duo's cosine, its derivative with the factor 1 - eps that the repository drops)."""

    eps: float = 1e-3

    def _angle(self, t: Tensor) -> Tensor:
        return math.pi / 2 * (1 - (1 - self.eps) * t.double())

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.cos(self._angle(t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -(1 - self.eps) * math.pi / 2 * torch.sin(self._angle(t))

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - 2 / math.pi * torch.acos(1 - alpha.double())) / (1 - self.eps)


@dataclass(frozen=True)
class Polynomial(Schedule):
    """alpha = 1 - t^power (BD3-LM: 2 is its square, 1/2 its square root)."""

    power: float = 2.0

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - t.double() ** self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * t.double() ** (self.power - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (1 - alpha.double()) ** (1 / self.power)


@dataclass(frozen=True)
class FlowPolynomial(Schedule):
    """alpha = (1 - t)^power (the polynomial path of discrete flow matching)."""

    power: float = 2.0

    def alpha(self, t: Tensor) -> Tensor:
        return (1 - t.double()) ** self.power

    def dalpha(self, t: Tensor) -> Tensor:
        return -self.power * (1 - t.double()) ** (self.power - 1)

    def inverse(self, alpha: Tensor) -> Tensor:
        return 1 - alpha.double() ** (1 / self.power)


@dataclass(frozen=True)
class Logarithmic(Schedule):
    """alpha = 1 - log2(1 + t) (BD3-LM)."""

    def alpha(self, t: Tensor) -> Tensor:
        return 1 - torch.log2(1 + t.double())

    def dalpha(self, t: Tensor) -> Tensor:
        return -1 / ((1 + t.double()) * math.log(2))

    def inverse(self, alpha: Tensor) -> Tensor:
        return 2 ** (1 - alpha.double()) - 1


@dataclass(frozen=True)
class LinearSigma(Schedule):
    """alpha = exp(-(low + t (high - low))) (MDLM's linear sigma)."""

    low: float = 0.0
    high: float = 10.0

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-(self.low + t.double() * (self.high - self.low)))

    def dalpha(self, t: Tensor) -> Tensor:
        return -(self.high - self.low) * self.alpha(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        return (-alpha.double().log() - self.low) / (self.high - self.low)


@dataclass(frozen=True)
class Geometric(Schedule):
    """alpha = exp(-sigma), sigma = low^(1-t) high^t (SEDD; MDLM uses low = 1e-3)."""

    low: float = 1e-4
    high: float = 20.0

    def _sigma(self, t: Tensor) -> Tensor:
        return self.low ** (1 - t.double()) * self.high ** t.double()

    def alpha(self, t: Tensor) -> Tensor:
        return torch.exp(-self._sigma(t))

    def dalpha(self, t: Tensor) -> Tensor:
        return -math.log(self.high / self.low) * self._sigma(t) * self.alpha(t)

    def inverse(self, alpha: Tensor) -> Tensor:
        return torch.log(-alpha.double().log() / self.low) / math.log(self.high / self.low)
