"""Predictor-corrector sampling: after each reverse step, tokens are redrawn at the same noise level given all others (Gibbs steps).

Given the rest, a token at level s follows alpha_s p + b_s with p the leave-one-out prediction: a clean draw with probability alpha_s, else
noise. Redrawing one random token leaves the law of the noisy sequence as it is, and mends errors of the steps before
(Campbell et al. 2022; Zhao et al. 2024). A corrector call counts as any other.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from textdiff.prediction import Prediction
from textdiff.processes.base import Process, per_token
from textdiff.processes.interpolating import Interpolating
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.stepwise import Stepwise, Walk


@dataclass(frozen=True)
class Corrected(Stepwise):
    """Ancestral steps with `corrections` at every level between them; a subclass says which tokens a correction redraws.

    At most steps + (steps - 1) * corrections network calls; rows in which nothing is drawn from the prediction are left out of a call.
    """

    corrections: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.corrections < 1:
            raise ValueError(f"corrections is {self.corrections}, expected 1 or more at each level: without any, use Ancestral")

    def times(self, process: Process) -> Tensor:
        """Every time between the ends occurs once more for each correction."""
        times = torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)
        between = (times > 0) & (times < 1)
        return times.repeat_interleave(1 + self.corrections * between)

    def move(self, walk: Walk, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        if bool((t == s).all()):
            return self.correct(walk, x, s, rng)
        process, before = walk.process, torch.where(walk.target, s[:, None], t[:, None])
        changes = process.changes(x, t, before, rng)

        def step(pred: Prediction, xt: Tensor, index: Tensor) -> Tensor:
            return process.step(pred, xt, t[index], before[index], rng.rows(index))

        return walk.update(x, t, walk.target if changes is None else changes & walk.target, step)

    def correct(self, walk: Walk, x: Tensor, s: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        """The state after one correction at level s, and the network calls of each row, (B,) long."""
        raise NotImplementedError


@dataclass(frozen=True)
class _Random(Corrected):
    """Tokens chosen without looking at them; on masks they are hidden from the network, which learns nothing about tokens that it sees."""

    def count(self) -> int:
        raise NotImplementedError

    def correct(self, walk: Walk, x: Tensor, s: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        process = walk.process
        chosen = _least(rng.uniform("position", x.shape[1:]), walk.target, self.count())
        clean = chosen & (rng.uniform("clean", x.shape[1:]) < process.alpha(per_token(s)))
        shown = x.masked_fill(chosen, process.mask_id) if isinstance(process, Masked) else x

        def redraw(pred: Prediction, xt: Tensor, index: Tensor) -> Tensor:
            return xt.masked_scatter(clean[index], pred.draw(clean[index], rng.rows(index))[0])

        x, calls = walk.update(shown, s, clean, redraw)
        return process.touch(x, chosen & ~clean, s, rng), calls


@dataclass(frozen=True)
class Gibbs(_Random):
    """One random token at a time: the law of the noisy sequence is kept exactly, so the sampler's is the denoiser's as steps grow."""

    law: ClassVar[str] = "limit"

    def count(self) -> int:
        return 1


@dataclass(frozen=True)
class RandomPositions(_Random):
    """`positions` random tokens at once, each given the others as they were: cheaper, and "approximate" because they are drawn apart."""

    positions: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positions(self.positions)

    def count(self) -> int:
        return self.positions


@dataclass(frozen=True)
class LeastConfident(Corrected):
    """The `positions` tokens that are least probable given the others (Zhao et al. 2024). The choice depends on the tokens, so the
    law is not kept: "approximate". For noise that replaces tokens; for masks `ConfidenceBased` remasking does the like."""

    requires: ClassVar[type[Interpolating]] = Interpolating
    positions: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_positions(self.positions)

    def correct(self, walk: Walk, x: Tensor, s: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        process = walk.process
        assert isinstance(process, Interpolating)
        levels = process.levels(per_token(s))
        noise = process.noise_at(x, levels)
        drawn_clean = rng.uniform("clean", x.shape[1:]) < levels.alpha

        def redraw(pred: Prediction, xt: Tensor, index: Tensor) -> Tensor:
            target = walk.target[index]
            seen = torch.zeros_like(noise[index]).masked_scatter(target, pred.log_prob(xt, target).double().exp())
            chosen = _least(levels.alpha[index] * seen + noise[index], target, self.positions)
            clean = chosen & drawn_clean[index]
            redrawn = xt.masked_scatter(clean, pred.draw(clean, rng.rows(index))[0])
            return process.touch(redrawn, chosen & ~clean, s[index], rng.rows(index))

        return walk.update(x, s, walk.target, redraw)


def _require_positions(positions: int) -> None:
    if positions < 1:
        raise ValueError(f"positions is {positions}, expected 1 or more tokens to redraw")


def _least(score: Tensor, target: Tensor, count: int) -> Tensor:
    """(B, L) bool: the `count` targets of each row with the least score, ties to the left."""
    rank = score.masked_fill(~target, torch.inf).argsort(dim=1, stable=True).argsort(1)
    return (rank < count) & target
