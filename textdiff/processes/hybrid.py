"""Masks and uniform noise together: GIDD (von Rütte et al. 2025).

In GIDD's time u = 1 - schedule.alpha(t) the noise is b = (u e_mask + c_u uniform) / C_u with C_u = 1 + c_u and alpha = (1 - u) / C_u, where
c_u = K (u (1 - u))^(gamma / 2) and K = 2^gamma p / (1 - p): at u = 1/2 the uniform part holds exactly `share` = p of all probability. Both
ends are those of masked diffusion (all clean, all [MASK]); with share = 0 it is masked diffusion throughout.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.processes.interpolating import Interpolating, Levels
from textdiff.vocab import Vocab

_BISECTIONS = 60


@dataclass(frozen=True)
class Hybrid(Interpolating):
    """`share` (GIDD's p_u) of all probability is uniform noise at the middle of the clock; 0 < gamma <= 2 shapes its rise and fall."""

    share: float = 0.1
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1 or not 0 < self.gamma <= 2:
            raise ValueError(f"share is {self.share} and gamma {self.gamma}: expected share in [0, 1) and gamma in (0, 2]")
        super().__post_init__()

    def absorbing(self, vocab: Vocab) -> int:
        if vocab.mask_id is None:
            raise ValueError("hybrid noise needs a mask token and the tokenizer has none: call textdiff.vocab.add_mask_token first")
        return vocab.mask_id

    @property
    def peak(self) -> float:
        """GIDD's K."""
        return 2**self.gamma * self.share / (1 - self.share)

    def _uniform(self, u: Tensor) -> Tensor:
        return self.peak * (u * (1 - u)).clamp_min(0) ** (self.gamma / 2)

    def _signal(self, u: Tensor) -> Tensor:
        return (1 - u) / (1 + self._uniform(u))

    def alpha(self, t: Tensor) -> Tensor:
        return self._signal(1 - self.schedule.alpha(t))

    def dalpha(self, t: Tensor) -> Tensor:
        u = 1 - self.schedule.alpha(t)
        c = self._uniform(u)
        return (1 + c + (1 - u) * self._slope(u, c)) / (1 + c) ** 2 * self.schedule.dalpha(t)

    def _slope(self, u: Tensor, c: Tensor) -> Tensor:
        """dc / du."""
        return c * self.gamma / 2 * (1 - 2 * u) / (u * (1 - u)).clamp_min(1e-300)

    def time_of(self, alpha: Tensor) -> Tensor:
        """By bisection: the signal falls all the way from 1 to 0."""
        low, high = torch.zeros_like(alpha, dtype=torch.float64), torch.ones_like(alpha, dtype=torch.float64)
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            early = self._signal(middle) > alpha
            low, high = torch.where(early, middle, low), torch.where(early, high, middle)
        return self.schedule.inverse(1 - (low + high) / 2)

    def levels(self, t: Tensor) -> Levels:
        u, ids = 1 - self.schedule.alpha(t), len(self.ids)
        c, speed = self._uniform(u), -self.schedule.dalpha(t)  # du / dt
        total = 1 + c
        left = (1 - u).clamp_min(1e-300)
        # (c + (1 - u) dc/du) / (1 - u), without the difference of two large numbers near u = 1
        rise = c * (u + self.gamma / 2 - self.gamma * u) / (u * left).clamp_min(1e-300)
        return Levels((1 - u) / total, c / (ids * total), u / total, speed * rise / (ids * total), speed / (total * left))
