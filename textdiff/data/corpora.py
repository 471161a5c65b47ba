"""One argument for every corpus: the embedded one, a file, a folder, or an id on the Hugging Face hub.

`builtin:pydocs`                    the text of the running Python (textdiff/data/pydocs.py)
`builtin:dates`                     pairs: English dates and numbers with their ISO forms (textdiff/data/dates.py)
`plays.txt`, `notes.md`             one document, cut into contiguous ranges: 90 % train, 5 % validation, 5 % test, at line ends
`rows.jsonl`, `.csv`, `.parquet`    one document or pair per row, split by a hash of the document or of the prompt
`src1_train.txt`                    pairs, where the first line is `name : X | Type : pub||Text .` (E2E as Diffusion-LM has it)
`folder/`                           such files; those named train*, validation* (valid, val, dev) and test* are the splits; in a folder
                                    without rows every text file is a document; a `datasets` `save_to_disk` folder is read as one
`folder/train.src`, `train.tgt`     pairs of lines, and so are dev.* and test.*; any two suffixes, such as .de and .en: the source is the
                                    first by name, or by `columns`
`org/name[:config][@revision]`      a data set on the hub; a local folder of that name wins

A split that the source lacks is made from its training part. Files are read strictly: a bad row says `file:line: reason`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets

from textdiff.data import dates, pydocs
from textdiff.data.readers import (
    ROW_SUFFIXES,
    TEXT_SUFFIXES,
    BadRows,
    Pair,
    Record,
    choose_columns,
    has_attributes,
    read_attributes,
    read_parallel,
    read_rows,
    read_text,
    record_of,
)
from textdiff.data.source import PARQUET_BRANCH, first_line, hub_id, local_path
from textdiff.data.splits import Splits, bucket, cut

_SPLIT_OF = {"train": 0, "validation": 1, "valid": 1, "val": 1, "dev": 1, "test": 2}
DATASETS_ERRORS = (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError)


@dataclass(frozen=True)
class Corpus:
    """Raw records by split; what a number measured on them must name is in `description`."""

    name: str
    splits: Splits[Record]
    notes: tuple[str, ...] = ()

    @cached_property
    def sha256(self) -> str:
        """Hash of every record and of its split."""
        digest = hashlib.sha256()
        for number, records in enumerate(self.splits):
            for record in records:
                digest.update(json.dumps([number, record]).encode())
                digest.update(b"\n")
        return digest.hexdigest()

    @property
    def description(self) -> str:
        """One line: what, how much, which split has how many records, and the hash."""
        counts = "/".join(str(len(records)) for records in self.splits)
        characters = sum(len(record) if isinstance(record, str) else sum(map(len, record)) for part in self.splits for record in part)
        notes = "".join(f"; {note}" for note in self.notes)
        return f"{self.name}: {counts} train/validation/test records, {characters:,} characters, sha256 {self.sha256[:16]}{notes}"

    @property
    def holds_pairs(self) -> bool:
        """Whether the records are (prompt, response) pairs rather than documents."""
        return any(isinstance(record, Pair) for part in self.splits for record in part[:1])

    def texts(self) -> Splits[str]:
        """The records as documents; raises ValueError when they are pairs."""
        return Splits(*([self._document(record) for record in part] for part in self.splits))

    def pairs(self) -> Splits[Pair]:
        """The records as (prompt, response) pairs; raises ValueError when they are documents."""
        return Splits(*([self._pair(record) for record in part] for part in self.splits))

    def _document(self, record: Record) -> str:
        if not isinstance(record, str):
            raise ValueError(f"{self.name} holds (prompt, response) pairs, expected documents: name the one column to read")
        return record

    def _pair(self, record: Record) -> Pair:
        if isinstance(record, str):
            raise ValueError(
                f"{self.name} holds documents, expected pairs: rows with columns prompt and response, src and trg, or two named ones"
            )
        return record


def resolve(source: str, columns: Sequence[str] | None = None, skip_bad_rows: bool = False) -> Corpus:
    """The corpus a source names; `columns` is the text column or (prompt, response), recognised when None.

    Raises ValueError with one line when there is no such source, or when it holds no readable text.
    """
    if not source.strip():
        raise ValueError(f"the data has no name: give {pydocs.NAME}, a file, a folder or a hub id")
    if source == pydocs.NAME:
        return Corpus(source, _widened(pydocs.load()), (pydocs.python(),))
    if source == dates.NAME:
        if columns is not None:
            raise ValueError(f"{source} is made of prompts and responses and has no columns to choose from: leave columns out")
        return Corpus(source, _widened(dates.load()))
    if source.startswith("builtin:"):
        raise ValueError(f"there is no {source!r}: the embedded corpora are {pydocs.NAME} and {dates.NAME}")
    bad = BadRows(skip_bad_rows)
    path = local_path(source)
    if path is None:
        found = _from_hub(source, columns, bad)
    elif path.is_dir() and _is_saved_to_disk(path):
        found = _from_disk(path, columns, bad)
    elif path.is_dir() and (parallel := parallel_files(path, columns)):
        found = [[pair for files in part for pair in read_parallel(*files, bad)] for part in parallel]
    else:
        found = [list(_records(files, columns, bad)) for files in split_files(path)]
    splits = _complete(Splits(*found))
    if not splits.train:
        raise ValueError(f"{source} holds no readable training text{': ' + bad.report() if bad.count else ''}")
    return Corpus(source, splits, tuple(filter(None, [bad.report()])))


def _widened(splits: Splits[str] | Splits[Pair]) -> Splits[Record]:
    return Splits(*(list[Record](part) for part in splits))


def split_files(path: Path) -> tuple[list[Path], list[Path], list[Path]]:
    """The files of each split, in the order of their names; a file or folder that names no splits is all train."""
    if path.is_file():
        if path.suffix.lower() not in ROW_SUFFIXES + TEXT_SUFFIXES:
            raise ValueError(f"{path} has suffix {path.suffix!r}, expected one of {' '.join(TEXT_SUFFIXES + ROW_SUFFIXES)}")
        return [path], [], []
    files = [f for f in sorted(path.rglob("*")) if f.is_file() and not any(p.startswith(".") for p in f.relative_to(path).parts)]
    rows = [f for f in files if f.suffix.lower() in ROW_SUFFIXES]
    readable = rows or [f for f in files if f.suffix.lower() in TEXT_SUFFIXES]  # beside rows, a text file is a README
    if not readable:
        raise ValueError(f"folder {path} holds no {' '.join(TEXT_SUFFIXES + ROW_SUFFIXES)} file")
    named: tuple[list[Path], list[Path], list[Path]] = ([], [], [])
    for file in readable:
        split = _split_named(file.name)
        if split is not None:
            named[split].append(file)
    return named if named[0] else (readable, [], [])


def _split_named(name: str) -> int | None:
    """The split that a name's first word says: train-00000-of-00001.parquet, val.de-en.jsonl, test_2016, src1_valid."""
    word = name.lower().removeprefix("src1_").replace("_", ".").replace("-", ".").split(".")[0]
    return _SPLIT_OF.get(word)


