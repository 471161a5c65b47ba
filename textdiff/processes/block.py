"""Block diffusion: autoregressive over blocks, diffusion inside each (BD3-LM, Arriola et al. 2025).

    -log p(x) <= sum over blocks b of NELBO(x^b | the clean blocks before b),   one time per block.

Given the blocks before it, a block is noised and denoised by the `inner` process, token by token: every formula is the inner process's with
times (B, L). What is new is who sees whom, and that is the predictor's affair. Blocks of one token are autoregression, a block as long as
the row is the inner process itself.
"""

from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from textdiff.batch import Clean
from textdiff.prediction import Prediction
from textdiff.processes.base import Noised, Noising, Predict, Process, TokenProcess, Wrapped, spread, stratified
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.schedules import Schedule
from textdiff.vocab import Vocab


@dataclass(frozen=True)
class Block(Wrapped):
    """The `inner` process in blocks of `size` tokens, counted from the start of the row; the last block may be shorter."""

    schedule: Schedule = field(init=False, repr=False, compare=False)  # the inner process's
    inner: TokenProcess = Masked()
    size: int = 16

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}, expected blocks of 1 token or more")
        if not isinstance(self.inner, TokenProcess) or isinstance(self.inner, Block):
            raise ValueError(f"Block got {type(self.inner).__name__} as its inner process, expected noise over tokens such as Masked()")
        object.__setattr__(self, "schedule", self.inner.schedule)

    @property
    def clean_costs(self) -> bool:  # type: ignore[override]
        """Whether the inner bound charges for tokens that noise did not touch."""
        return self.inner.clean_costs

    @property
    def measure(self) -> Noising:  # type: ignore[override]
        """How the inner bound is measured."""
        return self.inner.measure

    def bind(self, vocab: Vocab) -> Self:
        return replace(self, inner=self.inner.bind(vocab))

    def span(self, length: int) -> int:
        return max(1, min(self.size, length))

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        return self.inner.corrupt(x0, t, rng)

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        return self.inner.nelbo_at(pred, clean, xt, t, where, s)

    def boundary(self, predict: Predict, clean: Clean, where: Tensor, rng: Rng, t_min: float) -> Tensor:
        return self.inner.boundary(predict, clean, where, rng, t_min)

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        return self.inner.step(pred, xt, t, s, rng)

    def changes(self, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor | None:
        return self.inner.changes(xt, t, s, rng)

    def cross_entropy(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        return self.inner.cross_entropy(pred, clean, xt, t, where)

    def weight(self, clean: Clean, xt: Tensor, t: Tensor) -> Tensor:
        return self.inner.weight(clean, xt, t)

    def emission(self, xt: Tensor, t: Tensor, states: int) -> Tensor:
        return self.inner.emission(xt, t, states)

    def surprise(self, xt: Tensor, t: Tensor) -> Tensor:
        return self.inner.surprise(xt, t)

    def log_ratio(self, pred: Prediction, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        return self.inner.log_ratio(pred, xt, t, where)

    def log_posterior(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, where: Tensor) -> Tensor:
        return self.inner.log_posterior(pred, xt, t, s, where)


@dataclass(frozen=True)
class ClippedTime(Noising):
    """t uniform on [low, high] only, stratified: BD3-LM's clipped schedules, whose gradients vary less because no block is almost clean
    or almost gone. The loss is the mean of the integrand over that range; it bounds nothing, so the weight is nan."""

    low: float = 0.3
    high: float = 0.8

    def __post_init__(self) -> None:
        if not 0 < self.low < self.high <= 1:
            raise ValueError(f"times are clipped to [{self.low}, {self.high}]: expected 0 < low < high <= 1")

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        length = x0.shape[1]
        size = process.span(length)
        t = spread(self.low + (self.high - self.low) * stratified(rng, stratum, -(-length // size)), length, size)
        return Noised(process.corrupt(x0, t, rng).where(target, x0), t, torch.full_like(t, torch.nan))
