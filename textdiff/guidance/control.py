"""Control of Gaussian text diffusion by a classifier of noisy vectors that the model itself knows nothing of.

    Gradient:    x0hat += gamma (s^2 / a) grad log p(c | xt)      (Dhariwal and Nichol 2021; epshat -= gamma s grad)
    PlugAndPlay: a few signed-gradient updates of xs after each reverse step      (Diffusion-LM, Li et al. 2022, section 5.1)

With gamma = 1 and the exact p(c | xt), Gradient gives E[x0 | xt, c] (Tweedie's formula). What is known beforehand, a text's end or the
words around a gap, needs no classifier: those tokens are not targets.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.guidance.base import Guidance, GuidedDenoiser
from textdiff.guidance.vectors import MovingDenoiser, gaussian_process
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser, Predictor, Process, per_token
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.state_prediction import Moved, StatePrediction

_FAINTEST = 0.01  # a below which s^2 / a magnifies what a classifier makes of nothing


class VectorClassifier(Protocol):
    """log p(y | x): a `textdiff.models.classifier.NoisyClassifier` of Gaussian noise, or a known law."""

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        """(B, C) nats, or of each token (B, L, C), for vectors z (B, L, D) at noise levels s^2 (B,) or (B, L); attend (B, L)."""
        ...


@dataclass(frozen=True, eq=False)
class Control:
    """What a text is to be."""

    def log_prob(self, x: Tensor, noise: Tensor, batch: Batch) -> Tensor:
        """log p(wanted | x), (B,) nats, 0 in rows where nothing is; x (B, L, D) at noise levels s^2 (B,) or (B, L)."""
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Attribute(Control):
    """The class of a row is the first entry of its source, where it attends to that.

    Raises ValueError, when asked, for a source that is no label, a class that the classifier does not know and a classifier of tokens.
    """

    classifier: VectorClassifier

    def log_prob(self, x: Tensor, noise: Tensor, batch: Batch) -> Tensor:
        if batch.source.shape[1] not in (1, 1 + x.shape[1]):
            raise ValueError(f"the source is {tuple(batch.source.shape)}, expected one label per row, or one and a class per position")
        found = self.classifier.log_prob(x, noise, batch.attend)
        if found.dim() != 2:
            raise ValueError(f"Attribute needs a classifier of whole texts and this one gives {tuple(found.shape)}, of tokens: use Pattern")
        return _at_class(found, batch.source[:, 0], batch.source_attend[:, 0])


@dataclass(frozen=True, eq=False)
class Pattern(Control):
    """The classes of the tokens are the last L entries of a row's source, where it attends to them; only targets count.

    Raises ValueError, when asked, for a source of another length, a class that the classifier does not know and a classifier of texts.
    """

    classifier: VectorClassifier

    def log_prob(self, x: Tensor, noise: Tensor, batch: Batch) -> Tensor:
        length = x.shape[1]
        if batch.source.shape[1] not in (length, 1 + length):
            raise ValueError(f"the source is {tuple(batch.source.shape)}, expected a class for each of {length} positions")
        told = batch.source_attend[:, -length:] & batch.target
        found = self.classifier.log_prob(x, noise, batch.attend)
        if found.dim() != 3:
            raise ValueError(f"Pattern needs a classifier of tokens and this one gives {tuple(found.shape)}, of texts: use Attribute")
        return _at_class(found, batch.source[:, -length:], told).sum(1)


def _at_class(log_prob: Tensor, wanted: Tensor, told: Tensor) -> Tensor:
    """The entries of log_prob (..., C) at the wanted classes (...), 0 where they are not told; raises ValueError for a class beyond C."""
    wanted, classes = wanted.where(told, 0), log_prob.shape[-1]
    if bool(((wanted < 0) | (wanted >= classes)).any()):
        asked = f"{int(wanted.min())} .. {int(wanted.max())}"
        raise ValueError(f"the source asks for classes {asked} and the classifier knows 0 .. {classes - 1}: ask for one of those")
    return log_prob.gather(-1, wanted[..., None])[..., 0] * told


@dataclass(frozen=True, eq=False)
class Jointly(Control):
    """Several controls at once: log-probabilities add."""

    parts: tuple[Control, ...]

    def log_prob(self, x: Tensor, noise: Tensor, batch: Batch) -> Tensor:
        return torch.stack([part.log_prob(x, noise, batch) for part in self.parts]).sum(0)


@torch.enable_grad()
def _slope(control: Control, x: Tensor, noise: Tensor, batch: Batch) -> Tensor:
    """grad log p(wanted | x) at the targets, (B, L, D); raises ValueError for vectors that stand for no tokens."""
    if x.shape[:2] != batch.target.shape:
        raise ValueError(f"control needs a vector per token and the model's are {tuple(x.shape)}, latents: use ClassifierFree")
    x = x.detach().requires_grad_()
    slope = torch.autograd.grad(control.log_prob(x, noise, batch).sum(), x)[0]
    return slope.where(batch.target[..., None], 0.0)


class _Unaware(GuidedDenoiser):
    """A denoiser that is never told what is wanted of it, labels of rows or of positions; one that must have a source raises ValueError."""

    def predictor(self, batch: Batch) -> Predictor:
        try:
            return self.inner.predictor(batch._replace(source=batch.source[:, :0], source_attend=batch.source_attend[:, :0]))
        except ValueError as error:
            raise ValueError(f"control takes the source for what is wanted and tells the model nothing of it: {error}") from error


@dataclass(frozen=True, eq=False)
class Gradient(Guidance):
    """Classifier guidance; the gradient is the classifier's alone. The model is never told what is wanted, rows that do not attend to it
    are not guided, and the classifier's calls are not counted. Any sampler of Gaussian noise will do.
    Where a < 0.01, too faint a signal to tell a class by, the belief stays as it is: s^2 / a would magnify the classifier's own error.

    Raises ValueError for a negative gamma and noise that is not Gaussian.
    """

    control: Control
    gamma: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.gamma < float("inf"):
            raise ValueError(f"gamma is {self.gamma}, expected 0 (not guided) or more")

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        process = gaussian_process(denoiser.process)

        def move(belief: StatePrediction, xt: Tensor, t: Tensor, batch: Batch) -> Moved:
            a, s = process.levels(t)
            factor = (self.gamma * s**2 / a).where(a >= _FAINTEST, 0.0)
            shift = factor * _slope(self.control, xt, 1 - process.alpha(t), batch)
            return Moved(belief, belief.state() + shift.to(xt.dtype), belief.calls)

        return _Unaware(denoiser) if self.gamma == 0 else MovingDenoiser(_Unaware(denoiser), move)


class Steered(Moved):
    """A belief left where it is, and the batch that says what is wanted of it."""

    def __init__(self, inner: StatePrediction, batch: Batch) -> None:
        super().__init__(inner, inner.state(), inner.calls)
        self.batch = batch


@dataclass(frozen=True, eq=False)
class PlugAndPlay(Guidance):
    """After each reverse step to a time s, `updates` times: xs -= rate sign(grad J) at the targets, with mu and std those of the step and

        J = -log p(wanted | xs) + fluency * sum over numbers of (mu - xs)^2 / std        (divisor 1 where std is 0)

    which is Diffusion-LM's code: Adagrad begun anew for each update moves every number by the learning rate. Theirs, at 200 steps and with
    (fluency, rate): attributes (.01, .1), parts of speech (.0005, .05), trees (.0005, .2), spans (.1, .15). Rows of which nothing is wanted
    stay as they are, and the model is never told. The step itself is another, so `Ancestral` is the one sampler; the others refuse.

    Raises ValueError for numbers out of range and noise that is not Gaussian, and when sampled inside of other guidance.
    """

    control: Control
    updates: int = 3
    rate: float = 0.1
    fluency: float = 0.01
    floor: float = 0.05  # states at times below it are left as they are

    def __post_init__(self) -> None:
        if self.updates < 1 or min(self.rate, self.fluency) < 0 or not 0 <= self.floor <= 1:
            given = f"updates {self.updates}, rate {self.rate}, fluency {self.fluency}, floor {self.floor}"
            raise ValueError(f"{given}: expected 1 update or more, numbers of 0 or more and a time in [0, 1]")

    def __call__(self, denoiser: Denoiser) -> Denoiser:
        gaussian_process(denoiser.process)
        return _PlugAndPlayed(_Unaware(denoiser), self)

    def updated(self, xs: Tensor, mean: Tensor, std: Tensor, noise: Tensor, batch: Batch) -> Tensor:
        """xs (B, L, D) at noise levels s^2 (B,) or (B, L) moved; mean and std of the step's law broadcast to it."""
        divisor = std.where(std > 0, 1.0)
        for _ in range(self.updates):
            slope = _slope(self.control, xs, noise, batch)
            wanted = (slope != 0).flatten(1).any(1)[:, None, None] & batch.target[..., None]
            uphill = slope - 2 * self.fluency * (xs - mean) / divisor
            xs = xs + (self.rate * uphill.sign()).where(wanted, 0.0).to(xs.dtype)
        return xs


