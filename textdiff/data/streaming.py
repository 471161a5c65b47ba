"""Text that does not fit in memory: packed blocks from a stream of documents, split by process, resumed at exactly the next block."""

import logging
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import datasets
import numpy as np
from datasets.distributed import split_dataset_by_node
from transformers import PreTrainedTokenizerBase

from textdiff.batch import Example
from textdiff.data import pydocs
from textdiff.data.collate import Packing
from textdiff.data.corpora import load_hub, split_files, tables_by_split
from textdiff.data.readers import TEXT_SUFFIXES, BadRows, choose_columns, read_rows, record_of
from textdiff.data.source import local_path
from textdiff.data.splits import bucket
from textdiff.data.tokenizer import Encoder

_log = logging.getLogger(__name__)


class TextStream(NamedTuple):
    """Training documents as a stream of {"text"} rows, and held-out documents in memory."""

    rows: datasets.IterableDataset
    buckets: frozenset[int]  # of `splits.bucket`: the rows that are training text
    validation: list[str]
    test: list[str]

    def texts(self) -> Iterator[str]:
        """The training documents, once."""
        return (row["text"] for row in self.rows if bucket(row["text"]) in self.buckets)


def open_stream(source: str, column: str, skip_bad_rows: bool, held_out: int) -> TextStream:
    """The stream of a file or folder of rows, or of a hub id, with up to `held_out` documents each for validation and test.

    A split the source lacks is made of training documents by their hash, the first ones met; training leaves all of that hash out.
    """
    path = None if source == pydocs.NAME else local_path(source)
    if source == pydocs.NAME:
        documents = pydocs.load()
        return TextStream(_in_memory(documents.train), frozenset({0, 1, 2}), list(documents.validation), list(documents.test))
    tables: list[Any]
    if path is not None:
        tables = [_local_rows(files, column, skip_bad_rows) if files else None for files in split_files(path)]
    else:
        found = tables_by_split(load_hub(source, streaming=True), source)
        tables = [None if table is None else _hub_rows(table, source, column, skip_bad_rows) for table in found]
    made = [number for number in (1, 2) if tables[number] is None]
    parts: list[list[str]] = [[], [], []]
    for number in (1, 2):
        if number not in made:
            parts[number] = [row["text"] for row in islice(tables[number], held_out)]
    _collect(tables[0], parts, made, held_out)
    return TextStream(tables[0], frozenset({0, 1, 2} - set(made)), parts[1], parts[2])


def _collect(rows: Iterable[dict[str, str]], parts: list[list[str]], made: list[int], limit: int) -> None:
    """Fill `parts[n]`, n in `made`, with the first documents of hash n."""
    wanted = set(made)
    for row in rows if wanted else ():
        number = bucket(row["text"])
        if number in wanted:
            parts[number].append(row["text"])
            wanted = {n for n in made if len(parts[n]) < limit}
            if not wanted:
                return


def _in_memory(texts: Iterable[str]) -> datasets.IterableDataset:
    return datasets.Dataset.from_dict({"text": list(texts)}).to_iterable_dataset()


def _local_rows(files: list[Path], column: str, skip_bad_rows: bool) -> datasets.IterableDataset:
    if files[0].suffix.lower() in TEXT_SUFFIXES:
        raise ValueError(f"{files[0]} is plain text, and a stream reads rows (.jsonl, .csv, .parquet, a hub id): leave streaming off")
    arguments = {"paths": [str(path) for path in files], "column": column, "skip_bad_rows": skip_bad_rows}
    return datasets.IterableDataset.from_generator(_read, gen_kwargs=arguments)


def _read(paths: list[str], column: str, skip_bad_rows: bool) -> Iterator[dict[str, str]]:
    bad = BadRows(skip_bad_rows)
    for path in paths:
        columns: tuple[str, ...] | None = None
        for place, row in read_rows(Path(path), bad):
            columns = columns or choose_columns(list(row), [column], place)
            text = record_of(row, columns, place, bad)
            if text is not None:
                yield {"text": str(text)}
    if bad.count:
        _log.warning(bad.report())


