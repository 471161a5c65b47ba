"""A bound of masked diffusion from importance-sampled mask counts: fewer forwards for the same standard error.

With k of n targets masked at random, g(k) = n/k * (nats of the masked) has the bound as its mean over k uniform on 1..n. Its standard
deviation falls like 1/sqrt(k), so k is drawn from q(k) ~ 1/sqrt(k), the j-th of K draws from the j-th of K strata of equal mass, and
g(k) counts with weight w = 1 / (n q(k)). What w adds to the spread is taken out again by a control variate: a line c_j(k) fitted to the
other draws of the same sequence. c_j does not depend on draw j, so w (g - c_j) + E[w c_j] has the mean of w g, whatever c_j is.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from textdiff.batch import Batch, Clean
from textdiff.models.objective import Bound
from textdiff.processes.base import Denoiser
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng

FEWEST_DRAWS = 4
_RIDGE = 0.02  # added to the variance of k/n, of which a few draws hold about 0.08: the slope of very few points stays small


@dataclass(frozen=True)
class MaskCounts:
    """The estimator from `draws` forwards per sequence, 4 or more; each sequence's estimate is unbiased and depends on it alone."""

    draws: int = 16

    def __post_init__(self) -> None:
        if self.draws < FEWEST_DRAWS:
            raise ValueError(f"draws is {self.draws}, expected {FEWEST_DRAWS} or more: a line cannot be fitted to fewer; use nll instead")

    @torch.no_grad()
    def __call__(self, model: Denoiser, batch: Batch, rng: Rng) -> Tensor:
        """(B,) nats over the targets; raises ValueError when the model's process is not masked diffusion."""
        process, clean = model.process, Clean(batch.tokens, batch.tokens)
        if not isinstance(process, Masked):
            raise ValueError(f"MaskCounts counts [MASK] tokens and {type(process).__name__} has none: use the model's nll instead")
        predict, law = model.predictor(batch), count_law(batch.target.sum(1))
        counts, nats = [], []
        for j in range(self.draws):
            stream = rng.draw(j)
            level = (j + stream.uniform("count", ())) / self.draws
            k = (law.cumsum(1) < level[:, None]).sum(1).clamp(max=batch.target.sum(1).clamp_min(1) - 1) + 1
            noised = ExactCount.with_count(process, batch.tokens, batch.target, k, stream)
            pred = predict(noised.xt, noised.t)
            counts.append(k)
            nats.append(Bound()(process, pred, clean, noised, batch.target)[1].double().sum(1))
        return controlled_mean(law, torch.stack(counts, 1), torch.stack(nats, 1))


def count_law(n: Tensor) -> Tensor:
    """q(k) ~ 1/sqrt(k) on k = 1..n for rows with `n` (B,) targets: (B, max n), column k - 1, zero beyond n."""
    k = torch.arange(1, max(1, int(n.max())) + 1, device=n.device)
    weight = k.double().rsqrt() * (k <= n.clamp_min(1)[:, None])
    return weight / weight.sum(1, keepdim=True)


def strata(law: Tensor, draws: int) -> Tensor:
    """The law of k in each stratum of equal mass: (B, K, n), rows sum to 1 and average to `law` (B, n)."""
    upper = law.cumsum(1)[:, None]
    first = torch.arange(draws, dtype=law.dtype, device=law.device)[:, None] / draws
    overlap = torch.minimum(upper, first + 1 / draws) - torch.maximum(upper - law[:, None], first)
    return overlap.clamp_min(0) * draws


def controlled_mean(law: Tensor, k: Tensor, g: Tensor) -> Tensor:
    """The mean over strata of w (g - c) + E[w c], (B,), for counts `k` and estimates `g` (B, K) of draws in the order of the strata."""
    n = (law > 0).sum(1, keepdim=True).double()
    weight = torch.where(law > 0, 1 / (n * law), 0.0)  # (B, n)
    share = strata(law, k.shape[1]) * weight[:, None]  # stratum by stratum: chance of k times its weight
    x = k.double() / n
    level, slope, centre = _line_through_others(x, g, 1 / (1 / k.double() - 1 / (n + 1)))
    every_x = torch.arange(1, law.shape[1] + 1, device=law.device) / n  # (B, n)
    expected = (share * (level[..., None] + slope[..., None] * (every_x[:, None] - centre[..., None]))).sum(2)
    residual = weight.gather(1, k - 1) * (g - level - slope * (x - centre))
    return (residual + expected).mean(1)


def _line_through_others(x: Tensor, g: Tensor, precision: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Level at `centre`, slope and centre of the weighted line through all points of a row but one, (B, K) each."""

    def others(value: Tensor) -> Tensor:
        return value.sum(1, keepdim=True) - value

    total = others(precision)
    centre, level = others(precision * x) / total, others(precision * g) / total
    spread = others(precision * x * x) / total - centre**2
    slope = (others(precision * x * g) / total - centre * level) / (spread + _RIDGE)
    return level, slope, centre