@dataclass(frozen=True)
class ControlledSteps(Process):
    """Gaussian noise whose reverse steps are followed by a control's updates; no `Gaussian`, because the steps are not that process's."""

    inner: Gaussian = field(default_factory=Gaussian, kw_only=True)
    guidance: PlugAndPlay = field(kw_only=True)

    def prior(self, like: Tensor, rng: Rng) -> Tensor:
        return self.inner.prior(like, rng)

    def step(self, pred: Prediction, xt: Tensor, t: Tensor, s: Tensor, rng: Rng) -> Tensor:
        """One step of the process, and the updates."""
        if not isinstance(pred, Steered):
            raise ValueError("control of reverse steps must be the outermost: put other guidance inside of it")
        xs = self.inner.step(pred.inner, xt, t, s, rng)
        high = per_token(s) >= self.guidance.floor
        if not bool(high.any()):
            return xs
        mean, small, large = self.inner.posterior(pred.state(), xt, t, s)
        std = (large.where(small > 0, 0.0) if self.inner.large_variance else small).sqrt()
        moved = self.guidance.updated(xs, mean, std, 1 - self.inner.alpha(s).where(s > 0, 1.0), pred.batch)
        return moved.where(high[..., None], xs)


class _PlugAndPlayed(MovingDenoiser):
    def __init__(self, inner: Denoiser, guidance: PlugAndPlay) -> None:
        super().__init__(inner, lambda belief, xt, t, batch: Steered(belief, batch))
        self.guidance = guidance

    @property
    def process(self) -> Process:
        process = gaussian_process(self.inner.process)
        return ControlledSteps(process.schedule, inner=process, guidance=self.guidance)
