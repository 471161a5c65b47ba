"""How a model reads prompts with responses: as the run that made it did, or as plain rows."""

from collections.abc import Sequence
from typing import NamedTuple

from textdiff.data.collate import Pairs
from textdiff.data.layout import fitting
from textdiff.data.pair_shape import PairShape
from textdiff.data.readers import Pair
from textdiff.decoding import has_encoder
from textdiff.models.base import LanguageModel, TextDiffConfig
from textdiff.recipe import recorded


class PairReader(NamedTuple):
    """A model's rows of pairs: of a run on pairs its own shape, of any other model rows of at most `length` tokens."""

    model: LanguageModel
    shape: PairShape | None
    length: int

    @classmethod
    def of(cls, model: LanguageModel, name: str, length: int | None, usual: int) -> "PairReader":
        """The reader of the model of a folder or hub id; raises ValueError for a model of spans, and for a `length` that its run did not
        have.
        """
        ours = isinstance(model.config, TextDiffConfig)  # a stock model has no record to be asked for
        recipe = (recorded(name) if ours else None) or {}
        if "spans" in recipe:
            raise ValueError(f"{name} was trained on spans of text, not on pairs: its results.json holds its bound")
        shape = PairShape.recorded(recipe)
        if shape is not None and length is not None:
            lengths = f"{shape.source_length} + {shape.response_length}"
            raise ValueError(f"length is {length} and {name} was trained on pairs of {lengths} tokens: leave it out")
        return cls(model, shape, usual if length is None else length)

    def fitting(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that the shape has room for; without a shape all of them, and one that is too long will be named by `rows`."""
        if self.shape is None:
            return list(pairs)
        return fitting(pairs, self.model.tokenizer, self.shape.source_length, self.shape.response_length)

    def rows(self, pairs: Sequence[Pair]) -> Pairs:
        """The rows of pairs."""
        if self.shape is None:
            return Pairs(pairs, self.model.tokenizer, self.length, has_encoder(self.model))
        return self.shape.rows(pairs, self.model.tokenizer)
