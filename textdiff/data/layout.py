"""How text becomes rows: frozen settings that turn into flags, and the examples they give with a tokenizer."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data.collate import Blocks, Pairs
from textdiff.data.corpora import Corpus, resolve
from textdiff.data.readers import Pair
from textdiff.data.source import local_path
from textdiff.data.splits import Splits
from textdiff.data.streaming import StreamBlocks, TextStream, open_stream
from textdiff.data.tokenizer import Encoder

_STREAM_HELD_OUT = 500  # documents of a stream's validation and test splits when no limit is set


class Data(NamedTuple):
    """What a recipe trains, validates and tests on; only a streamed `train` is an endless iterable instead of a sequence."""

    train: Sequence[Example] | StreamBlocks
    validation: Sequence[Example]
    test: Sequence[Example]
    description: str  # one line: source, sizes, sha256


class Opened(Protocol):
    """A source that has been found and read."""

    length: int

    def texts(self) -> Iterable[str]:
        """The raw training text, to train a tokenizer on."""
        ...

    def examples(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        """The rows; raises ValueError when they do not fit, or when there are too few."""
        ...


@dataclass(frozen=True)
class Layout:
    """Documents are packed into blocks, every token a target; of prompts with responses the responses are the targets."""

    length: int = 128
    """Tokens of a row: of a block of packed text, or at most of a prompt with its response."""
    columns: tuple[str, ...] | None = None
    """The text column of rows, or their prompt and response columns (default: text, prompt and response, or src and trg)."""
    isolate: bool = False
    """Keep attention inside each document of a block."""
    truncate: bool = False
    """Cut the end of prompts that are too long instead of stopping."""
    streaming: bool = False
    """Read the training text as it is used, in its own order; for text that does not fit in memory."""
    skip_bad_rows: bool = False
    """Count and report rows that cannot be read instead of stopping at the first."""
    train_limit: int | None = None
    """Use only so many training documents or pairs."""
    held_out_limit: int | None = None
    """Use only so many for validation, and for test."""

    def __post_init__(self) -> None:
        for limit in (self.train_limit, self.held_out_limit):
            if limit is not None and limit < 1:
                raise ValueError(f"a limit is {limit}, expected at least 1 record")
        if self.length < 2:
            raise ValueError(f"length is {self.length}, expected at least 2: one token of context and one to predict")
        if self.streaming and self.train_limit is not None:
            raise ValueError("train_limit cannot limit a stream: leave one of train_limit and streaming out")
        if self.columns is not None and not 1 <= len(self.columns) <= 2:
            raise ValueError(f"columns are {list(self.columns)}, expected one text column, or a prompt and a response column")

    def open(self, source: str) -> Opened:
        """Find and read a source (see textdiff.data.corpora); raises ValueError with one line when that fails."""
        if not self.streaming:
            corpus = resolve(source, self.columns, self.skip_bad_rows)
            return _OpenedPairs(self, corpus) if corpus.holds_pairs else _OpenedText(self, corpus)
        column = "text" if self.columns is None else self.columns[0]
        if self.columns is not None and len(self.columns) == 2:
            raise ValueError("a stream reads one text column, and two were named: leave streaming off for prompts and responses")
        return _OpenedStream(self, source, open_stream(source, column, self.skip_bad_rows, self.held_out_limit or _STREAM_HELD_OUT))


class _OpenedText:
    def __init__(self, layout: Layout, corpus: Corpus) -> None:
        self.layout, self.corpus, self.length = layout, corpus, layout.length
        train, validation, test = corpus.texts()
        self.splits = Splits(train[: layout.train_limit], validation[: layout.held_out_limit], test[: layout.held_out_limit])

    def texts(self) -> Iterable[str]:
        return self.splits.train

    def examples(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        train, validation, test = (Blocks(texts, tokenizer, self.length, self.layout.isolate) for texts in self.splits)
        name = self.corpus.name
        if train.tokens < self.length - 1:
            raise ValueError(f"{name} has {train.tokens} training tokens, less than one block of {self.length}: shorten layout.length")
        tokens = "/".join(f"{part.tokens:,}" for part in (train, validation, test))
        return Data(train, _held_out(validation, name), test, f"{self.corpus.description}; {tokens} tokens")


class _OpenedPairs:
    def __init__(self, layout: Layout, corpus: Corpus) -> None:
        self.layout, self.corpus, self.length = layout, corpus, layout.length
        train, validation, test = corpus.pairs()
        self.splits = Splits(train[: layout.train_limit], validation[: layout.held_out_limit], test[: layout.held_out_limit])

    def texts(self) -> Iterable[str]:
        return (text for pair in self.splits.train for text in pair)

    def examples(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        layout = self.layout
        train, validation, test = (Pairs(pairs, tokenizer, layout.length, truncate=layout.truncate) for pairs in self.splits)
        truncated = train.truncated + validation.truncated + test.truncated
        note = f"; {truncated} prompts truncated" if truncated else ""
        return Data(train, _held_out(validation, self.corpus.name), test, self.corpus.description + note)


class _OpenedStream:
    def __init__(self, layout: Layout, source: str, stream: TextStream) -> None:
        self.layout, self.source, self.stream, self.length = layout, source, stream, layout.length

    def texts(self) -> Iterable[str]:
        return self.stream.texts()

    def examples(self, tokenizer: PreTrainedTokenizerBase) -> Data:
        layout, stream = self.layout, self.stream
        train = StreamBlocks(stream.rows, tokenizer, layout.length, layout.isolate, stream.buckets)
        validation, test = (Blocks(texts, tokenizer, layout.length, layout.isolate) for texts in (stream.validation, stream.test))
        held_out = Corpus(self.source, Splits([], stream.validation, stream.test))
        return Data(train, _held_out(validation, self.source), test, f"streamed; held out: {held_out.description}")


class Scored(NamedTuple):
    """Rows to measure a likelihood on."""

    examples: Sequence[Example]
    rows: Blocks | Pairs  # all of which `examples` are some
    description: str  # one line: source, split, what was left out


def scored_examples(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerBase,
    length: int,
    split: str | None,
    limit: int | None,
    pair_rows: Callable[[Sequence[Pair]], Pairs] | None = None,
) -> Scored:
    """Rows of at most `length` tokens, at most `limit` of them and evenly spaced; pairs become rows by `pair_rows` where that is given,
    which may leave some out.

    `split` is train, validation, test or all; None means all of a file or folder, and validation of an embedded corpus or a hub id.
    """
    if split is None:
        split = "validation" if local_path(corpus.name) is None else "all"
    if split not in (*Splits._fields, "all"):
        raise ValueError(f"there is no split {split!r}: expected train, validation, test or all")
    chosen = tuple(range(3)) if split == "all" else (Splits._fields.index(split),)
    rows: Blocks | Pairs
    left_out = 0
    if corpus.holds_pairs:
        pairs = [pair for i in chosen for pair in corpus.pairs()[i]]
        rows = Pairs(pairs, tokenizer, length) if pair_rows is None else pair_rows(pairs)
        left_out = len(pairs) - len(rows)
    else:
        rows = Blocks([text for i in chosen for text in corpus.texts()[i]], tokenizer, length)
    note = f", {left_out} too long for the model's rows left out" if left_out else ""
    if not len(rows):
        raise ValueError(f"the {split} split of {corpus.name} holds nothing to score{note}: choose other data")
    every = 1 if limit is None else math.ceil(len(rows) / limit)
    taken = [rows[i] for i in range(0, len(rows), every)]
    part = "" if every == 1 else f", {len(taken)} of {len(rows)} sequences"
    return Scored(taken, rows, f"{corpus.description}; split {split}{note}{part}")


def fitting(pairs: Sequence[Pair], tokenizer: PreTrainedTokenizerBase, source: int, response: int) -> list[Pair]:
    """The pairs whose prompt has at most `source` tokens, and whose response with its EOS at most `response`."""
    encode = Encoder(tokenizer)
    sizes = zip(pairs, encode([pair.prompt for pair in pairs]), encode([pair.response for pair in pairs]), strict=True)
    return [pair for pair, asked, answer in sizes if len(asked.ids) <= source and len(answer.ids) < response]


def _held_out(validation: Blocks | Pairs, source: str) -> Blocks | Pairs:
    if not len(validation):
        raise ValueError(f"{source} is too small: its hash split leaves no validation text; name a folder with train and validation files")
    return validation
