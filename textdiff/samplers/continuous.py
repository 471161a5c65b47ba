"""The loop of samplers that move vectors through falling noise, where its steps lie, and noise without tails."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser, Predictor, Process, keep_known
from textdiff.processes.gaussian import Gaussian, states_of
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, require_steps, start
from textdiff.state_prediction import StatePrediction


class Belief(NamedTuple):
    """What the network believed at one moment."""

    t: Tensor  # (B,)
    x0: Tensor  # (B, L, D)


class Walk:
    """One sampling run: what it moves in, whom it asks, and how often it has asked."""

    def __init__(self, process: Gaussian, predict: Predictor, known: Tensor, target: Tensor) -> None:
        self.process, self.target = process, target
        self.nfe = torch.zeros(len(known), dtype=torch.long, device=known.device)  # (B,)
        self._predict, self._known, self._rows = predict, known, target.any(1)
        self._last: StatePrediction | None = None

    def kept(self, x: Tensor) -> Tensor:
        """x (B, L, D) with what is known put back."""
        return keep_known(x, self._known, self.target)

    def ask(self, x: Tensor, t: Tensor) -> Belief:
        """The belief about x (B, L, D) at times t (B,), which may read the one before it: a network call."""
        self._last = states_of(self._predict(x, t, self._last))
        self.nfe = self.nfe + self._rows * self._last.calls
        return Belief(t, self._last.state())

    def landed(self) -> Tensor:
        """The clean state (B, L, D) of the last belief."""
        assert self._last is not None
        return self.kept(self._last.landing())


@dataclass(frozen=True)
class Spacing:
    """Where the times of a run lie."""

    def times(self, process: Gaussian, steps: int) -> Tensor:
        """`steps` + 1 times from 1 down to 0, float64."""
        raise NotImplementedError


@dataclass(frozen=True)
class EqualTimes(Spacing):
    """Equal steps in t, so that the schedule decides."""

    def times(self, process: Gaussian, steps: int) -> Tensor:
        return torch.linspace(1, 0, steps + 1, dtype=torch.float64)


@dataclass(frozen=True)
class EqualLogSNR(Spacing):
    """Equal steps in log SNR from the noise of t = 1 to that of t_min, whatever the schedule (DPM-Solver, section 3.4)."""

    def times(self, process: Gaussian, steps: int) -> Tensor:
        between = torch.linspace(1, 0, steps + 1, dtype=torch.float64)[1:-1]
        inner = process.time_of(process.measured().alpha(between))
        return torch.cat([inner.new_ones(1), inner, inner.new_zeros(1)])


@dataclass(frozen=True)
class Continuous(Sampler):
    """Moves from noise to the clean state; a subclass says when and how."""

    requires: ClassVar[type[Process]] = Gaussian

    def times(self, process: Gaussian) -> Tensor:
        """The times that moves lead between, from 1 down to 0, float64."""
        raise NotImplementedError

    def move(self, walk: Walk, now: Belief, before: Belief | None, xt: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """The state at times s (B,) > 0, given the belief about `xt` and, from the second move on, that of the move before."""
        raise NotImplementedError

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        """Every canvas; the last move, to time 0, lands on the clean state of the last belief."""
        self.check(denoiser)
        process = denoiser.process
        assert isinstance(process, Gaussian)
        canvas, known, target = start(denoiser, batch, rng)
        walk, before = Walk(process, denoiser.predictor(batch), known, target), None
        yield canvas
        for i, (t, s) in enumerate(pairwise(self.times(process).to(known.device))):
            now = walk.ask(canvas.x, t.expand(len(known)))
            if s > 0:
                x = walk.kept(self.move(walk, now, before, canvas.x, s.expand(len(known)), rng.draw(i)))
                canvas = Canvas(x, float(s), walk.nfe, ~target)
            else:
                canvas = Canvas(walk.landed(), 0.0, walk.nfe, torch.ones_like(target))
            before = now
            yield canvas


@dataclass(frozen=True)
class Solver(Continuous):
    """`steps` moves."""

    steps: int = 64
    spacing: Spacing = EqualTimes()

    def __post_init__(self) -> None:
        require_steps(self.steps)

    def times(self, process: Gaussian) -> Tensor:
        return self.spacing.times(process, self.steps)


class WithoutTails(Rng):
    """The streams of another Rng, whose normal numbers never exceed `limit`: N(0, 1) given |z| <= limit, by inversion."""

    def __init__(self, rng: Rng, limit: float) -> None:
        self.key, self.limit = rng.key, limit

    def rows(self, index: Tensor) -> "WithoutTails":
        return WithoutTails(super().rows(index), self.limit)

    def draw(self, k: int) -> "WithoutTails":
        return WithoutTails(super().draw(k), self.limit)

    def normal(self, name: str, shape: tuple[int, ...]) -> Tensor:
        uniform = self.uniform(name, shape)
        tail = torch.special.ndtr(uniform.new_tensor(-self.limit))
        return torch.special.ndtri(tail + (1 - 2 * tail) * uniform)


@dataclass(frozen=True)
class Truncated(Sampler):
    """Another sampler whose noise, at the start and at every step, stays within `limit`: what Diffusion-LM's and DiffuSeq's code call
    `top_p`, which redraws every |z| above it. Less noise makes samples likelier and less varied."""

    requires: ClassVar[type[Process]] = Gaussian
    inner: Sampler
    limit: float

    def __post_init__(self) -> None:
        if self.limit <= 0:
            raise ValueError(f"limit is {self.limit}, expected more than 0 standard deviations")

    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        return self.inner.trajectory(denoiser, batch, WithoutTails(rng, self.limit))
