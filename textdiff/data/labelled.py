"""Texts by kind, and rows that carry their kind as a label: what control is trained and judged on."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data import pydocs
from textdiff.data.collate import Blocks, Examples
from textdiff.data.corpora import resolve
from textdiff.data.tokenizer import encode

_LEAST_SHARE = 0.02  # of the rows, for a value of an attribute to be a kind


class Texts(NamedTuple):
    """Texts by kind."""

    kinds: list[str]
    train: list[list[str]]
    held_out: list[list[str]]  # the validation and the test split
    packed: bool  # whether texts are documents to be cut into rows, or a row each


def texts_by_kind(source: str, attribute: str) -> Texts:
    """builtin:pydocs by reference and docstrings, or rows such as E2E's, prompt `name[Aromi], food[Chinese]` and a response, by the value
    of `attribute`. Raises ValueError when the data has no two kinds."""
    if source == pydocs.NAME:
        splits = pydocs.load()
        parts = [[(str(_is_docstrings(text)), text) for text in part] for part in (splits.train, [*splits.validation, *splits.test])]
        train, held_out = (_sorted(part, ["False", "True"]) for part in parts)
        return Texts(["reference", "docstrings"], train, held_out, packed=True)
    pairs = resolve(source).pairs()
    parts = [[(_value(p.prompt, attribute), p.response) for p in part] for part in (pairs.train, [*pairs.validation, *pairs.test])]
    found = Counter(kind for kind, _ in parts[0] if kind)
    kinds = sorted(kind for kind, count in found.items() if count > _LEAST_SHARE * len(parts[0]))
    if len(kinds) < 2:
        raise ValueError(f"{source} has {len(kinds)} values of {attribute!r}, expected 2 or more, in prompts like {attribute}[value]")
    train, held_out = (_sorted(part, kinds) for part in parts)
    return Texts(kinds, train, held_out, packed=False)


def _sorted(part: Sequence[tuple[str, str]], kinds: Sequence[str]) -> list[list[str]]:
    return [[text for kind, text in part if kind == wanted] for wanted in kinds]


def _is_docstrings(text: str) -> bool:
    """Topics of the reference are headed by an underlined title."""
    return re.match(r"[^\n]*\n([*=~-])\1{2,}\n", text) is None


def _value(prompt: str, attribute: str) -> str:
    match = re.search(rf"(?:^|,)\s*{re.escape(attribute)}\[([^\]]*)\]", prompt)
    return match[1] if match else ""


class Labelled(Examples):
    """Rows of at most `length` tokens with their kind as `source`, every kind equally often: the kinds take turns, rarer ones begin anew.

    Raises ValueError when a kind has no row.
    """

    def __init__(self, texts: Sequence[Sequence[str]], packed: bool, tokenizer: PreTrainedTokenizerBase, length: int) -> None:
        self.rows: list[Sequence[Example]] = [
            Blocks(part, tokenizer, length) if packed else [_row(text, tokenizer, length) for text in part] for part in texts
        ]
        if not all(self.rows):
            raise ValueError(f"of {len(texts)} kinds of text {sum(not rows for rows in self.rows)} have no row: the data is too small")

    def __len__(self) -> int:
        return len(self.rows) * max(map(len, self.rows))

    def at(self, index: int) -> Example:
        rows = self.rows[index % len(self.rows)]
        return rows[index // len(self.rows) % len(rows)]._replace(source=[index % len(self.rows)])

    def spread(self, count: int) -> list[Example]:
        """`count` rows of each kind, evenly spaced, the kinds taking turns."""
        return [rows[i * len(rows) // count]._replace(source=[label]) for i in range(count) for label, rows in enumerate(self.rows)]


def _row(text: str, tokenizer: PreTrainedTokenizerBase, length: int) -> Example:
    ids = encode(tokenizer, text)[: length - 2]
    return Example([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id], [False] + [True] * (len(ids) + 1))
