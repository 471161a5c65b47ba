"""How pairs become rows: the same prompts and responses in every family."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase

from textdiff.data.collate import Pairs
from textdiff.data.readers import Pair


class PairShape(NamedTuple):
    """How pairs become rows: the same prompts and responses in every family."""

    source_length: int
    response_length: int
    encoder: bool
    fill: bool

    @classmethod
    def recorded(cls, recipe: Mapping[str, Any]) -> "PairShape | None":
        """That of a run's recipe as plain data, whatever class it is of; None where it was no run on pairs."""
        return cls(*(recipe[name] for name in cls._fields)) if all(name in recipe for name in cls._fields) else None

    @property
    def row_length(self) -> int:
        """Tokens of the longest row that the trunk reads: with BOS, and with the prompt and its separator where they are part of it."""
        return self.response_length + (1 if self.encoder else self.source_length + 2)

    def rows(self, pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase) -> Pairs:
        """The rows of pairs that fit; prompts that do not lose their end, at the same token in every family."""
        longest = max(self.row_length, self.source_length) if self.encoder else self.row_length
        filled = self.response_length if self.fill else None
        return Pairs(pairs, tokenizer, longest, self.encoder, truncate=True, fill=filled, prompt_length=self.source_length)
