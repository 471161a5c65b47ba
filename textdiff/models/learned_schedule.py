"""A noise schedule that learns where the information is (CDCD's time warping, Dieleman et al. 2022; LangFlow's Gumbel law of gamma).

The cross-entropy of a token at noise gamma is fitted by height * exp(-exp(-(gamma - location) / scale)). Drawing gamma from the law whose
distribution function that is, each draw is as likely as the next to fall where the cross-entropy rises ("entropy-uniform").
"""

import math
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import initialization as init

from textdiff.log_snr import Gumbel
from textdiff.processes.gaussian import Gaussian

_SPEED = 10.0  # how much faster these few numbers move than weights do


class LearnedGumbel(nn.Module):
    """Corrections to the location, scale and height of a `Gumbel` schedule, trained with the model and saved with it."""

    def __init__(self, begin: Gumbel, height: float) -> None:
        super().__init__()
        self.begin, self.height = begin, height
        self.offsets = nn.Parameter(torch.empty(3))

    def reset(self) -> None:
        """Back to where it began."""
        init.zeros_(self.offsets)

    def _numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        location, scale, height = (_SPEED * self.offsets).unbind()
        begin, reach = self.begin, math.log(4)
        return (
            (begin.location + location).clamp(begin.low, begin.high),  # further out, no level of the range would have any mass
            begin.scale * scale.clamp(-reach, reach).exp(),
            self.height * height.clamp(-reach, reach).exp(),
        )

    def process(self, process: Gaussian) -> Gaussian:
        """The process with the schedule learnt so far, which carries no gradient."""
        location, scale, _ = (number.detach() for number in self._numbers())
        return replace(process, schedule=replace(self.begin, location=float(location), scale=float(scale)))

    def misfit(self, gamma: Tensor, nats: Tensor) -> Tensor:
        """Squared error of the fit to cross-entropies `nats` at noise levels `gamma`, shaped like them, in nats^2 over the height's square;
        its gradient reaches this module alone."""
        location, scale, height = self._numbers()
        below = ((gamma.to(nats.dtype) - location) / scale).clamp(-20, 80)
        fit = height * torch.exp(-torch.exp(-below))
        return ((fit - nats.detach()) / self.height).square()
