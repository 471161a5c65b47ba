"""A bound of masked diffusion from importance-sampled mask counts: fewer forwards for the same standard error.

With k of n targets masked at random, g(k) = n/k * (nats of the masked) has the bound as its mean over k uniform on 1..n. Its standard
deviation falls with k, so k is drawn from q(k) ~ k^(-1/3), the j-th of K draws from the j-th of K strata of equal mass, and g(k) counts
with weight w = 1 / (n q(k)). What w adds to the spread is taken out again by a control variate: a line c_j(k) fitted to the
other draws of the same sequence. c_j does not depend on draw j, so w (g - c_j) + E[w c_j] has the mean of w g, whatever c_j is. Which
tokens a mask of k hides is taken out the same way, by what the other draws say of their costs (position_costs). A `Profile`, what a pilot
says of masked tokens in general, is taken off every masked token first; its own mean over k is known and added again.
"""

from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor

from textdiff.batch import Batch, Clean
from textdiff.models.position_costs import Costs, explained_by_others, kinds
from textdiff.processes.base import Denoiser
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng

FEWEST_DRAWS = 4


class Pull(NamedTuple):
    """How strongly the line of few draws is held where it is expected."""

    level: float  # masked shares of whole sequences that a level of zero counts for
    slope: float  # added to the variance of k/n, of which a few draws hold about 0.08


_FALL = -1 / 3  # independent costs would give -1/2; those of trained models lean on what is seen, and vary more where little is
_ALONE, _AFTER_A_PROFILE = Pull(0.0, 0.02), Pull(0.3, 0.1)


@dataclass(frozen=True)
class Profile:
    """Nats of a masked token where a share x of the targets is masked: level + slope x + root sqrt(x)."""

    level: float
    slope: float
    root: float

    @classmethod
    def fitted(cls, k: Tensor, n: Tensor, nats: Tensor) -> Self:
        """To draws (N,) with `k` of `n` masked that cost `nats` in all, by least squares, a masked token counting as one."""
        seen = (k > 0) & nats.isfinite()  # a token that no model writes costs infinitely much, and must not be told of all others
        k, n, nats = k[seen].double(), n[seen].double(), nats[seen].double()
        terms = _terms(k / n)
        normal = (terms * k[:, None]).T @ terms
        normal += 1e-6 * normal.trace().clamp_min(1e-9) * torch.eye(3, dtype=normal.dtype, device=normal.device)  # few draws, equal counts
        return cls(*torch.linalg.solve(normal, terms.T @ nats).tolist())

    def __call__(self, share: Tensor) -> Tensor:
        """Nats at each share, of its shape."""
        return _terms(share.double()) @ torch.tensor([self.level, self.slope, self.root], dtype=torch.float64, device=share.device)


def _terms(x: Tensor) -> Tensor:
    return torch.stack([torch.ones_like(x), x, x.sqrt()], -1)


@dataclass(frozen=True)
class MaskCounts:
    """The estimator from `draws` forwards per sequence, 4 or more; each sequence's estimate is unbiased, whatever the profile, and depends
    on it alone."""

    draws: int = 16
    profile: Profile | None = None

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
        counts, masked, nats = [], [], []
        for j in range(self.draws):
            stream = rng.draw(j)
            level = (j + stream.uniform("count", ())) / self.draws
            k = (law.cumsum(1) < level[:, None]).sum(1).clamp(max=batch.target.sum(1).clamp_min(1) - 1) + 1
            noised = ExactCount.with_count(process, batch.tokens, batch.target, k, stream)
            pred = predict(noised.xt, noised.t)
            counts.append(k)
            masked.append(process.is_masked(noised.xt) & batch.target)
            nats.append(process.cross_entropy(pred, clean, noised.xt, noised.t, batch.target))
        k = torch.stack(counts, 1)
        costs = Costs(k.double() / batch.target.sum(1, keepdim=True).clamp_min(1), torch.stack(masked, 1), torch.stack(nats, 1).double())
        return estimate(law, k, costs, batch, self.profile)


