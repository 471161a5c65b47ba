"""Continuous paragraph denoise (CPD): paragraphs of which one span is missing, what GENIE is pre-trained on (Lin et al. 2023).

    source    a b c [MASK] g h i          the paragraph, one [MASK] in the place of the span however long it was
    row       BOS  d* e* f* EOS*          the span, as `textdiff.data.collate.Pairs` has responses beside an encoder

A paragraph is a piece of at most `length` tokens of one document. GENIE's code never removes a paragraph's last token; here every place
at which the span fits is equally likely.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data.collate import Examples
from textdiff.data.tokenizer import Encoder
from textdiff.randomness import Rng


@dataclass(frozen=True)
class Spans:
    """Which paragraphs lose how much. Raises ValueError for numbers that leave nothing to read or to write."""

    length: int = 128
    """Tokens of a paragraph; documents are cut into such."""
    shortest: int = 16
    """Tokens of the shortest; shorter documents, and ends of documents, are left out."""
    share: float = 0.3
    """Of a paragraph's tokens that are missing, rounded down, at least one."""

    def __post_init__(self) -> None:
        if not 2 <= self.shortest <= self.length:
            raise ValueError(f"length is {self.length} and shortest {self.shortest}: expected 2 <= shortest <= length")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}, expected a part of a paragraph between 0 and 1")

    def size(self, tokens: int) -> int:
        """Tokens of the span of a paragraph of `tokens`."""
        return max(1, int(self.share * tokens + 1e-9))  # 0.29 * 100 is a little less than 29

    @property
    def fill(self) -> int:
        """Targets of the longest paragraph's span, its EOS included."""
        return self.size(self.length) + 1

    @property
    def source_length(self) -> int:
        """Tokens of the longest paragraph's source, its [MASK] included."""
        return self.length - self.size(self.length) + 1


class Denoising(Examples):
    """Every paragraph `draws` times, each time without a span of its own; with `fill` rows have `spans.fill` targets, EOS to the end.

    Row i is paragraph i % P of the P in order; its span's place is a function of (seed, i // P, i % P) alone, so a pass over all rows meets
    every paragraph `draws` times and the next pass repeats it. `left_out` counts the pieces that were too short. Raises ValueError for a
    tokenizer without a mask or EOS token.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, spans: Spans, fill: bool, draws: int = 1, seed: int = 0
    ) -> None:
        if tokenizer.mask_token_id is None or tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer lacks a mask token, which stands for the span, or an EOS token, which ends it: choose another")
        self.mask_id: int = tokenizer.mask_token_id
        self.end_id: int = tokenizer.eos_token_id
        self.start_id: int = self.end_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.spans, self.fill, self.draws, self.seed, self.left_out = spans, fill, draws, seed, 0
        self.paragraphs: list[tuple[NDArray[np.int32], NDArray[np.int32]]] = []  # ids, and the bytes they stand for
        for document in Encoder(tokenizer)(texts):
            for start in range(0, len(document.ids), spans.length):
                ids, sizes = (part[start : start + spans.length].astype(np.int32) for part in document)
                if len(ids) < spans.shortest:
                    self.left_out += 1
                else:
                    self.paragraphs.append((ids, sizes))

    def __len__(self) -> int:
        return self.draws * len(self.paragraphs)

    def at(self, index: int) -> Example:
        """Paragraph `index % P` without its span number `index // P`."""
        draw, number = divmod(index, len(self.paragraphs))
        ids, sizes = self.paragraphs[number]
        size = self.spans.size(len(ids))
        start = int(Rng(self.seed, draw, torch.tensor([number])).integers("span", (), len(ids) - size + 1))
        ends = self.spans.fill - size if self.fill else 1
        target = [*ids[start : start + size].tolist(), *[self.end_id] * ends]
        return Example(
            tokens=[self.start_id, *target],
            target=[False] + [True] * len(target),
            source=[*ids[:start].tolist(), self.mask_id, *ids[start + size :].tolist()],
            text_bytes=int(sizes[start : start + size].sum()),
        )

    def blank(self, row: Example) -> Example:
        """The same source with nothing of the span: all targets hold EOS."""
        return Example([self.start_id, *[self.end_id] * self.spans.fill], [False] + [True] * self.spans.fill, source=row.source)
