"""Strict readers of local files: every row comes with the place it stands at, and a row that cannot be read says why, in one line."""

import csv
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]

TEXT_SUFFIXES = (".txt", ".md")
ROW_SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")
Row = dict[str, Any]


class Pair(NamedTuple):
    """A prompt and the response to it."""

    prompt: str
    response: str


Record = str | Pair  # a text document, or a pair
_ATTRIBUTES = re.compile(r"(?P<attributes>[^|:]+ : [^|]+( \| [^|:]+ : [^|]+)*)\|\|(?P<text>.*\S.*)")
_USUAL = (("text",), ("prompt", "response"), ("src", "trg"), ("mr", "ref"))  # columns recognised when none are named


class BadRows:
    """What becomes of rows that cannot be read: the first one raises ValueError, or all are skipped and counted."""

    def __init__(self, skip: bool) -> None:
        self.skip, self.count, self.first = skip, 0, ""

    def add(self, place: str, reason: str) -> None:
        """Meet the bad row at `place` ("file:line")."""
        if not self.skip:
            raise ValueError(f"{place}: {reason}")
        self.count += 1
        self.first = self.first or f"{place}: {reason}"

    def report(self) -> str:
        """One line on what was skipped; empty when nothing was."""
        return f"{self.count} bad row{'s' * (self.count > 1)} skipped, the first at {self.first}" if self.count else ""


def read_text(path: Path) -> str:
    """The whole text of a file, unchanged; raises ValueError when it is empty or not UTF-8."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(f"{path}:{line}: {_not_utf8(error)}") from error
    if not text.strip():
        raise ValueError(f"{path} is empty: expected text")
    return text


def has_attributes(text: str) -> bool:
    """Whether the first line is `name : X | Type : pub||Text .`, as in Diffusion-LM's E2E files."""
    return _ATTRIBUTES.match(text.lstrip().partition("\n")[0]) is not None


def read_attributes(path: Path, text: str, bad: BadRows) -> Iterator[Pair]:
    """The lines of such a file as pairs: the attributes, and the text."""
    for number, line in enumerate(text.split("\n"), 1):
        found = _ATTRIBUTES.match(line)
        if found is not None:
            yield Pair(found["attributes"].strip(), found["text"].strip())
        elif line.strip():
            bad.add(f"{path}:{number}", "expected `name : value | name : value||text`, as in the first line")


def read_parallel(source: Path, target: Path, bad: BadRows) -> Iterator[Pair]:
    """Line i of one file with line i of the other; raises ValueError when they do not have as many."""
    sides = [read_text(path).removesuffix("\n").split("\n") for path in (source, target)]
    if len(sides[0]) != len(sides[1]):
        raise ValueError(f"{source} has {len(sides[0])} lines and {target} has {len(sides[1])}: expected a line for each line")
    for number, (prompt, response) in enumerate(zip(*sides, strict=True), 1):
        if response.strip():
            yield Pair(prompt.strip(), response.strip())
        else:
            bad.add(f"{target}:{number}", "the line is empty: a response needs text")


def read_rows(path: Path, bad: BadRows) -> Iterator[tuple[str, Row]]:
    """("file:line", row) for every readable row of a .jsonl, .json, .csv or .parquet file."""
    return {".jsonl": _json_lines, ".json": _json_lines, ".csv": _csv_rows, ".parquet": _parquet_rows}[path.suffix.lower()](path, bad)


def choose_columns(available: Sequence[str], wanted: Sequence[str] | None, place: str) -> tuple[str, ...]:
    """The text column, or the prompt and response columns; raises ValueError when they are not there."""
    for columns in _USUAL if wanted is None else [tuple(wanted)]:
        if set(columns) <= set(available):
            return columns
    missing = next(name for name in wanted or ("text",) if name not in available)
    raise ValueError(f"{place}: column {missing!r} not found; columns are {list(available)}: name the one to read")


def record_of(row: Row, columns: tuple[str, ...], place: str, bad: BadRows) -> Record | None:
    """The document or pair that a row holds; None for a blank document and for a bad row."""
    for name in columns:
        reason = _fault(row, name)
        if reason:
            bad.add(place, reason)
            return None
    if len(columns) == 1:
        text: str = row[columns[0]]
        return text if text.strip() else None
    pair = Pair(*(row[name] for name in columns))
    if not pair.response.strip():
        bad.add(place, f"column {columns[1]!r} is empty: a response needs text")
        return None
    return pair


def _fault(row: Row, name: str) -> str:
    if name not in row:
        return f"column {name!r} not found; columns are {list(row)}"
    value = row[name]
    if value is None:
        return f"column {name!r} is null, expected text"
    if not isinstance(value, str):
        return f"column {name!r} is {type(value).__name__}, expected text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return f"column {name!r} holds half of a surrogate pair, which is not text"
    return ""


def _not_utf8(error: UnicodeDecodeError) -> str:
    return f"byte 0x{error.object[error.start]:02x} is not UTF-8: convert the file to UTF-8"


def _json_lines(path: Path, bad: BadRows) -> Iterator[tuple[str, Row]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            place = f"{path}:{number}"
            if not line.strip():
                continue
            try:
                row = json.loads(line.strip().decode("utf-8-sig" if number == 1 else "utf-8"))
            except UnicodeDecodeError as error:
                bad.add(place, _not_utf8(error))
            except json.JSONDecodeError as error:
                bad.add(place, f"not JSON, {error.msg.lower()} (character {error.colno}): expected one object per line")
            except RecursionError:
                bad.add(place, "not a row: nested too deeply")
            else:
                if isinstance(row, dict):
                    yield place, row
                else:
                    bad.add(place, f"expected one JSON object per line, got {type(row).__name__}")


def _csv_rows(path: Path, bad: BadRows) -> Iterator[tuple[str, Row]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        table = csv.reader(file, strict=True)
        header: list[str] | None = None
        while True:
            place = f"{path}:{table.line_num + 1}"
            try:
                cells = next(table, None)
            except UnicodeDecodeError as error:
                raise ValueError(f"{place}: {_not_utf8(error)}") from error  # decoded in blocks: nothing after it can be placed
            except csv.Error as error:
                bad.add(place, f"not CSV: {error}")
                continue
            if cells is None:
                return
            if header is None:
                header = cells
            elif cells and len(cells) != len(header):
                bad.add(place, f"{len(cells)} cells, expected the {len(header)} of the header")
            elif cells:
                yield place, dict(zip(header, cells, strict=True))


def _parquet_rows(path: Path, bad: BadRows) -> Iterator[tuple[str, Row]]:
    try:
        number = 0
        for group in pyarrow.parquet.ParquetFile(path).iter_batches():
            for row in group.to_pylist():
                number += 1
                yield f"{path}:{number}", row
    except pyarrow.ArrowException as error:
        raise ValueError(f"{path} is not a readable parquet file: {str(error).splitlines()[0]}") from error
