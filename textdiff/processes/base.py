"""What every noise process is, and the two things that processes, samplers and models agree on: `Predictor` and `Denoiser`.

A process owns the maths of one corruption: prior, marginal, bound and reverse step are one derivation and share a file. It has no weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor

from textdiff.batch import Batch, Clean
from textdiff.prediction import Prediction
from textdiff.randomness import Rng
from textdiff.schedules import LogLinear, Schedule
from textdiff.vocab import Vocab

_GOLDEN = (5**0.5 - 1) / 2  # multiples modulo 1 fill [0, 1) evenly, however many are taken: padding does not move a row's times

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
    t: Tensor  # (B,) or (B, L) float64
    weight: Tensor  # (B,) or (B, L) float64; nan where times are drawn from a part of [0, 1] only, so that no bound can be given
    s: Tensor | None = None  # the other end of the bin (s, t), shaped like t; None: the integrand at t is meant


def keep_known(x: Tensor, known: Tensor, target: Tensor) -> Tensor:
    """x at the targets (B, L) and the known state elsewhere; states are (B, L) or (B, L, D)."""
    return x.where(target if x.dim() == 2 else target[..., None], known)


def per_token(t: Tensor) -> Tensor:
    """Times (B,) as (B, 1), times (B, L) as they are."""
    return t if t.dim() == 2 else t[:, None]


@dataclass(frozen=True)
class Process:
    """Corruption q(xt | x0) with its bound and reverse step; times are (B,) or (B, L), 0 = clean, 1 = noise."""

    schedule: Schedule = LogLinear()

    def bind(self, vocab: Vocab) -> Self:
        """The same process with the ids of a vocabulary filled in; raises ValueError when the vocabulary lacks one it needs."""
        raise NotImplementedError

    def alpha(self, t: Tensor) -> Tensor:
        """Signal left at time t, 1 at t = 0."""
        return self.schedule.alpha(t)

    def dalpha(self, t: Tensor) -> Tensor:
        """d alpha / dt."""
        return self.schedule.dalpha(t)

    def time_of(self, alpha: Tensor) -> Tensor:
        """The time at which the signal is alpha."""
        return self.schedule.inverse(alpha)

    def span(self, length: int) -> int:
        """How many neighbouring positions share one time, in a row of `length`."""
        return length

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
        """The only positions (B, L) that `step` with the same `rng` can change, when that is known without a prediction; else None."""
        return None

    def settled(self, xt: Tensor) -> Tensor:
        """(B, L) bool: positions that no later step can change."""
        return torch.zeros(xt.shape[:2], dtype=torch.bool, device=xt.device)


class TokenProcess(Process):
    """Noise that acts on each token by itself: q(xt | x0) = alpha_t 1[xt = x0] + b_t[xt], with noise b_t of mass 1 - alpha_t."""

    measure: ClassVar["Noising"]  # how times are drawn for a likelihood: the bound's whole expectation
    clean_costs: ClassVar[bool] = False  # whether the bound charges for tokens that noise did not touch

    def touch(self, x0: Tensor, touched: Tensor, t: Tensor, rng: Rng) -> Tensor:
        """x0 with the `touched` positions (B, L) drawn anew from the noise b_t / (1 - alpha_t)."""
        raise NotImplementedError

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        return self.touch(like, torch.ones_like(like, dtype=torch.bool), torch.ones(len(like), device=like.device), rng)

    def corrupt(self, x0: Tensor, t: Tensor, rng: Rng) -> Tensor:
        touched = rng.uniform("corrupt", x0.shape[1:]) >= self.alpha(per_token(t))
        return self.touch(x0, touched, t, rng)

    def cross_entropy(self, pred: Prediction, clean: Clean, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """-log p(x0 | xt) of each token by itself, (B, L) nats, zero off `where`."""
        raise NotImplementedError

    def weight(self, clean: Clean, xt: Tensor, t: Tensor) -> Tensor:
        """The weight of a token's divergence in the continuous bound, (B, L) float64: what objectives clip or replace."""
        raise NotImplementedError

    def emission(self, xt: Tensor, t: Tensor, states: int) -> Tensor:
        """q(xt | x0 = v) for v = 0 .. states - 1, up to a factor that v does not enter, (B, L, states) float64."""
        raise NotImplementedError

    def surprise(self, xt: Tensor, t: Tensor) -> Tensor:
        """log q(xt | x0 = xt) - log b_t[xt], (B, L) float64: what the token seen says for itself, 0 where noise never draws it."""
        raise NotImplementedError

    def log_ratio(self, pred: Prediction, xt: Tensor, t: Tensor, where: Tensor) -> Tensor:
        """log p(xt = j) - log p(xt) of each position given the others, (N, V): the scores of SEDD (Lou et al. 2024); 0 at j = xt."""
        raise NotImplementedError

    def log_posterior(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, where: Tensor) -> Tensor:
        """log p(xs | xt) of each position, (N, V), normalised: for guidance that needs the whole law; `step` never makes it."""
        raise NotImplementedError


