"""Texts with a gap to fill: the same words of each text for every tokenizer, with as much of the text around them as a model reads."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data.collate import Examples
from textdiff.data.readers import ROW_SUFFIXES, BadRows, read_rows
from textdiff.data.tokenizer import Encoder

_COLUMNS = ("prefix", "middle", "suffix")


class Gap(NamedTuple):
    """Which characters of a text are to be written again."""

    text: str
    start: int  # of the white space before the first word
    stop: int  # the end of the last word


def cut_gaps(texts: Sequence[str], words: int, seed: int = 0) -> list[Gap]:
    """A run of `words` words in each text that has more than that on both sides of it, at a place drawn by the text's number and the seed.

    Raises ValueError below 1 word, and where no text is long enough.
    """
    if words < 1:
        raise ValueError(f"gaps of {words} words were asked for, expected 1 or more")
    found = []
    for number, text in enumerate(texts):
        spans = [match.span() for match in re.finditer(r"\s*\S+", text)]
        places = len(spans) - words - 1  # a word at least stays on each side
        if places > 0:
            first = 1 + int(np.random.default_rng((seed, number)).integers(places))
            found.append(Gap(text, spans[first][0], spans[first + words - 1][1]))
    if not found:
        raise ValueError(f"no text has {words + 2} words, which a gap of {words} and a word on each side need: ask for fewer")
    return found


def read_gaps(path: Path) -> list[Gap] | None:
    """The gaps of a file of rows with the texts prefix, middle and suffix; None for another file.

    Raises ValueError naming the row without them, after a first one that has them, or with nothing in the middle or before it.
    """
    if path.suffix.lower() not in ROW_SUFFIXES or not path.is_file():
        return None
    found: list[Gap] = []
    for place, row in read_rows(path, BadRows(skip=False)):
        if not found and not all(name in row for name in _COLUMNS):
            return None
        found.append(_given(row, place))
    return found or None


def _given(row: dict[str, Any], place: str) -> Gap:
    missing = next((name for name in _COLUMNS if not isinstance(row.get(name), str)), None)
    if missing is not None:
        raise ValueError(f"{place}: no text under {missing}; a gap has {', '.join(_COLUMNS)}")
    before, middle, after = (row[name] for name in _COLUMNS)
    if not middle or not before:
        raise ValueError(f"{place}: the {'middle' if before else 'prefix'} is empty: a gap needs words in it, and something before it")
    return Gap(before + middle + after, len(before), len(before + middle))


class GapRows(Examples):
    """The rows of gaps, whose targets are the tokens that hold any of the gap's characters; `cut` of them lost text around it.

    `right` keeps what comes after the gap. A row that begins where its text does has BOS before it, else EOS. A row too long keeps what is
    nearest to the gap: half on each side, or more where the other side has less. Raises ValueError for a length that the gap alone fills.
    """

    def __init__(self, gaps: Sequence[Gap], tokenizer: PreTrainedTokenizerBase, length: int, right: bool = True) -> None:
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self._rows: list[Example] = []
        self.cut = 0
        for number, (gap, encoded) in enumerate(zip(gaps, Encoder(tokenizer)([gap.text for gap in gaps]), strict=True)):
            begin, end = _held(gap, encoded.sizes)
            stop = len(encoded.ids) if right else end
            start_id = [] if first is None else [first]
            room = length - (end - begin)
            if room < 1:
                raise ValueError(f"gap {number + 1} has {end - begin} tokens and rows have {length}, with something before it: shorten it")
            after = min(stop - end, max(room // 2, room - begin - len(start_id)))
            left = min(begin, room - after)
            whole = left == begin and len(start_id) <= room - after - left
            self.cut += not whole or after < stop - end
            ids = (start_id if whole else []) + encoded.ids[begin - left : end + after].tolist()
            place = len(ids) - after - (end - begin)
            target = [False] * place + [True] * (end - begin) + [False] * after
            self._rows.append(Example(ids, target, text_bytes=int(encoded.sizes[begin:end].sum())))

    def __len__(self) -> int:
        return len(self._rows)

    def at(self, index: int) -> Example:
        """The row of gap number `index`, with its own tokens in it."""
        return self._rows[index]


def _held(gap: Gap, sizes: NDArray[np.int64]) -> tuple[int, int]:
    """The first of the tokens that hold bytes of the gap, and the one after the last."""
    ends = np.cumsum(sizes)
    first, last = len(gap.text[: gap.start].encode()), len(gap.text[: gap.stop].encode())
    begin = int(np.searchsorted(ends, first, side="right"))
    return begin, int(np.searchsorted(ends, last, side="left")) + 1
