"""Times and corrupted positions drawn together, by how many tokens noise touches: the bound's expectation on all of [0, 1] at a fraction
of the variance of uniform time."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.processes.base import Noised, Noising, Process, TokenProcess, spread, stratified
from textdiff.randomness import Rng
from textdiff.schedules import inside


@dataclass(frozen=True)
class ExactCount(Noising):
    """Noise exactly k of a span's n targets, k uniform and stratified over the global batch (LLaDA, appendix A, for masks).

    In the clock u = 1 - alpha a uniform u touches k of n tokens for every k equally often, and given k it is Beta(k + 1, n - k + 1). It is
    drawn from Beta(k, n - k + 1) instead, the law of the k-th smallest of n uniforms, and weighs u / k: what the integrand gains like 1/u
    as u falls is taken out again. k = 0 occurs only where untouched tokens cost something, that is not for masks. Where a schedule leaves
    signal at t = 1, what noise it does not reach is read at its last time.
    """

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        if not isinstance(process, TokenProcess):
            raise ValueError(f"ExactCount counts noised tokens and {type(process).__name__} has none: use UniformTime")
        n = _in_spans(target, process.span(x0.shape[1])).sum(2)  # (B, spans)
        least = 0 if process.clean_costs else 1
        k = (stratified(rng, stratum, n.shape[1]) * (n + 1 - least)).floor().long() + least
        return self.with_count(process, x0, target, torch.minimum(k, n), rng)

    @staticmethod
    def with_count(process: TokenProcess, x0: Tensor, target: Tensor, k: Tensor, rng: Rng) -> Noised:
        """Noise `k` (B,) or (B, spans) of the targets, chosen uniformly, at the time the network is to believe."""
        length = x0.shape[1]
        size = process.span(length)
        targets = _in_spans(target, size)  # (B, spans, size)
        k = k if k.dim() == 2 else k[:, None]
        uniform = _in_spans(rng.uniform("corrupt", (length,)), size).masked_fill(~targets, 2.0)
        ordered, index = uniform.sort(2)
        chosen = torch.zeros_like(targets).scatter(2, index, torch.arange(size, device=x0.device) < k[..., None])
        touched = (targets & chosen).flatten(1)[:, :length]
        n = targets.sum(2).double()
        level = ordered.gather(2, (k - 1).clamp_min(0)[..., None])[..., 0]
        none = 1 - (1 - rng.uniform("level", (k.shape[1],))) ** (1 / (n + 1))  # the smallest of n + 1 uniforms
        level = torch.where(k > 0, level, none)
        level = level.where(n > 0, 0.5)  # a span without targets has none
        t = inside(process.time_of(1 - level))  # the very times at which the bound is read
        share = torch.where(k > 0, (n + process.clean_costs) * (1 - process.alpha(t)) / k.clamp_min(1), 1.0)
        weight = torch.where(n > 0, share / -process.dalpha(t), 0.0)
        t = spread(t, length, size)
        return Noised(process.touch(x0, touched, t, rng), t, spread(weight, length, size))


def _in_spans(values: Tensor, size: int) -> Tensor:
    """(B, L) as (B, spans, size), the last span filled up with zeros."""
    return F.pad(values, (0, -values.shape[1] % size)).unflatten(1, (-1, size))
