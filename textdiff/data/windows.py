"""Texts as rolling windows, so that every token counts once however long its text, and long texts as passages.

With [start] before a text and `length` tokens in a row, a first window is [start] and up to length - 1 tokens, all of them counted. Every
later window counts the next tokens, up to `stride`, after as much of the clean text before them as fits in the row; it has no [start]:
    length 5, stride 2    [start] a* b* c* d*    c d e* f*: 4 tokens, one more fits in front -> b c d e* f*    d e f g* h*  ...
This is lm-eval's rolling log-likelihood with max_seq_len = length - 1 (it does not feed the last target) and context_len = length - stride.
It is also the sliding window of transformers' perplexity guide over [start] and the text, but for the last window of a text, where the
guide keeps its begin and thus less context than fits.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data.collate import Examples
from textdiff.data.tokenizer import Encoder


class Extent(NamedTuple):
    """How much text a text is, whatever the tokenizer."""

    text_bytes: int  # UTF-8
    characters: int  # Unicode code points
    words: int  # runs of characters that are not white space

    @classmethod
    def of(cls, text: str) -> "Extent":
        """That of one text."""
        return cls(len(text.encode()), len(text), len(text.split()))


class Windows(Examples):
    """Rolling windows over texts in their order, `text_of` (windows,) telling whose they are; every token is a target once.

    `stride` is the counted tokens of a text's later windows, half of `length` unless given; `end` counts EOS after each text. The start is
    BOS, else EOS; without either the first token of each text is context only, and a text of one token has no window. Raises ValueError
    for a length below 2, a stride outside [1, length - 1], and an `end` that the tokenizer lacks.
    """

    def __init__(
        self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, length: int, stride: int | None = None, end: bool = False
    ) -> None:
        self.length, self.stride = length, max(1, length // 2) if stride is None else stride
        if length < 2:
            raise ValueError(f"length is {length}, expected at least 2: one token of context and one to predict")
        if not 1 <= self.stride < length:
            raise ValueError(f"stride is {stride}, expected 1 to {length - 1}, which leaves a token of context in a window of {length}")
        if end and tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no EOS token to count after each text: leave end out")
        self.start: str | None = tokenizer.eos_token if tokenizer.bos_token_id is None else tokenizer.bos_token
        start_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        before, after = [] if start_id is None else [start_id], [tokenizer.eos_token_id] if end else []
        self._rows: list[NDArray[np.int32]] = []  # each text with its start and its end
        self._sizes: list[NDArray[np.int32]] = []  # bytes that each of them stands for
        for encoded in Encoder(tokenizer)(texts):
            self._rows.append(np.concatenate([before, encoded.ids, after]).astype(np.int32))
            self._sizes.append(np.concatenate([[0] * len(before), encoded.sizes, [0] * len(after)]).astype(np.int32))
        counts = np.array([self._windows(len(row)) for row in self._rows], dtype=np.int64)
        self.text_of: NDArray[np.int64] = np.repeat(np.arange(len(counts)), counts)
        self._first = np.cumsum(counts) - counts  # number of each text's first window

    def _windows(self, tokens: int) -> int:
        """Of a text with so many tokens, its start included."""
        return 0 if tokens < 2 else 1 + max(0, -((self.length - tokens) // self.stride))

    def __len__(self) -> int:
        return len(self.text_of)

    def at(self, index: int) -> Example:
        """Window number `index`."""
        text = int(self.text_of[index])
        row, sizes, later = self._rows[text], self._sizes[text], index - int(self._first[text])
        counted = 1 if later == 0 else self.length + (later - 1) * self.stride  # the first token that counts
        stop = min(self.length + later * self.stride, len(row))
        begin = max(0, stop - self.length)
        target = [False] * (counted - begin) + [True] * (stop - counted)
        return Example(row[begin:stop].tolist(), target, text_bytes=int(sizes[counted:stop].sum()))


def passages(texts: Sequence[str], characters: int) -> list[str]:
    """The texts cut into passages of at most so many characters each; joined they are the texts.

    A passage ends at the last line end that fits, else at the last white space, else in a word. Where it ends depends on no tokenizer, so
    models of different tokenizers are compared on the same sequences, and one long file has many. Raises ValueError below 1 character.
    """
    if characters < 1:
        raise ValueError(f"passages of {characters} characters were asked for, expected 1 or more")
    return [passage for text in texts for passage in _cut(text, characters)]


def _cut(text: str, characters: int) -> list[str]:
    found, begin = [], 0
    while len(text) - begin > characters:
        stop = begin + characters
        line = text.rfind("\n", begin, stop) + 1
        space = next((i + 1 for i in range(stop - 1, begin - 1, -1) if text[i].isspace()), 0) if line == 0 else line
        found.append(text[begin : space or stop])
        begin = space or stop
    return [*found, text[begin:]]
