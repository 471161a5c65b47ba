"""The data of a recipe: frozen settings that become flags, and the examples they give with a tokenizer."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from textdiff.data import pydocs
from textdiff.data.collate import Blocks, Examples, Pairs
from textdiff.data.corpora import Corpus, resolve
from textdiff.data.readers import Pair
from textdiff.data.splits import Splits
from textdiff.data.streaming import StreamBlocks, TextStream, open_stream

_STREAM_HELD_OUT = 500  # documents of a stream's validation and test splits when no limit is set


class Data(NamedTuple):
    """What a recipe trains, validates and tests on; only a streamed `train` is an endless iterable instead of a sequence."""

    train: Examples | StreamBlocks
    validation: Examples
    test: Examples
    description: str  # one line: source, sizes, sha256


@dataclass(frozen=True)
class TextData:
    """Documents packed into blocks, every token a target."""

    source: str = pydocs.NAME  # builtin:pydocs, a file, a folder, or org/name[:config][@revision] on the hub
    length: int = 128  # tokens per block
    column: str = "text"  # where rows hold their text
    isolate: bool = False  # keep attention inside each document of a block
    streaming: bool = False  # read the training text as it is used, in its own order; for text that does not fit in memory
    skip_bad_rows: bool = False  # count and report rows that cannot be read instead of stopping at the first
    train_limit: int | None = None  # use only so many training documents
    held_out_limit: int | None = None  # use only so many documents for validation, and for test

    def __post_init__(self) -> None:
        _check_limits(self.train_limit, self.held_out_limit)
        if self.streaming and self.train_limit is not None:
            raise ValueError("train_limit cannot limit a stream: leave one of train_limit and streaming out")

    def texts(self) -> Iterable[str]:
        """The raw training documents, to train a tokenizer on."""
        return self._stream().texts() if self.streaming else self._splits(self._corpus()).train

    def load(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        """The examples; raises ValueError when the source cannot be read, or fills no training block and no validation block."""
        if self.streaming:
            return self._load_stream(tokenizer)
        corpus = self._corpus()
        train, validation, test = (Blocks(texts, tokenizer, self.length, self.isolate) for texts in self._splits(corpus))
        if train.tokens < self.length - 1:
            raise ValueError(f"{self.source} has {train.tokens} training tokens, less than one block of length {self.length}: shorten it")
        tokens = "/".join(f"{part.tokens:,}" for part in (train, validation, test))
        return Data(train, _held_out(validation, self.source), test, f"{corpus.description}; {tokens} tokens")

    def _load_stream(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        stream = self._stream()
        train = StreamBlocks(stream.rows, tokenizer, self.length, self.isolate, stream.buckets)
        validation, test = (Blocks(texts, tokenizer, self.length, self.isolate) for texts in (stream.validation, stream.test))
        held_out = Corpus(self.source, Splits([], stream.validation, stream.test))
        return Data(train, _held_out(validation, self.source), test, f"streamed; held out: {held_out.description}")

    def _corpus(self) -> Corpus:
        return resolve(self.source, (self.column,), self.skip_bad_rows)

    def _splits(self, corpus: Corpus) -> Splits[str]:
        train, validation, test = corpus.texts()
        return Splits(train[: self.train_limit], validation[: self.held_out_limit], test[: self.held_out_limit])

    def _stream(self) -> TextStream:
        return open_stream(self.source, self.column, self.skip_bad_rows, self.held_out_limit or _STREAM_HELD_OUT)


@dataclass(frozen=True)
class PairData:
    """Prompts with responses; the responses are the targets."""

    source: str  # a file, a folder, or org/name[:config][@revision] on the hub, with rows of two texts
    max_length: int = 128  # longest row; with `encoder`, longest prompt and longest response
    columns: tuple[str, str] | None = None  # prompt and response; recognised when named prompt and response, or src and trg
    encoder: bool = False  # the prompt goes to an encoder instead of before the response
    truncate: bool = False  # cut the end of prompts that are too long instead of stopping
    skip_bad_rows: bool = False  # count and report rows that cannot be read instead of stopping at the first
    train_limit: int | None = None  # use only so many training pairs
    held_out_limit: int | None = None  # use only so many pairs for validation, and for test

    def __post_init__(self) -> None:
        _check_limits(self.train_limit, self.held_out_limit)

    def texts(self) -> Iterable[str]:
        """The raw training prompts and responses, to train a tokenizer on."""
        return (text for pair in self._splits(self._corpus()).train for text in pair)

    def load(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        """The examples; raises ValueError when the source cannot be read, holds no pairs, or a pair is too long."""
        corpus = self._corpus()
        parts = [Pairs(pairs, tokenizer, self.max_length, self.encoder, self.truncate) for pairs in self._splits(corpus)]
        truncated = sum(part.truncated for part in parts)
        note = f"; {truncated} prompts truncated" if truncated else ""
        return Data(parts[0], _held_out(parts[1], self.source), parts[2], corpus.description + note)

    def _corpus(self) -> Corpus:
        return resolve(self.source, self.columns, self.skip_bad_rows)

    def _splits(self, corpus: Corpus) -> Splits[Pair]:
        train, validation, test = corpus.pairs()
        return Splits(train[: self.train_limit], validation[: self.held_out_limit], test[: self.held_out_limit])


def _held_out(validation: Blocks | Pairs, source: str) -> Blocks | Pairs:
    if not len(validation):
        raise ValueError(f"{source} is too small: its hash split leaves no validation text; name a folder with train and validation files")
    return validation


def _check_limits(*limits: int | None) -> None:
    for limit in limits:
        if limit is not None and limit < 1:
            raise ValueError(f"a limit is {limit}, expected at least 1 record")
