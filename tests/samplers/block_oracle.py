"""The exact denoiser of a Markov source under block diffusion: each block given the clean tokens before it, and nothing after it."""

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from textdiff.batch import Batch
from textdiff.oracle import Markov, Oracle
from textdiff.prediction import Prediction, TablePrediction
from textdiff.processes.base import per_token
from textdiff.processes.block import Block


@dataclass(frozen=True)
class BlockOracle:
    source: Markov
    process: Block
    calls: list[tuple[int, int]] = field(default_factory=list)  # (finished tokens, rows) of each call, an extension's tokens negative

    @classmethod
    def of(cls, source: Markov, process: Block) -> "BlockOracle":
        return cls(source, process.bind(source.vocab))

    def predictor(self, batch: Batch) -> "WholeRows":
        return WholeRows(self, batch)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        return x0


@dataclass(frozen=True)
class WholeRows:
    """Block by block over whole rows whose clean tokens are the batch's own."""

    oracle: BlockOracle
    batch: Batch

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        size, times = self.oracle.process.size, per_token(t).expand(xt.shape)
        parts = []
        for start in range(0, xt.shape[1], size):
            here = slice(start, start + size)
            parts.append(self.extend(self.batch.tokens[:, :start])(xt[:, here], times[:, here]).table)
        return TablePrediction(torch.cat(parts, dim=1))

    def rows(self, index: Tensor) -> "WholeRows":
        return replace(self, batch=self.batch.rows(index))

    def extend(self, tokens: Tensor) -> "AfterPrefix":
        return AfterPrefix(self.oracle, self.batch, self.batch.tokens[:, :0]).extend(tokens)


@dataclass(frozen=True)
class AfterPrefix:
    """The block after a prefix."""

    oracle: BlockOracle
    batch: Batch
    prefix: Tensor  # (B, n)

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        start = self.prefix.shape[1]
        stop = start + xt.shape[1]
        self.oracle.calls.append((start, len(xt)))
        row = torch.cat([self.prefix, xt], dim=1)
        batch = Batch.of(row, target=self.batch.target[:, :stop].clone(), attend=self.batch.attend[:, :stop])
        batch.target[:, :start] = False  # finished: known
        inner = Oracle(self.oracle.source, self.oracle.process.inner)
        return TablePrediction(inner.predictor(batch)(row, per_token(t).expand(xt.shape)[:, :1].expand(row.shape)).table[:, start:])

    def rows(self, index: Tensor) -> "AfterPrefix":
        return replace(self, batch=self.batch.rows(index), prefix=self.prefix[index])

    def extend(self, tokens: Tensor) -> "AfterPrefix":
        assert tokens.shape[1] % self.oracle.process.size == 0
        if tokens.shape[1]:
            self.oracle.calls.append((-tokens.shape[1], len(tokens)))
        return replace(self, prefix=torch.cat([self.prefix, tokens], dim=1))