def parallel_files(folder: Path, columns: Sequence[str] | None = None) -> list[list[tuple[Path, Path]]]:
    """The (source, target) files of each split: those whose names differ in the suffix only; empty where rows or text can be read.

    Raises ValueError for a file of a split without its twin, and for suffixes that `columns` does not name.
    """
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and _split_named(file.name) is not None]
    kinds = sorted({file.suffix for file in files})
    if len(kinds) != 2 or set(kinds) & {*ROW_SUFFIXES, *TEXT_SUFFIXES}:
        return []
    wanted = tuple(f".{name.removeprefix('.')}" for name in columns) if columns is not None else tuple(kinds)
    if sorted(wanted) != kinds:
        raise ValueError(f"folder {folder} holds {' and '.join(kinds)} files, and {' and '.join(wanted)} were named")
    result: list[list[tuple[Path, Path]]] = [[], [], []]
    for stem in sorted({file.stem for file in files}):
        found = [folder / f"{stem}{kind}" for kind in wanted]
        absent = next((path for path in found if path not in files), None)
        if absent is not None:
            raise ValueError(f"there is no {absent}: pairs of lines need it beside its twin")
        split = _split_named(stem)
        assert split is not None
        result[split].append((found[0], found[1]))
    return result


def _records(files: Iterable[Path], columns: Sequence[str] | None, bad: BadRows) -> Iterator[Record]:
    for path in files:
        if path.suffix.lower() in TEXT_SUFFIXES:
            text = read_text(path)
            if not has_attributes(text):
                yield text
                continue
            if columns is not None:
                raise ValueError(f"{path} holds lines `name : X||Text` and has no columns to choose from: leave columns out")
            yield from read_attributes(path, text, bad)
            continue
        chosen: tuple[str, ...] | None = None
        for place, row in read_rows(path, bad):
            chosen = chosen or choose_columns(list(row), columns, place)
            record = record_of(row, chosen, place, bad)
            if record is not None:
                yield record
        if chosen is None:
            raise ValueError(f"{path} holds no readable row{': ' + bad.report() if bad.count else ''}")


