"""Sampling that takes back what it wrote: ReMDM (Wang et al. 2025) for masks, and the psi-sampler for every token process.

A step of ReMDM masks each written token with probability sigma and writes more of the masked ones, so that the law of each token by
itself stays that of the process: a [MASK] is written with probability (alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t), which needs
sigma <= (1 - alpha_s) / alpha_t. Tokens written in one step are drawn independently, and how many there are does not fall with the number
of steps unless sigma does; but near the end all steps are small and mend what went before, so that the law still converges to the
denoiser's, like 1 / sqrt(steps) where ancestral sampling does like 1 / steps. What is gained is that a network's mistakes are mended too.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.base import Canvas, Sampler, require_steps, start
from textdiff.samplers.stepwise import Stepwise, Walk

_NEVER = torch.inf  # certainty of what was not written here: it is never masked for want of it


@dataclass(frozen=True)
class Remasking(Sampler):
    """ReMDM's loop; a subclass says how much is masked again.

    The vocabulary is projected where a token is written only, and a row takes part in a network call only when one is: at most `steps`
    calls. Known tokens are never masked.
    """

    requires: ClassVar[type[Masked]] = Masked
    steps: int = 128

    def __post_init__(self) -> None:
        require_steps(self.steps)

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
        """Chance that a written token is masked again, a number or (B, L); `certainty` (B, L) is the probability that each token had
        when it was written, infinite where none was."""
        raise NotImplementedError

    def times(self, process: Masked) -> Tensor:
        """The times of the noise levels that steps lead between, from 1 to 0, never rising, float64."""
        return torch.linspace(1, 0, self.steps + 1, dtype=torch.float64)

    @torch.no_grad()
    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        self.check(denoiser)
        process = denoiser.process
        assert isinstance(process, Masked)
        canvas, _, target = start(denoiser, batch, rng)
        predictor, times = denoiser.predictor(batch), self.times(process).to(target.device)
        alpha = process.alpha(times)
        alpha[0], alpha[-1] = 0, 1  # the prior is all [MASK], and the result has none, whatever the schedule cuts off
        certainty = torch.full(target.shape, _NEVER, dtype=torch.float64, device=target.device)
        yield canvas
        for i, (t, s) in enumerate(pairwise(range(len(times)))):
            step_rng, masked = rng.draw(i), process.is_masked(canvas.x) & target
            sigma = self.sigma(alpha[t], alpha[s], certainty)
            uniform = step_rng.uniform("reveal", target.shape[1:])
            written = masked & (uniform < (alpha[s] - (1 - sigma) * alpha[t]) / (1 - alpha[t]))
            erased = target & ~masked & (uniform < sigma)
            x, certainty = canvas.x.masked_fill(erased, process.mask_id), certainty.masked_fill(erased, _NEVER)
            rows = written.any(1)
            index, nfe = rows.nonzero()[:, 0], canvas.nfe
            if len(index):
                pred = predictor.rows(index)(canvas.x[index], times[t].expand(len(index)))
                drawn, log_prob = pred.draw(written[index], step_rng.rows(index))
                x, certainty = x.masked_scatter(written, drawn), certainty.masked_scatter(written, log_prob.double().exp())
                nfe = nfe + rows * pred.calls
            last = s == len(times) - 1
            canvas = Canvas(x, float(times[s]), nfe, torch.ones_like(target) if last else ~target)
            yield canvas


def largest(alpha_t: Tensor, alpha_s: Tensor) -> Tensor:
    """The largest sigma that keeps the law of each token: min(1, (1 - alpha_s) / alpha_t)."""
    return ((1 - alpha_s) / alpha_t.clamp_min(1e-300)).clamp_max(1.0)


@dataclass(frozen=True)
class _Share(Remasking):
    eta: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected a share of the written tokens in [0, 1]")


@dataclass(frozen=True)
class Capped(_Share):
    """sigma = min(eta, largest) (ReMDM-cap)."""

    law: ClassVar[str] = "limit"
    eta: float = 0.008

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
        return largest(alpha_t, alpha_s).clamp_max(self.eta)


@dataclass(frozen=True)
class Rescaled(_Share):
    """sigma = eta * largest (ReMDM-rescale)."""

    law: ClassVar[str] = "limit"
    eta: float = 0.015

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
        return self.eta * largest(alpha_t, alpha_s)


@dataclass(frozen=True)
class ConfidenceBased(_Share):
    """sigma = eta * largest, shared out among a row's written tokens by softmax(-probability when written) (ReMDM-conf): about eta
    tokens are masked again in a step. What is masked depends on the prediction, so not even the law of one token is kept: "approximate"."""

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
        share = (-certainty).softmax(-1).nan_to_num(0.0)  # nan: a row in which nothing is written yet
        return self.eta * largest(alpha_t, alpha_s) * share


@dataclass(frozen=True)
class Loop(_Share):
    """ReMDM-loop: the signal rises to `on` while the clock falls from 1 to `first`, is held there with sigma = min(eta, largest) until
    the clock shows `last`, and then rises to 1; outside the loop nothing is masked again. The dependence that tokens written together
    lack stays in the result, however many steps there are: "approximate"."""

    eta: float = 0.02
    on: float = 0.9
    first: float = 0.55
    last: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (0 < self.on < 1 and 0 < self.last < self.first < 1):
            raise ValueError(f"on is {self.on}, first {self.first} and last {self.last}: expected 0 < on < 1 and 0 < last < first < 1")

    def times(self, process: Masked) -> Tensor:
        clock = super().times(process)
        before, after = self.on * (1 - clock) / (1 - self.first), 1 - (1 - self.on) * clock / self.last
        alpha = torch.where(clock > self.first, before, torch.where(clock < self.last, after, self.on))
        times = process.time_of(alpha).clamp(0, 1)
        times[0], times[-1] = 1, 0
        return times

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
        return largest(alpha_t, alpha_s).clamp_max(self.eta) * (alpha_t == alpha_s)


@dataclass(frozen=True)
class ForwardBackward(Remasking):
    """sigma = (alpha_s - alpha_t) / alpha_t, at most the largest: as a forward step after each backward one (Campbell et al. 2022).
    It falls with the number of steps, so the law converges like 1 / steps."""

    law: ClassVar[str] = "limit"

    def sigma(self, alpha_t: Tensor, alpha_s: Tensor, certainty: Tensor) -> Tensor:
        return torch.minimum((alpha_s - alpha_t) / alpha_t.clamp_min(1e-300), largest(alpha_t, alpha_s))


@dataclass(frozen=True)
class Psi(Stepwise):
    """With probability `kappa` a reverse step of the process, else x0 is drawn given the token and noised anew to level s.

    Every token by itself keeps the law of the process. kappa = 1 is ancestral sampling; on masks kappa = 1 - sigma / (1 - alpha_s) is ReMDM
    with that sigma. The law converges like 1 / sqrt(steps) below kappa = 1. A row takes part in a network call only when a token may be
    drawn from the prediction: at most `steps` calls.
    """

    law: ClassVar[str] = "limit"
    kappa: float = 0.95

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.kappa <= 1:
            raise ValueError(f"kappa is {self.kappa}, expected the chance of a reverse step in [0, 1]")

    def move(self, walk: Walk, x: Tensor, t: Tensor, s: Tensor, rng: Rng) -> tuple[Tensor, Tensor]:
        process, shape = walk.process, x.shape[1:]
        anew = (rng.uniform("anew", shape) >= self.kappa) & (s > 0)[:, None]
        noised = anew & (rng.uniform("noised", shape) >= process.alpha(s)[:, None])  # whatever x0 is, so it is not drawn
        before = torch.where(anew, 0.0, s[:, None]).where(walk.target & ~noised, t[:, None])  # a step from t to t changes nothing
        changes = process.changes(x, t, before, rng)

        def step(pred: Prediction, xt: Tensor, index: Tensor) -> Tensor:
            return process.step(pred, xt, t[index], before[index], rng.rows(index))

        x, calls = walk.update(x, t, walk.target if changes is None else changes & walk.target, step)
        return process.touch(x, noised, s, rng), calls