def _hub_rows(table: Any, source: str, column: str, skip_bad_rows: bool) -> datasets.IterableDataset:
    if table.column_names is not None:
        choose_columns(table.column_names, [column], source)
    bad = BadRows(skip_bad_rows)

    def text_only(row: dict[str, Any]) -> dict[str, str | None]:
        record = record_of(row, (column,), f"a row of {source}", bad)
        return {"text": None if record is None else str(record)}

    return table.map(text_only, remove_columns=table.column_names).filter(lambda row: row["text"] is not None)


class StreamBlocks:
    """Packed blocks of a stream of {"text"} rows, without end: after the last document the first one follows.

    Unlike `Blocks` no block is short: an epoch's remainder begins the next epoch's first block. Documents come in the order of the stream;
    from the second epoch on `datasets` reorders its files.
    """

    def __init__(
        self,
        rows: datasets.IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        length: int,
        isolate: bool = False,
        buckets: frozenset[int] = frozenset({0, 1, 2}),
    ) -> None:
        self.rows, self.tokenizer, self.buckets = rows, tokenizer, buckets
        self.packing = Packing.of(tokenizer, length, isolate)
        self._encode = Encoder(tokenizer)
        self.epoch = 0
        self._read: dict[str, Any] | None = None  # position in `rows`; None before the epoch's first
        self._documents = 0
        self._before: int | None = None  # the token before the next block, where nothing else can start a block
        self._carry = np.zeros((3, 0), dtype=np.int64)  # ids, bytes and document numbers read but not yet in a block

    def shard(self, rank: int, world: int) -> "StreamBlocks":
        """The part of process `rank` of `world`, from its beginning: the parts are disjoint and together hold every document."""
        rows = split_dataset_by_node(self.rows, rank, world)
        return StreamBlocks(rows, self.tokenizer, self.packing.length, self.packing.isolate, self.buckets)

    def state_dict(self) -> dict[str, Any]:
        """Where the next block begins, as plain JSON data."""
        return {
            "epoch": self.epoch,
            "read": self._read,
            "documents": self._documents,
            "before": self._before,
            "carry": self._carry.tolist(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to where `state` was taken; iterators made before stay where they were and must not be used."""
        self.epoch, self._read = state["epoch"], state["read"]
        self._documents, self._before = state["documents"], state["before"]
        self._carry = np.asarray(state["carry"], dtype=np.int64).reshape(3, -1)

    def __iter__(self) -> Iterator[Example]:
        while True:
            fresh, before = self._read is None, self._documents
            self.rows.set_epoch(self.epoch)
            self.rows.load_state_dict(self._read)
            for row in self.rows:
                self._read = self.rows.state_dict()
                if bucket(row["text"]) in self.buckets:
                    self._append(row["text"])
                    yield from self._cut()
            if fresh and self._documents == before:
                raise ValueError(
                    "the stream holds no training text for this process: there must be at least as many documents as processes"
                )
            self.epoch, self._read = self.epoch + 1, None

    def _append(self, text: str) -> None:
        document = self.packing.documents(next(self._encode([text])))
        self._documents += 1
        numbers = np.full_like(document.ids, self._documents)
        self._carry = np.concatenate([self._carry, np.stack([document.ids, document.sizes, numbers])], axis=1)

    def _cut(self) -> Iterator[Example]:
        """Full blocks of what is carried; the state is that of the next block before each is handed out."""
        if self.packing.start_id is None and self._before is None and self._carry.shape[1]:
            self._before, self._carry = int(self._carry[0, 0]), self._carry[:, 1:]
        while self._carry.shape[1] >= self.packing.stride:
            block, self._carry = np.split(self._carry, [self.packing.stride], axis=1)
            before = self._before if self.packing.start_id is None else self.packing.start_id
            assert before is not None  # set above, from the first token of the stream
            if self.packing.start_id is None:
                self._before = int(block[0, -1])
            yield self.packing.example(block[0], before, block[2], int(block[1].sum()))