class Wrapped(TokenProcess):
    """A process around another, whose noise is its own; a subclass holds `inner` and says what it changes."""

    inner: TokenProcess

    def alpha(self, t: Tensor) -> Tensor:
        return self.inner.alpha(t)

    def dalpha(self, t: Tensor) -> Tensor:
        return self.inner.dalpha(t)

    def time_of(self, alpha: Tensor) -> Tensor:
        return self.inner.time_of(alpha)

    def span(self, length: int) -> int:
        return self.inner.span(length)

    def touch(self, x0: Tensor, touched: Tensor, t: Tensor, rng: Rng) -> Tensor:
        return self.inner.touch(x0, touched, t, rng)

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        return self.inner.prior(like, rng)

    def settled(self, xt: Tensor) -> Tensor:
        return self.inner.settled(xt)


@dataclass(frozen=True)
class Noising:
    """How times are drawn in training and in Monte Carlo bounds."""

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        """Corrupt the target positions of a batch; `stratum` (B, 2) is each row's slot in the global batch and that batch's size."""
        raise NotImplementedError


def stratified(rng: Rng, stratum: Tensor, spans: int = 1) -> Tensor:
    """Uniform numbers (B, spans) float64 in [0, 1): those of one span fall into one slot of the global batch each, (slot + u) / size,
    and those of one row are spread over its spans."""
    slot, size = stratum.double().unbind(1)
    place = (slot[:, None] + rng.uniform("time", (spans,))) / size[:, None]
    return (place + torch.arange(spans, device=place.device) * _GOLDEN) % 1.0


def spread(values: Tensor, length: int, size: int) -> Tensor:
    """Numbers of each span of `size` (B, spans) as numbers of the tokens (B, L), or (B,) when the row is one span."""
    if values.shape[1] == 1:
        return values[:, 0]
    return values.repeat_interleave(size, 1)[:, :length]


@dataclass(frozen=True)
class UniformTime(Noising):
    """t uniform on [t_min, 1], stratified over the global batch; the integral over [0, t_min] is left to `Process.boundary`."""

    t_min: float = 1e-3

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        length = x0.shape[1]
        size = process.span(length)
        t = spread(self.t_min + (1 - self.t_min) * stratified(rng, stratum, -(-length // size)), length, size)
        xt = keep_known(process.corrupt(x0, t, rng), x0, target)
        return Noised(xt, t, t.new_full(t.shape, 1 - self.t_min))


@dataclass(frozen=True)
class Bins(Noising):
    """One of `steps` equal bins (s, t), stratified over the global batch: the T-step bound (D3PM, Austin et al. 2021, eq. 1).

    The first bin is the reconstruction. The prior is that of `Masked` and `Matrix`, whose last bin begins at it; where alpha(1) > 0 the
    other processes owe KL( q(x1 | x0) || prior ) beside it.
    """

    steps: int = 1000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected 1 bin or more")

    def __call__(self, process: Process, x0: Tensor, target: Tensor, stratum: Tensor, rng: Rng) -> Noised:
        length = x0.shape[1]
        size = process.span(length)
        bins = (stratified(rng, stratum, -(-length // size)) * self.steps).floor()
        s, t = (spread(edge / self.steps, length, size) for edge in (bins, bins + 1))
        return Noised(keep_known(process.corrupt(x0, t, rng), x0, target), t, torch.full_like(t, self.steps), s)
