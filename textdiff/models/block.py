"""How a trunk is asked about blocks: training and likelihood read whole rows at once as [xt ; x0], sampling one block after cached ones."""

from functools import cached_property, partial
from typing import NamedTuple

import torch
from torch import Tensor

from textdiff.backbones import attention_masks
from textdiff.backbones.base import Backbone, BlockContext, FinishedCache
from textdiff.batch import Batch
from textdiff.models.parameterisation import Parameterisation
from textdiff.models.self_conditioning import conditioned
from textdiff.prediction import Prediction
from textdiff.processes.base import per_token
from textdiff.processes.block import Block
from textdiff.projection import Head

Layers = tuple[tuple[Tensor, Tensor], ...]


class Network(NamedTuple):
    """What all predictors of one block diffusion model share."""

    backbone: Backbone
    head: Head
    process: Block
    parameterisation: Parameterisation
    shift: bool  # position l is read from the trunk's output at l - 1


class Rows(NamedTuple):
    """A batch of rows as block predictors need them."""

    tokens: Tensor  # (B, L) long; read as clean where a later block asks
    attend: Tensor  # (B, L) bool
    document: Tensor  # (B, L) long
    starts: Tensor  # (B, L) bool, the first position of each document
    context: BlockContext  # of the whole rows, without a mask

    @classmethod
    def of(cls, batch: Batch, context: BlockContext) -> "Rows":
        """The rows of a batch with the trunk's context of it."""
        everywhere = torch.arange(batch.tokens.shape[1], device=batch.tokens.device)
        starts = attention_masks.positions(attention_masks.apart(batch.document, batch.attend)) == 0
        return cls(batch.tokens, batch.attend, batch.document, starts, context.at(everywhere, None))

    def rows(self, index: Tensor) -> "Rows":
        """A subset of rows."""
        tokens, attend, document, starts, context = self
        return Rows(tokens[index], attend[index], document[index], starts[index], context.rows(index))


class PairedPredictor:
    """Every block of whole rows given the clean blocks before it, in one pass over [xt ; x0] (2L tokens, the clean half at noise 0)."""

    def __init__(self, network: Network, batch: Rows) -> None:
        self.network, self.batch = network, batch

    @cached_property
    def _context(self) -> BlockContext:
        tokens, attend, document, _, context = self.batch
        columns = torch.arange(tokens.shape[1], device=tokens.device).repeat(2)
        return context.at(columns, attention_masks.noisy_and_clean(attend, document, self.network.process.size))

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """Belief about x0 (B, L); the clean tokens are the batch's own. A self-conditioned trunk reads its own first belief."""
        return conditioned(self.network.backbone, self.network.head, previous, partial(self._read, xt, t))

    def alone(self, xt: Tensor, t: Tensor) -> Prediction:
        """Belief about x0 without a previous one."""
        return self._read(xt, t, None)

    def _read(self, xt: Tensor, t: Tensor, seen: Tensor | None) -> Prediction:
        network, tokens = self.network, self.batch.tokens
        noise = (1 - network.process.alpha(per_token(t))).expand(xt.shape)
        both = None if seen is None else torch.cat([seen, torch.zeros_like(seen)], dim=1)
        noise = torch.cat([noise, torch.zeros_like(noise)], dim=1)
        hidden, clean = network.backbone(torch.cat([xt, tokens], dim=1), self._context, noise, previous=both).chunk(2, dim=1)
        if network.shift:
            # the first token of a block is read from the last token of the finished block before it
            opens = torch.arange(xt.shape[1], device=xt.device) % network.process.size == 0
            hidden = torch.where(self.batch.starts[..., None], hidden, torch.where(opens[:, None], clean.roll(1, 1), hidden.roll(1, 1)))
        return network.parameterisation(hidden, network.head, network.process, xt, t)

    def rows(self, index: Tensor) -> "PairedPredictor":
        """The same for a subset of rows."""
        return PairedPredictor(self.network, self.batch.rows(index))

    def extend(self, tokens: Tensor) -> "BlockPredictor":
        """The predictor of the block after the first `tokens` (B, n), which are finished."""
        return BlockPredictor(self.network, self.batch).extend(tokens)


class BlockPredictor:
    """The block that follows finished ones, whose keys and values are kept: its canvas begins where they end."""

    def __init__(self, network: Network, batch: Rows, layers: Layers = (), last: Tensor | None = None) -> None:
        self.network, self.batch = network, batch
        self.layers = layers  # keys and values of the finished tokens
        self.last = last  # (B, 1, H) hidden state of the last of them
        self.finished = layers[0][0].shape[2] if layers else 0

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> Prediction:
        """Belief about x0 of the block, (B, n) with n at most the size of a block. A self-conditioned trunk reads its own first belief."""
        network, size = self.network, self.network.process.size
        if xt.shape[1] > size:
            raise ValueError(f"a canvas of {xt.shape[1]} tokens is longer than a block of {size}: extend the predictor block by block")
        return conditioned(network.backbone, network.head, previous, partial(self._belief, xt, t))

    def _belief(self, xt: Tensor, t: Tensor, seen: Tensor | None) -> Prediction:
        network = self.network
        hidden, _ = self._read(xt, 1 - network.process.alpha(t), seen)
        if network.shift:
            starts = self.batch.starts[:, self.finished : self.finished + xt.shape[1], None]
            last = hidden[:, :1] if self.last is None else self.last  # nothing is before the first block, which opens a document
            hidden = torch.where(starts, hidden, torch.cat([last, hidden[:, :-1]], dim=1))
        return network.parameterisation(hidden, network.head, network.process, xt, t)

    def rows(self, index: Tensor) -> "BlockPredictor":
        """The same for a subset of rows."""
        count = len(self.batch.tokens)
        if len(index) == count and torch.equal(index, torch.arange(count, device=index.device)):
            return self  # keys and values are too large to copy for nothing
        layers = tuple((keys[index], values[index]) for keys, values in self.layers)
        return BlockPredictor(self.network, self.batch.rows(index), layers, None if self.last is None else self.last[index])

    def extend(self, tokens: Tensor) -> "BlockPredictor":
        """The predictor of the block after `tokens` (B, n) too, one network call; this one stays valid.

        Raises ValueError unless they are whole blocks.
        """
        size = self.network.process.size
        if tokens.shape[1] % size:
            raise ValueError(f"{tokens.shape[1]} finished tokens are no whole blocks of {size}: extend by finished blocks only")
        if tokens.shape[1] == 0:
            return self
        hidden, layers = self._read(tokens, torch.zeros(len(tokens), dtype=torch.float64, device=tokens.device))
        return BlockPredictor(self.network, self.batch, layers, hidden[:, -1:])

    def _read(self, tokens: Tensor, noise: Tensor, previous: Tensor | None = None) -> tuple[Tensor, Layers]:
        """Hidden states of `tokens` after the finished ones, and the keys and values of both."""
        start, stop = self.finished, self.finished + tokens.shape[1]
        _, attend, document, _, context = self.batch
        mask = attention_masks.blockwise(attend[:, :stop], document[:, :stop], self.network.process.size, start)
        cache = FinishedCache(self.layers)
        hidden = self.network.backbone(tokens, context.at(torch.arange(start, stop, device=tokens.device), mask), noise, cache, previous)
        return hidden, tuple(cache.layers)
