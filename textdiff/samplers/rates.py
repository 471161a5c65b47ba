"""Samplers that read scores: the ratios p(xt = j) / p(xt) of the noisy law (SEDD, Lou et al. 2024), which `process.log_ratio` gives.

A token z jumps to j against the noise at the rate w_t(z) p(j) / p(z), with w_t(z) the rate of noise's jumps from anywhere into z. Score
models need these samplers; for any other prediction the scores follow from it. Every row with a token that can still change takes part
in every call: at most `steps`. The clock starts where the signal is 1e-4, because scores say nothing at pure noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from textdiff.prediction import Prediction, draw_categorical
from textdiff.processes.base import TokenProcess
from textdiff.processes.interpolating import Interpolating
from textdiff.processes.masked import Masked
from textdiff.projection import chunk_rows
from textdiff.randomness import Rng
from textdiff.samplers.stepwise import Stepwise, Walk

_FAINT = 1e-4


class Scores(NamedTuple):
    """The scores at N positions."""

    log_ratio: Tensor  # (N, V)
    z: Tensor  # (N,) the tokens seen
    uniform: Tensor  # (N,) fresh noise for a choice,
    other: Tensor  # (N,) and for another


@dataclass(frozen=True)
class ScoreSampler(Stepwise):
    """Steps by scores; a subclass gives the move of N tokens."""

    law: ClassVar[str] = "limit"

    def times(self, process: TokenProcess) -> Tensor:
        first = float(process.time_of(torch.tensor(_FAINT, dtype=torch.float64)).clamp(0, 1))
        return torch.linspace(first, 0, self.steps + 1, dtype=torch.float64)

    def settled(self, walk: Walk, x: Tensor) -> Tensor:
        return ~walk.target | walk.process.settled(x)

    def jump(self, process: TokenProcess, scores: Scores, t: Tensor, s: Tensor) -> Tensor:
        """The N tokens at time s; t and s are numbers."""
        raise NotImplementedError

    def move(self, walk: Walk, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        process, asked = walk.process, ~self.settled(walk, x)
        uniform, other = rng.uniform("draw", x.shape[1:]), rng.uniform("jump", x.shape[1:])

        def change(pred: Prediction, xt: Tensor, index: Tensor) -> Tensor:
            moved = xt.clone()
            nowhere = torch.zeros_like(xt, dtype=torch.bool)
            states = process.log_ratio(pred, xt, t[index], nowhere).shape[-1]
            for where in _parts(asked[index], states):
                scores = Scores(process.log_ratio(pred, xt, t[index], where), xt[where], uniform[index][where], other[index][where])
                # the last step is the analytic one for all, as in SEDD: a rate leaves some noise
                moved[where] = tweedie(process, scores, t[0], s[0]) if s[0] <= 0 else self.jump(process, scores, t[0], s[0])
            return moved

        return walk.update(x, t, asked, change)


@dataclass(frozen=True)
class Analytic(ScoreSampler):
    """SEDD's analytic sampler (Tweedie's formula): with exact scores the exact posterior of each token, the law of ancestral sampling."""

    def jump(self, process: TokenProcess, scores: Scores, t: Tensor, s: Tensor) -> Tensor:
        return tweedie(process, scores, t, s)


@dataclass(frozen=True)
class Euler(ScoreSampler):
    """A token jumps with probability min(1, rate * (t - s)); first order in the step, the last one is analytic."""

    def chance(self, expected: Tensor) -> Tensor:
        """The probability of a jump when `expected` (N,) are due."""
        return expected

    def jump(self, process: TokenProcess, scores: Scores, t: Tensor, s: Tensor) -> Tensor:
        _, rate = noise_and_rate(process, t, scores.log_ratio)
        others = scores.log_ratio.scatter(-1, scores.z[:, None], -torch.inf)
        expected = rate[scores.z] * others.logsumexp(-1).exp() * (t - s)
        jumps = scores.other < self.chance(expected)
        return scores.z.masked_scatter(jumps, draw_categorical(others[jumps], scores.uniform[jumps])[0])


@dataclass(frozen=True)
class TauLeaping(Euler):
    """The jumps due in a step are Poisson (Campbell et al. 2022); of several the last wins, and it goes where any goes. So a token changes
    with probability 1 - exp(-rate * (t - s)), and no counts are drawn."""

    def chance(self, expected: Tensor) -> Tensor:
        return -torch.expm1(-expected)


def tweedie(process: TokenProcess, scores: Scores, t: Tensor, s: Tensor) -> Tensor:
    """Draw xs with p(xs = j | xt = z) = q(z | xs = j) p_s(j) / p_t(z), where p_s(j) / p_t(z) = (r_j - b_ts[j] sum_k r_k) / alpha_ts undoes
    the noise of the step on the ratios r. Inconsistent scores may make it negative: it is cut at 0 and normalised."""
    ratio = scores.log_ratio.double().exp()
    (noise_t, _), (noise_s, _) = (noise_and_rate(process, time, ratio) for time in (t, s))
    kept = process.alpha(t) / process.alpha(s)
    noise = noise_t - kept * noise_s
    before = (ratio - noise * ratio.sum(-1, keepdim=True)).clamp_min(0)
    z = scores.z[:, None]
    weight = (before * noise[z]).scatter_add(-1, z, kept * before.gather(-1, z))
    if s <= 0 and isinstance(process, Masked | Interpolating) and process.mask_id >= 0:
        weight[:, process.mask_id] = 0  # rounding, or a score model's inconsistency, must not leave one in the result
    return draw_categorical(weight.log(), scores.uniform)[0]


def noise_and_rate(process: TokenProcess, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """b_t and the rates of jumps into every id, b' - (alpha'/alpha) b, (V,) float64 each, on the device of `like` (N, V)."""
    ids = torch.arange(like.shape[-1], device=like.device)
    if isinstance(process, Masked):
        alpha, is_mask = process.alpha(t), process.is_masked(ids)
        return torch.where(is_mask, 1 - alpha, 0.0), torch.where(is_mask, -process.dalpha(t) / alpha, 0.0)
    if isinstance(process, Interpolating):
        levels = process.levels(t)
        plain = torch.where(process.is_noise(ids), levels.noise_rate, 0.0)
        return process.noise_at(ids, levels), plain + torch.where(ids == process.mask_id, levels.mask_rate, 0.0)
    raise ValueError(f"the jump rates of {type(process).__name__} are not known: use Ancestral")


def _parts(where: Tensor, states: int) -> Iterator[Tensor]:
    """`where` in parts of so few positions that tables (N, states) of them are small."""
    row, column = where.nonzero(as_tuple=True)
    size = max(1, chunk_rows(states, where.device) // 8)  # several tables are held at once, in float64
    for start in range(0, len(row), size):
        part = slice(start, start + size)
        yield torch.zeros_like(where).index_put((row[part], column[part]), where.new_ones(()))
