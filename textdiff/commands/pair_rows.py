"""How a model reads prompts with responses: as the run that made it did, or as plain rows."""

from collections.abc import Sequence
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from textdiff.data.collate import Pairs
from textdiff.data.layout import fitting
from textdiff.data.pair_shape import PairShape
from textdiff.data.readers import Pair
from textdiff.data.tokenizer import Encoder
from textdiff.decoding import has_encoder
from textdiff.evaluation.measuring import Texts
from textdiff.models.base import LanguageModel, TextDiffConfig
from textdiff.recipe import recorded


class PairReader(NamedTuple):
    """A model's rows of pairs: of a run on pairs its own shape, of any other model rows of at most `length` tokens."""

    name: str
    tokenizer: PreTrainedTokenizerBase
    encoder: bool
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
        return cls(name, model.tokenizer, has_encoder(model), shape, usual if length is None else length)

    def fitting(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs that the shape has room for; without a shape all of them, and one that is too long will be named by `rows`."""
        if self.shape is None:
            return list(pairs)
        return fitting(pairs, self.tokenizer, self.shape.source_length, self.shape.response_length)

    def rows(self, pairs: Sequence[Pair]) -> Pairs:
        """The rows of pairs."""
        if self.shape is None:
            return Pairs(pairs, self.tokenizer, self.length, self.encoder)
        return self.shape.rows(pairs, self.tokenizer)

    def too_long(self, pairs: Sequence[Pair]) -> tuple[Pair, str] | None:
        """The first pair that a row of no shape has no room for, and what of it has how many tokens; None where all fit."""
        encode = Encoder(self.tokenizer)
        prompts, responses = encode([pair.prompt for pair in pairs]), encode([pair.response for pair in pairs])
        for pair, prompt, response in zip(pairs, prompts, responses, strict=True):
            asked, answered = len(prompt.ids), len(response.ids)
            parts = {"BOS, prompt, separator, response and EOS": asked + answered + 3}
            if self.encoder:
                parts = {"the prompt": asked, "BOS, response and EOS": answered + 2}
            for what, tokens in parts.items():
                if tokens > self.length:
                    return pair, f"{what}: {tokens} tokens"
        return None


def readable(data: Texts, readers: Sequence[PairReader], given: bool) -> Texts:
    """The pairs that all models have rows for: what is longer than a run on pairs was made for is left out of every model's measurement.

    Raises ValueError when nothing is left, for a tokenizer that cannot end a response, and for a pair that is too long for another model,
    naming its number in the data, its length and what fits; `given` says that the user chose the models' length.
    """
    kept, left = [pair for pair in data.texts if isinstance(pair, Pair)], []
    for reader in readers:
        before, kept = len(kept), reader.fitting(kept)
        if not kept:
            raise ValueError(f"{reader.name} reads shorter rows than any pair of {data.description}: choose other data")
        left += [f"{before - len(kept)} too long for {reader.name} left out"] if len(kept) < before else []
    for reader in readers:
        if reader.tokenizer.eos_token_id is None:
            raise ValueError(f"{reader.name} has no EOS token, and nothing else can end a response: leave it out, or score texts")
        found = None if reader.shape else reader.too_long(kept)
        if found is not None:
            pair, parts = found
            raise ValueError(
                f"pair {data.texts.index(pair) + 1} ({pair.prompt[:40]!r}) is too long for {reader.name} ({parts}, {reader.length} fit): "
                f"{'raise length, or ' * given}take it out of the data, or leave the model out"
            )
    return data._replace(texts=kept, description="; ".join([data.description, *left]))
