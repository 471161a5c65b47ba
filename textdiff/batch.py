"""The one currency of training, sampling and evaluation."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Example(NamedTuple):
    """One row before padding; `target` marks what is noised, generated and scored."""

    tokens: Sequence[int]
    target: Sequence[bool]
    document: Sequence[int] | None = None  # None: one document; else the number of each token's document, from 1
    source: Sequence[int] = ()
    text_bytes: int = 0  # UTF-8 bytes of the text that the target tokens stand for; the unit of bits/byte


class Batch(NamedTuple):
    """Right-padded rows; every field is a tensor, so that a batch can be gathered, padded and concatenated."""

    tokens: Tensor  # (B, L) long
    target: Tensor  # (B, L) bool   noised, generated and scored here
    attend: Tensor  # (B, L) bool   False where the network must not look (padding)
    document: Tensor  # (B, L) long   0 when unpacked; attention stays inside one number, positions restart in each
    source: Tensor  # (B, S) long   encoder input or condition; S = 0 when there is none
    source_attend: Tensor  # (B, S) bool
    sample_id: Tensor  # (B,) long   global index of the example: keys its noise
    stratum: Tensor  # (B, 2) long   slot in the global optimizer batch, and that batch's size: keys its time

    @classmethod
    def of(
        cls,
        tokens: Tensor,
        target: Tensor | None = None,
        attend: Tensor | None = None,
        document: Tensor | None = None,
        source: Tensor | None = None,
        source_attend: Tensor | None = None,
        sample_id: Tensor | None = None,
        stratum: Tensor | None = None,
    ) -> "Batch":
        """A batch of `tokens` (B, L): everything is a target unless said otherwise, row i is sample i of a batch of B."""
        rows, device = len(tokens), tokens.device
        index = torch.arange(rows, device=device)
        source = tokens.new_zeros(rows, 0) if source is None else source
        return cls(
            tokens=tokens,
            target=torch.ones_like(tokens, dtype=torch.bool) if target is None else target,
            attend=torch.ones_like(tokens, dtype=torch.bool) if attend is None else attend,
            document=torch.zeros_like(tokens) if document is None else document,
            source=source,
            source_attend=torch.ones_like(source, dtype=torch.bool) if source_attend is None else source_attend,
            sample_id=index if sample_id is None else sample_id,
            stratum=torch.stack([index, torch.full_like(index, rows)], dim=1) if stratum is None else stratum,
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(*(field.to(device, non_blocking=True) for field in self))

    def rows(self, index: Tensor) -> "Batch":
        """A subset of rows; `index` (N,) long or (B,) bool."""
        return Batch(*(field[index] for field in self))


class Clean(NamedTuple):
    """The clean data twice: as ids and as the state that the process noises (the same tensor for token processes)."""

    tokens: Tensor  # (B, L) long
    x: Tensor  # (B, L) long, or (B, L, D) float


def collate(
    examples: Sequence[Example], pad_id: int, sample_id: Sequence[int] | None = None, stratum: Sequence[tuple[int, int]] | None = None
) -> Batch:
    """Right-pad examples into a batch; padding is neither target nor attended to. Row i is sample i unless `sample_id` says otherwise."""
    rows = len(examples)
    length = max(len(e.tokens) for e in examples)
    source_length = max(len(e.source) for e in examples)
    tokens = torch.full((rows, length), pad_id)
    target = torch.zeros(rows, length, dtype=torch.bool)
    attend = torch.zeros(rows, length, dtype=torch.bool)
    document = torch.zeros(rows, length, dtype=torch.long)
    source = torch.full((rows, source_length), pad_id)
    source_attend = torch.zeros(rows, source_length, dtype=torch.bool)
    for i, example in enumerate(examples):
        n, s = len(example.tokens), len(example.source)
        tokens[i, :n] = torch.as_tensor(example.tokens)
        target[i, :n] = torch.as_tensor(example.target, dtype=torch.bool)
        attend[i, :n] = True
        if example.document is not None:
            document[i, :n] = torch.as_tensor(example.document)
        source[i, :s] = torch.as_tensor(example.source, dtype=torch.long)
        source_attend[i, :s] = True
    index = torch.arange(rows) if sample_id is None else torch.as_tensor(sample_id)
    slots = torch.stack([torch.arange(rows), torch.full((rows,), rows)], 1) if stratum is None else torch.as_tensor(stratum)
    return Batch(tokens, target, attend, document, source, source_attend, index, slots)
