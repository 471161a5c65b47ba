"""Confidence-ordered unmasking: MaskGIT (Chang et al. 2022), LLaDA, Dream, Fast-dLLM, and the entropy-bounded rule (Ben-Hamu et al. 2025).

Each step scores every remaining mask, commits some of them, and asks again. Tokens committed together are drawn independently, and the
order depends on the prediction, so the law is not the model's: `law` is "approximate" for all of them except one random token at a time.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Statistics
from textdiff.processes.base import Denoiser
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, require_steps, start


@dataclass(frozen=True)
class Confidence(Sampler):
    """The loop; a subclass says how positions are scored and how many of the best are committed.

    The vocabulary is projected at still-masked positions only and finished rows leave the batch. Tokens are drawn from the
    prediction as filtered by the guidance (temperature 0 for the usual greedy decoding); scores are those of the unfiltered one.
    """

    requires: ClassVar[type[Masked]] = Masked

    def score(self, statistics: Statistics, uniform: Tensor) -> Tensor:
        """(N,) the larger, the sooner; `uniform` (N,) is fresh noise."""
        raise NotImplementedError

    def commit(self, score: Tensor, entropy: Tensor, remaining: Tensor, step: int) -> Tensor:
        """(B, L) bool, a subset of `remaining`; `score` (B, L) is -inf elsewhere, `entropy` (B, L) in nats."""
        raise NotImplementedError

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        process = denoiser.process
        assert isinstance(process, Masked)
        canvas, _, target = start(denoiser, batch, rng)
        predictor, remaining, step = denoiser.predictor(batch), target, 0
        total = target.sum(1)
        yield canvas
        while bool(remaining.any()):
            step_rng, index = rng.draw(step), remaining.any(1).nonzero()[:, 0]
            asked = remaining[index]
            t = process.schedule.inverse(1 - asked.sum(1).double() / total[index])
            pred = predictor.rows(index)(canvas.x[index], t)
            statistics = pred.statistics(asked)
            drawn, _ = pred.draw(asked, step_rng.rows(index))
            uniform = step_rng.rows(index).uniform("order", (asked.shape[1],))[asked]
            score = _spread(self.score(statistics, uniform).double(), asked, -torch.inf)
            commit = self.commit(score, _spread(statistics.entropy.double(), asked, 0.0), asked, step)
            if not bool(commit.any(1).all()):  # every rule commits at least one, unless it cannot compare: the loop would not end
                raise ValueError("the prediction is not a number (nan), so no token can be chosen: have the weights diverged?")
            tokens = torch.zeros_like(canvas.x[index]).masked_scatter(asked, drawn)
            x = canvas.x.index_copy(0, index, tokens.where(commit, canvas.x[index]))
            remaining = remaining.index_copy(0, index, asked & ~commit)
            nfe = canvas.nfe.index_add(0, index, torch.full_like(index, pred.calls))
            canvas = Canvas(x, float(remaining.sum() / target.sum()), nfe, ~remaining)
            step += 1
            yield canvas


def _spread(values: Tensor, where: Tensor, fill: float) -> Tensor:
    return torch.full(where.shape, fill, dtype=values.dtype, device=values.device).masked_scatter(where, values)


def _best(score: Tensor, count: Tensor) -> Tensor:
    """(B, L) bool: the `count` (B,) best positions of each row, ties to the left."""
    rank = score.argsort(dim=1, descending=True, stable=True).argsort(1)
    return (rank < count[:, None]) & score.isfinite()


@dataclass(frozen=True)
class _Scheduled(Confidence):
    steps: int = 64

    def __post_init__(self) -> None:
        require_steps(self.steps)

    def commit(self, score: Tensor, entropy: Tensor, remaining: Tensor, step: int) -> Tensor:
        """An equal share of what remains for each remaining step, the remainder spread first (LLaDA)."""
        left = max(1, self.steps - step)
        return _best(score, (remaining.sum(1) + left - 1) // left)


@dataclass(frozen=True)
class Greedy(_Scheduled):
    """Commit where the largest probability is largest , in `steps` calls at most.

    With temperature 0 this is MaskGIT and LLaDA's low-confidence remasking; above 0 they score the drawn token instead.
    """

    def score(self, statistics: Statistics, uniform: Tensor) -> Tensor:
        return statistics.top1


@dataclass(frozen=True)
class Margin(_Scheduled):
    """Commit where the two largest probabilities differ most (Kim et al. 2025)."""

    def score(self, statistics: Statistics, uniform: Tensor) -> Tensor:
        return statistics.top1 - statistics.top2


@dataclass(frozen=True)
class Entropy(_Scheduled):
    """Commit where the entropy is least (Dream)."""

    def score(self, statistics: Statistics, uniform: Tensor) -> Tensor:
        return -statistics.entropy


@dataclass(frozen=True)
class RandomOrder(_Scheduled):
    """Commit uniformly random positions; with as many steps as targets the law is exactly the model's any-order law."""

    def score(self, statistics: Statistics, uniform: Tensor) -> Tensor:
        return uniform


@dataclass(frozen=True)
class Threshold(Confidence):
    """Commit every position whose largest probability exceeds `tau`, and always the best one (Fast-dLLM)."""

    tau: float = 0.9

    def score(self, statistics: Statistics, uniform: Tensor) -> Tensor:
        return statistics.top1

    def commit(self, score: Tensor, entropy: Tensor, remaining: Tensor, step: int) -> Tensor:
        return remaining & (score > self.tau) | _best(score, torch.ones_like(remaining.sum(1)))


@dataclass(frozen=True)
class EntropyBound(Confidence):
    """Commit the longest prefix, by rising entropy, whose entropies sum to at most `gamma` nats above the largest of them
    (Ben-Hamu et al. 2025: a bound on the dependence that drawing them together ignores); always at least one."""

    gamma: float = 0.1

    def __post_init__(self) -> None:
        if self.gamma < 0:
            raise ValueError(f"gamma is {self.gamma}, expected nats, 0 or more")

    def score(self, statistics: Statistics, uniform: Tensor) -> Tensor:
        return -statistics.entropy

    def commit(self, score: Tensor, entropy: Tensor, remaining: Tensor, step: int) -> Tensor:
        ordered, index = entropy.masked_fill(~remaining, torch.inf).sort(dim=1, stable=True)
        within = ordered.cumsum(1) - ordered <= self.gamma
        within[:, 0] = True
        return torch.zeros_like(remaining).scatter(1, index, within) & remaining
