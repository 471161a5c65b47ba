"""A denoiser that notes every network call, so that tests can count what a sampler asks of it."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.oracle import Markov, Oracle
from textdiff.prediction import Prediction
from textdiff.processes.base import Denoiser, Predictor, Process
from textdiff.processes.masked import Masked
from textdiff.schedules import LogLinear, Schedule

# A joint law of two dependent tokens over three states, as a chain: exact first-hitting, finite steps and product laws all differ.
PAIR = Markov(
    torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64),
    torch.tensor([[0.8, 0.15, 0.05], [0.1, 0.7, 0.2], [0.05, 0.25, 0.7]], dtype=torch.float64),
    length=2,
)
# Not stationary: no two masked positions tie, so rounding cannot change an order.
CHAIN = Markov(torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64), Markov.random(4, 7, seed=1).transition, length=7)


def oracle(source: Markov, schedule: Schedule | None = None) -> Oracle:
    return Oracle.of(source, Masked(LogLinear() if schedule is None else schedule))


def pair_law() -> Tensor:
    """p(first, second), (3, 3)."""
    return PAIR.initial[:, None] * PAIR.transition


def frequencies(samples: Tensor) -> Tensor:
    """Shares of the nine pairs among samples (N, 2)."""
    return (torch.bincount(samples[:, 0] * 3 + samples[:, 1], minlength=9).double() / len(samples)).view(3, 3)


def assert_law(samples: Tensor, exact: Tensor) -> None:
    """The pairs follow `exact` (3, 3) by chi-square on 8 degrees of freedom: 26.1 is exceeded once in a thousand."""
    frequency = frequencies(samples)
    assert float(len(samples) * ((frequency - exact) ** 2 / exact).sum()) < 26.1


def blank(rows: int, length: int, sample_id: Tensor | None = None) -> Batch:
    return Batch.of(torch.zeros(rows, length, dtype=torch.long), sample_id=sample_id)


@dataclass
class Call:
    """One network call."""

    xt: Tensor  # (B, L) long, the rows it was given
    t: Tensor  # (B,)
    asked: list[Tensor] = field(default_factory=list)  # (B, L) bool, each place the vocabulary was projected at


class WatchedPrediction(Prediction):
    def __init__(self, inner: Prediction, call: Call) -> None:
        self.inner, self.call = inner, call
        self.shape, self.device = inner.shape, inner.device

    def logits(self, where: Tensor | None = None) -> Tensor:
        assert where is not None, "nothing here needs the whole (B, L, V)"
        self.call.asked.append(where)
        return self.inner.logits(where)


class WatchedPredictor:
    def __init__(self, inner: Predictor, calls: list[Call]) -> None:
        self.inner, self.calls = inner, calls

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        self.calls.append(Call(xt, t))
        return WatchedPrediction(self.inner(xt, t, previous), self.calls[-1])

    def rows(self, index: Tensor) -> "WatchedPredictor":
        return WatchedPredictor(self.inner.rows(index), self.calls)


class Watched:
    """Another denoiser, watched."""

    def __init__(self, inner: Denoiser) -> None:
        self.inner, self.calls = inner, list[Call]()

    @property
    def process(self) -> Process:
        return self.inner.process

    def predictor(self, batch: Batch) -> WatchedPredictor:
        return WatchedPredictor(self.inner.predictor(batch), self.calls)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return self.inner.canvas(batch)

    def decode(self, x0: Tensor) -> Tensor:
        return self.inner.decode(x0)
