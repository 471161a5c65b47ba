"""The files of a comparison's folder, read back: what `textdiff report` knows."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from textdiff.evaluation.comparison_tables import Table
from textdiff.evaluation.frontier import Files, Point
from textdiff.evaluation.measurement import Measurement

Row = TypeVar("Row")


class Place(NamedTuple):
    """A line of `profile.jsonl`; nan for a number that does not exist."""

    model: str
    axis: str
    x: float
    nats_per_token: float
    error: float
    accuracy: float
    confidence: float
    calibration_error: float
    bins: tuple[tuple[float, float, float], ...]  # confidence, accuracy and tokens of each bin that is not empty
    tokens: float


class Evaluation(NamedTuple):
    """A line of `curves.jsonl`."""

    run: str
    tokens: float
    seconds: float
    nats_per_token: float
    error: float


class Sample(NamedTuple):
    """A line of `samples.jsonl`."""

    model: str
    sampler: str
    text: str


class Notes(NamedTuple):
    """`notes.json`: what a page shows besides."""

    title: str = ""
    command: str = ""
    rules: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Results:
    """Everything that is known of a comparison."""

    measurements: dict[str, Sequence[Measurement]]  # by data set
    frontier: Sequence[Point]
    profile: Sequence[Place]
    curves: Sequence[Evaluation]
    samples: Sequence[Sample]
    notes: Notes

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """The folder's files, each of which may be missing; raises ValueError when all are, and for one that holds something else."""
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: name the output folder of a comparison")
        likelihood = _likelihood(folder / "likelihood")
        names = ("frontier.jsonl", "profile.jsonl", "curves.jsonl", "samples.jsonl", "notes.json")
        if not likelihood and not any((folder / name).exists() for name in names):
            raise ValueError(f"{folder} holds none of likelihood/*.jsonl, {', '.join(names)}: name the output folder of a comparison")
        return cls(
            likelihood,
            Files(folder).points(),
            list(_lines(folder / "profile.jsonl", _place)),
            list(_lines(folder / "curves.jsonl", _evaluation)),
            list(_lines(folder / "samples.jsonl", _sample)),
            _notes(folder / "notes.json"),
        )

    @property
    def models(self) -> list[str]:
        """Every name that is drawn or listed, each once, in one order for the whole page: models that were measured first."""
        measured = [found.model for rows in self.measurements.values() for found in rows]
        others = [row.model for rows in (self.frontier, self.profile) for row in rows if not isinstance(row, Point) or row.nfe]
        return list(dict.fromkeys([*sorted(measured), *sorted({*others, *(row.run for row in self.curves)})]))


def _likelihood(folder: Path) -> dict[str, Sequence[Measurement]]:
    """By the data set's name, which stands behind the @ in the name of a file."""
    found: dict[str, list[Measurement]] = {}
    for path in sorted(folder.glob("*.jsonl")):
        found.setdefault(path.stem.rpartition("@")[2], []).append(Measurement.read(path))
    return {name: found[name] for name in sorted(found)}


def _lines(path: Path, of: Callable[[dict[str, Any]], Row]) -> Iterator[Row]:
    if not path.exists():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), 1):
        if line.strip():
            try:
                yield of(json.loads(line))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise ValueError(f"line {number} of {path} does not hold what it should ({_said(error)}): remove it") from error


def _place(row: dict[str, Any]) -> Place:
    bins = tuple((_number(confidence), _number(accuracy), _number(tokens)) for confidence, accuracy, tokens in row.get("bins") or ())
    numbers = {name: _number(row.get(name)) for name in ("error", "accuracy", "confidence", "calibration_error", "tokens")}
    return Place(_text(row["model"]), _text(row["axis"]), _number(row["x"]), _number(row["nats_per_token"]), bins=bins, **numbers)


def _evaluation(row: dict[str, Any]) -> Evaluation:
    error, seconds = _number(row.get("error")), _number(row.get("seconds"))
    return Evaluation(_text(row["run"]), _number(row["tokens"]), seconds, _number(row["nats_per_token"]), error)


def _sample(row: dict[str, Any]) -> Sample:
    return Sample(_text(row["model"]), _text(row["sampler"]), _text(row["text"]))


def _notes(path: Path) -> Notes:
    if not path.exists():
        return Notes()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tables = tuple(_table(table) for table in found.get("tables") or ())
        rules = tuple(_text(rule) for rule in found.get("rules") or ())
        return Notes(_text(found.get("title") or ""), _text(found.get("command") or ""), rules, tables)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not hold notes on a comparison ({_said(error)}): remove it") from error


def _table(found: dict[str, Any]) -> Table:
    columns = tuple(_text(column) for column in found["columns"])
    rows = [tuple("-" if cell is None else str(cell) for cell in row) for row in found["rows"]]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a row of the table {found['title']!r} has not as many cells as it has columns")
    return Table(_text(found["title"]), columns, rows, _text(found.get("note") or ""))


def _number(value: Any) -> float:
    """nan for None and for what is not finite."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{value!r} is not a number")
    return float(value) if math.isfinite(value) else math.nan


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
