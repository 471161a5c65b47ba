"""A model whose costs are written in its data, and texts to measure with it."""

from typing import Any

import torch
from torch import Tensor

from tests.data.texts import byte_level, documents, sentence
from textdiff.batch import Batch
from textdiff.evaluation.measurement import Measurement
from textdiff.evaluation.measuring import Settings, Texts
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

DOCUMENTS = Texts("documents", "document", [*documents(11), "", sentence(5, 60)])
SHORT = Settings(length=12, stride=5, draws=3, batch_size=4)
MANY = Texts("many", "passage", [sentence(i, 3 + i % 20) for i in range(80)])
TARGET = Settings(length=64, draws=2, batch_size=8, target_se=0.06)


class Given(torch.nn.Module):
    """A model whose cost is written in the data: a token costs its id modulo 7, and a row as much noise as it has targets."""

    max_length = 64

    def __init__(self, nll_is_bound: bool = True, noise: float = 1.0) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.tokenizer, self.vocab = byte_level(), Vocab.of(byte_level())
        self.nll_is_bound, self.noise, self.rows = nll_is_bound, noise, 0

    def calls(self, draws: int) -> int:
        return draws if self.nll_is_bound else 1

    def pilot(self, batch: Batch, seed: int, draws: int) -> None:
        return None

    def mean_nll(self, batch: Batch, seed: int, draws: int, pilot: object = None) -> Tensor:
        self.rows += len(batch.tokens)
        noise = Rng(seed, 0, batch.sample_id).normal("noise", ()) * self.noise / draws**0.5 if self.nll_is_bound else 0
        return (batch.tokens % 7 * batch.target).double().sum(1) + noise * batch.target.sum(1)


def given(**options: Any) -> Any:
    return Given(**options)


def stop_after(batches: int) -> Any:
    asked: list[int] = []
    return lambda: asked.append(0) or len(asked) > batches  # type: ignore[func-returns-value]


def nats_per_token(found: Measurement) -> float:
    return sum(score.nats for score in found.scores) / sum(score.tokens for score in found.scores)
