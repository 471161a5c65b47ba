"""Coarse classes of tokens told by their letters alone: what a token-class pattern asks for where no tagger is at hand.

They are no parts of speech: a class is a function of the token by itself, and a word of several tokens begins one and goes on in others.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data.collate import Examples

NAMES = ("other", "space", "punctuation", "number", "function", "capital", "verbal", "word", "piece")
_FUNCTION = re.compile(
    "a|an|and|are|as|at|be|been|but|by|can|do|for|from|has|have|if|in|into|is|it|its|may|must|no|not|of|on|or|should|that|the|their|then"
    "|there|these|they|this|to|was|were|when|which|will|with|you"
)


class TokenClasses(NamedTuple):
    """The class of every id."""

    of: Tensor  # (V,) long, numbers in `NAMES`

    @classmethod
    def read(cls, tokenizer: PreTrainedTokenizerBase, size: int) -> "TokenClasses":
        """The classes of the first `size` ids; special tokens and rows beyond the tokenizer are "other"."""
        special = set(tokenizer.all_special_ids)
        texts = ["" if i in special or i >= len(tokenizer) else str(tokenizer.decode([i])) for i in range(size)]
        return cls(torch.tensor([NAMES.index(class_of(text)) for text in texts]))

    def pattern(self, example: Example) -> list[int]:
        """The classes of a row's tokens."""
        found: list[int] = self.of[torch.as_tensor(example.tokens)].tolist()
        return found


def class_of(text: str) -> str:
    """The name of a token's class; a word that a space leads begins there, others go on."""
    word = text.strip()
    if not word:
        return "space" if text else "other"
    if re.fullmatch(r"[\d.,]*\d[\d.,]*", word):
        return "number"
    if not re.search(r"\w", word):
        return "punctuation"
    if _FUNCTION.fullmatch(word.lower()) and text != word:
        return "function"
    if word[0].isupper():
        return "capital"
    if text == word:
        return "piece"
    return "verbal" if re.search(r".(ing|ed)$", word) else "word"


class Tagged(Examples):
    """Rows with the classes of their tokens as `source`: what a classifier of each token learns from."""

    def __init__(self, rows: Sequence[Example], classes: TokenClasses) -> None:
        self.rows, self.classes = rows, classes

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, index: int) -> Example:
        row = self.rows[index]
        return row._replace(source=self.classes.pattern(row))
