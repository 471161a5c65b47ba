"""The order of the data: what each process reads at each step, as a pure function of (seed, step, process)."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, Self, runtime_checkable

import torch

from textdiff.batch import Batch, Example, collate


@runtime_checkable
class Stream(Protocol):
    """A source too large to index. It is read again from the start when it ends; its state is saved with every checkpoint."""

    def shard(self, rank: int, world: int) -> Self:
        """The part of the stream that process `rank` of `world` reads."""
        ...

    def __iter__(self) -> Iterator[Example]: ...

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, as plain data."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was taken; the next `iter` goes on from there."""
        ...


def derived_seed(*parts: int) -> int:
    """A 63-bit seed of integers such as (seed, step, process)."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Placement:
    """How one global batch of `batch_size` rows is cut: contiguous micro-batches, `accumulation` of them for each process."""

    def __init__(self, batch_size: int, accumulation: int, rank: int, world: int) -> None:
        if batch_size % (world * accumulation):
            raise ValueError(
                f"the batch size {batch_size} cannot be cut evenly into {world} processes x {accumulation} accumulation steps: "
                f"choose a multiple of {world * accumulation}"
            )
        self.batch_size, self.accumulation, self.rank, self.world = batch_size, accumulation, rank, world
        self.share = batch_size // world  # rows that this process reads in a step

    def collate(self, examples: Sequence[Example], step: int, pad_id: int) -> list[Batch]:
        """This process's `share` examples of a step as micro-batches; row p of all rows ever read is sample p."""
        rows = self.share // self.accumulation
        batches = []
        for start in range(0, self.share, rows):
            slots = range(self.rank * self.share + start, self.rank * self.share + start + rows)
            ids = [step * self.batch_size + slot for slot in slots]
            strata = [(slot, self.batch_size) for slot in slots]
            batches.append(collate(examples[start : start + rows], pad_id, sample_id=ids, stratum=strata))
        return batches


class IndexedOrder:
    """Step i reads positions i B .. (i + 1) B of one endless row of epochs, each a permutation of all examples; nothing is dropped."""

    def __init__(self, examples: Sequence[Example], placement: Placement, seed: int, pad_id: int) -> None:
        if len(examples) == 0:
            raise ValueError("there are no training examples: check the data files and the length limits")
        self.examples, self.placement, self.seed, self.pad_id = examples, placement, seed, pad_id
        self._epoch, self._permutation = -1, torch.empty(0, dtype=torch.long)

    def index(self, position: int) -> int:
        """Which example stands at `position` in the row of epochs."""
        epoch, slot = divmod(position, len(self.examples))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
            self._epoch, self._permutation = epoch, torch.randperm(len(self.examples), generator=generator)
        return int(self._permutation[slot])

    def window(self, step: int) -> list[Batch]:
        """The micro-batches of this process at `step`."""
        first = step * self.placement.batch_size + self.placement.rank * self.placement.share
        examples = [self.examples[self.index(first + i)] for i in range(self.placement.share)]
        return self.placement.collate(examples, step, self.pad_id)

    def identity(self) -> dict[str, int]:
        """What must not change when a run is resumed."""
        return {"training examples": len(self.examples)}

    def state_dict(self) -> dict[str, Any]:
        """Empty: the step says everything."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""


class StreamOrder:
    """Step i reads the next `share` examples of this process's shard."""

    def __init__(self, stream: Stream, placement: Placement, pad_id: int) -> None:
        self.stream, self.placement, self.pad_id = stream.shard(placement.rank, placement.world), placement, pad_id
        self._iterator: Iterator[Example] | None = None

    def _next(self) -> Example:
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self.stream)
            example = next(self._iterator, None)
            if example is not None:
                return example
            self._iterator = None  # the end of an epoch: begin again, once
        raise ValueError(f"the training stream gave process {self.placement.rank} no example: check that the data is not empty")

    def window(self, step: int) -> list[Batch]:
        """The micro-batches of this process at `step`; steps must be asked for in order."""
        return self.placement.collate([self._next() for _ in range(self.placement.share)], step, self.pad_id)

    def identity(self) -> dict[str, int]:
        """What must not change when a run is resumed: a stream is cut by process."""
        return {"processes": self.placement.world}

    def state_dict(self) -> dict[str, Any]:
        """Where this process's shard stands."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to a saved place."""
        self.stream.load_state_dict(state)
        self._iterator = None