@torch.no_grad()
def pilot(model: Denoiser, batch: Batch, rng: Rng, draws: int = FEWEST_DRAWS) -> Profile:
    """The profile of a model, from `draws` forwards of each row of a batch; `rng` must not be that of a score.

    Raises ValueError for a batch without targets.
    """
    process, n, predict = model.process, batch.target.sum(1), model.predictor(batch)
    assert isinstance(process, Masked)
    if not n.any():
        raise ValueError("the rows of the pilot have no target: give rows with something to score")
    counts, nats = [], []
    for j in range(draws):
        stream = rng.draw(j)
        k = torch.ceil(n * (j + stream.uniform("count", ())) / draws).long().clamp_min(1).minimum(n)
        noised = ExactCount.with_count(process, batch.tokens, batch.target, k, stream)
        pred = predict(noised.xt, noised.t)
        counts.append(k)
        nats.append(process.cross_entropy(pred, Clean(batch.tokens, batch.tokens), noised.xt, noised.t, batch.target).sum(1))
    return Profile.fitted(torch.cat(counts), n.repeat(draws), torch.cat(nats))


def estimate(law: Tensor, k: Tensor, costs: Costs, batch: Batch, profile: Profile | None = None) -> Tensor:
    """(B,) nats from draws in the order of the strata of `law` (B, n), draw j with `k` (B, K) masks."""
    known, pull = torch.zeros(len(k), dtype=torch.float64, device=k.device), _ALONE
    if profile is not None:
        costs = costs._replace(nats=costs.nats - profile(costs.share)[..., None] * costs.masked)
        n = batch.target.sum(1)
        every = torch.arange(1, law.shape[1] + 1, device=k.device).double() / n.clamp_min(1)[:, None]  # (B, n)
        known, pull = (profile(every) * (law > 0)).sum(1) * (n > 0), _AFTER_A_PROFILE
    g = costs.nats.sum(2) / costs.share
    line = line_through_others(law, k, g, pull)
    explained = explained_by_others(costs, batch.target, kinds(batch.tokens, batch.target), *line)
    return controlled_mean(law, k, g - explained, line) + known


class Line(NamedTuple):
    """A line in k/n for each draw, a function of the other draws alone, (B, K) each."""

    level: Tensor  # at `centre`
    slope: Tensor
    centre: Tensor


def count_law(n: Tensor) -> Tensor:
    """q(k) ~ k^(-1/3) on k = 1..n for rows with `n` (B,) targets: (B, max n), column k - 1, zero beyond n."""
    k = torch.arange(1, max(1, int(n.max())) + 1, device=n.device)
    weight = k.double().pow(_FALL) * (k <= n.clamp_min(1)[:, None])
    return weight / weight.sum(1, keepdim=True)


def strata(law: Tensor, draws: int) -> Tensor:
    """The law of k in each stratum of equal mass: (B, K, n), rows sum to 1 and average to `law` (B, n)."""
    upper = law.cumsum(1)[:, None]
    first = torch.arange(draws, dtype=law.dtype, device=law.device)[:, None] / draws
    overlap = torch.minimum(upper, first + 1 / draws) - torch.maximum(upper - law[:, None], first)
    return overlap.clamp_min(0) * draws


def controlled_mean(law: Tensor, k: Tensor, g: Tensor, line: Line) -> Tensor:
    """The mean over strata of w (g - c) + E[w c], (B,), for counts `k` and estimates `g` (B, K) of draws in the order of the strata."""
    n = (law > 0).sum(1, keepdim=True).double()
    weight = torch.where(law > 0, 1 / (n * law), 0.0)  # (B, n)
    share = strata(law, k.shape[1]) * weight[:, None]  # stratum by stratum: chance of k times its weight
    every_x = torch.arange(1, law.shape[1] + 1, device=law.device) / n  # (B, n)
    level, slope, centre = line
    expected = (share * (level[..., None] + slope[..., None] * (every_x[:, None] - centre[..., None]))).sum(2)
    residual = weight.gather(1, k - 1) * (g - level - slope * (k / n - centre))
    return (residual + expected).mean(1)


def line_through_others(law: Tensor, k: Tensor, g: Tensor, pull: Pull = _ALONE) -> Line:
    """The weighted line through `g` (B, K) at `k` of all draws of a row but one, held towards zero by `pull`."""
    n = (law > 0).sum(1, keepdim=True).double()
    x, precision = k / n, 1 / (1 / k.double() - 1 / (n + 1))

    def others(value: Tensor) -> Tensor:
        return value.sum(1, keepdim=True) - value

    total = others(precision)
    centre, level = others(precision * x) / total, others(precision * g) / total
    spread = others(precision * x * x) / total - centre**2
    slope = (others(precision * x * g) / total - centre * level) / (spread + pull.slope)
    return Line(level * total / (total + pull.level * n), slope, centre)
