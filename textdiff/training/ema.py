"""An exponential moving average of the weights: what is evaluated, sampled and published."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor


class Ema:
    """The average of `parameters` by name. Its decay warms up as min(decay, (1 + n) / (10 + n)), so early weights are soon forgotten."""

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.average = {name: parameter.detach().clone() for name, parameter in self.parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimizer step `step`, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.average.values()), list(self.parameters.values()), 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and average; exact, so a second call undoes the first."""
        for name, parameter in self.parameters.items():
            held = parameter.detach().clone()
            parameter.copy_(self.average[name])
            self.average[name].copy_(held)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """The averaged weights are in the model inside the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
