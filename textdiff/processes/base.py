"""What every noise process is, and the two things that processes, samplers and models agree on: `Predictor` and `Denoiser`.

A process owns the maths of one corruption: prior, marginal, bound and reverse step are one derivation and share a file. It has no weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self, runtime_checkable

from torch import Tensor

from textdiff.batch import Batch, Clean
from textdiff.prediction import Prediction
from textdiff.randomness import Rng
from textdiff.schedules import LogLinear, Schedule
from textdiff.vocab import Vocab

Predict = Callable[[Tensor, Tensor], Prediction]  # (xt, t) -> belief about x0


@runtime_checkable
class Predictor(Protocol):
    """The network bound to one batch: its encoder has run, its masks are built."""

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """Belief about x0 given the noisy state `xt` at times `t` (B,)."""
        ...

    def rows(self, index: Tensor) -> "Predictor":
        """The same for a subset of rows."""
        ...


@runtime_checkable
class Denoiser(Protocol):
    """All that a sampler knows of a model: its process, how to ask it, and what its canvas is."""

    @property
    def process(self) -> "Process": ...

    def predictor(self, batch: Batch) -> Predictor: ...

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The known clean state and the positions to generate, (B, L) each."""
        ...

    def decode(self, x0: Tensor) -> Tensor:
        """Token ids (B, L) of a clean state."""
        ...


class Noised(NamedTuple):
    """A corrupted batch: `nelbo_at(...) * weight` has the bound as its expectation."""

    xt: Tensor  # X
    t: Tensor  # (B,) float64
    weight: Tensor  # (B,) float64


@dataclass(frozen=True)
class Process:
    """Corruption q(xt | x0) with its bound and reverse step; times are (B,) or (B, L), 0 = clean, 1 = noise."""

    schedule: Schedule = LogLinear()

    def bind(self, vocab: Vocab) -> Self:
        """The same process with the ids of a vocabulary filled in; raises ValueError when the vocabulary lacks one it needs."""
        raise NotImplementedError

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        """Pure noise x1 in the shape of `like`."""
        raise NotImplementedError

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        """xt ~ q(xt | x0)."""
        raise NotImplementedError

    def nelbo_at(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor, s: Tensor | None = None) -> Tensor:
        """Integrand of the continuous-time bound at t, or the KL of the bin (s, t): (B, L) nats, zero off `where`."""
        raise NotImplementedError

    def boundary(self, predict: Predict, clean: Clean, where: Tensor, rng: Rng, t_min: float) -> Tensor:
        """What the integral over [t_min, 1] leaves out, prior and reconstruction: (B, L) nats."""
        raise NotImplementedError

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """xs ~ p(xs | xt) for s < t."""
        raise NotImplementedError

    def changes(self, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor | None:
        """The positions (B, L) that `step` with the same `rng` would change, when that is known without a prediction; else None."""
        return None


@dataclass(frozen=True)
class Noising:
    """How times are drawn in training and in Monte Carlo bounds."""

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        """Corrupt the target positions of a batch; `stratum` (B, 2) is each row's slot in the global batch and that batch's size."""
        raise NotImplementedError


def stratified(rng: Rng, stratum: Tensor) -> Tensor:
    """One uniform number per row, one row per slot of the global batch: (slot + u) / size, (B,) float64 in (0, 1)."""
    slot, size = stratum.unbind(1)
    return (slot + rng.uniform("time", ())) / size


@dataclass(frozen=True)
class UniformTime(Noising):
    """t uniform on [t_min, 1], stratified over the global batch; the integral over [0, t_min] is left to `Process.boundary`."""

    t_min: float = 1e-3

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        t = self.t_min + (1 - self.t_min) * stratified(rng, stratum)
        xt = process.corrupt(x0, t, rng).where(target, x0)
        return Noised(xt, t, t.new_full(t.shape, 1 - self.t_min))