def _is_saved_to_disk(path: Path) -> bool:
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _from_disk(path: Path, columns: Sequence[str] | None, bad: BadRows) -> list[list[Record]]:
    try:
        stored = datasets.load_from_disk(str(path))
    except DATASETS_ERRORS as error:
        raise ValueError(f"folder {path} cannot be read as a saved data set: {first_line(error)}") from error
    return _from_tables(stored if isinstance(stored, datasets.DatasetDict) else {"train": stored}, str(path), columns, bad)


def _from_hub(source: str, columns: Sequence[str] | None, bad: BadRows) -> list[list[Record]]:
    return _from_tables(load_hub(source, streaming=False), source, columns, bad)


def load_hub(source: str, streaming: bool) -> dict[str, Any]:
    """The tables of a hub id by split name; raises ValueError with one line when the hub does not give them."""
    wanted = hub_id(source)
    # The hub's own parquet copy of a data set has no card: a configuration is a folder of it, not a name.
    name, place = (None, {"data_dir": wanted.config}) if wanted.revision == PARQUET_BRANCH else (wanted.config, {})
    try:
        tables: dict[str, Any] = datasets.load_dataset(wanted.repository, name, revision=wanted.revision, streaming=streaming, **place)
    except DATASETS_ERRORS as error:
        raise ValueError(f"{source!r} is no file or folder here, and as a hub id it failed: {first_line(error)}") from error
    return tables


def tables_by_split(tables: dict[str, Any], name: str) -> list[Any | None]:
    """The train, validation and test tables, None where there is none; a lone table counts as train, as a lone file does.

    Raises ValueError for several without a train table.
    """
    if len(tables) == 1:
        return [*tables.values(), None, None]
    found: list[Any | None] = [None, None, None]
    for split, table in tables.items():
        number = _split_named(split)
        if number is not None and found[number] is None:
            found[number] = table
    if found[0] is None:
        raise ValueError(f"{name} has no train split; its splits are {list(tables)}")
    return found


def _from_tables(tables: dict[str, Any], name: str, columns: Sequence[str] | None, bad: BadRows) -> list[list[Record]]:
    result: list[list[Record]] = []
    for table in tables_by_split(tables, name):
        records: list[Record] = []
        if table is not None:
            chosen = choose_columns(table.column_names, columns, name)
            for number, row in enumerate(table.select_columns(list(chosen)), 1):
                record = record_of(row, chosen, f"{name} row {number}", bad)
                if record is not None:
                    records.append(record)
        result.append(records)
    return result


def _complete(splits: Splits[Record]) -> Splits[Record]:
    """Make the missing splits from train: a lone document is cut into ranges, several records part by the hash of text or prompt."""
    train, validation, test = splits
    missing = [number for number in (1, 2) if not splits[number]]
    if not missing:
        return splits
    if len(train) == 1 and isinstance(train[0], str):
        ranges = cut(train[0])
        kept = "".join(part[0] for number, part in enumerate(ranges) if part and number not in missing)
        made = Splits[Record]([kept] if kept else [], list(ranges.validation), list(ranges.test))
    else:
        places = [bucket(record if isinstance(record, str) else record.prompt) for record in train]
        made = Splits[Record](*([r for r, p in zip(train, places, strict=True) if (p if p in missing else 0) == n] for n in range(3)))
    return Splits(made.train, validation or made.validation, test or made.test)
