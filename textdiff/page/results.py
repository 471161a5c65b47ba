"""The files of a comparison's folder, read back: what `textdiff report` knows."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from textdiff.evaluation.comparison_tables import Table
from textdiff.evaluation.frontier import HELD_OUT, Files, Point
from textdiff.evaluation.lines import Fields, number, read
from textdiff.evaluation.measurement import Measurement


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
    models: tuple[str, ...] = ()
    """Those of the run; all that the folder holds where none is named."""


@dataclass(frozen=True)
class Results:
    """Everything that is known of a comparison."""

    measurements: dict[str, Sequence[Measurement]]  # by data set
    frontier: Sequence[Point]
    profile: Sequence[Place]
    curves: Sequence[Evaluation]
    samples: Sequence[Sample]
    notes: Notes
    left_out: Sequence[str] = ()
    """Models that the folder's files hold and its notes do not name."""

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """The folder's files, each of which may be missing; raises ValueError when all are, and for one that holds something else."""
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}: name the output folder of a comparison")
        likelihood = _likelihood(folder / "likelihood")
        names = ("frontier.jsonl", "profile.jsonl", "curves.jsonl", "samples.jsonl", "notes.json")
        if not likelihood and not any((folder / name).exists() for name in names):
            raise ValueError(f"{folder} holds none of likelihood/*.jsonl, {', '.join(names)}: name the output folder of a comparison")
        everything = cls(
            likelihood,
            Files(folder).points(),
            read(folder / "profile.jsonl", _place),
            read(folder / "curves.jsonl", _evaluation),
            read(folder / "samples.jsonl", _sample),
            _notes(folder / "notes.json"),
        )
        return everything._of_notes() if everything.notes.models else everything

    def _of_notes(self) -> "Results":
        """What is of the models that the notes name, and held-out text: a folder may hold what an earlier run left in it."""
        named = self.notes.models
        measurements = {data: [found for found in rows if found.model in named] for data, rows in self.measurements.items()}
        return Results(
            {data: rows for data, rows in measurements.items() if rows},
            [point for point in self.frontier if point.model in named or not point.nfe],
            [place for place in self.profile if place.model in named],
            [row for row in self.curves if row.run in named],
            [sample for sample in self.samples if sample.model in (*named, HELD_OUT)],
            self.notes,
            [model for model in self.models if model not in named],
        )

    @property
    def kinds(self) -> Mapping[str, str]:
        """Of the models that were measured: whether their likelihood is exact, an upper bound or an estimate."""
        return {found.model: found.kind for rows in self.measurements.values() for found in rows}

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


def _place(row: dict[str, Any]) -> Place:
    of, bins = Fields(row), row.get("bins") or ()
    if not isinstance(bins, list | tuple) or not all(isinstance(one, list) and len(one) == 3 for one in bins):
        raise ValueError("bins is no list of [confidence, accuracy, tokens]")
    found = tuple((number("confidence", one[0]), number("accuracy", one[1]), number("tokens", one[2])) for one in bins)
    numbers = {name: of.optional(name) for name in ("error", "accuracy", "confidence", "calibration_error", "tokens")}
    return Place(of.text("model"), of.text("axis"), of.finite("x"), of.number("nats_per_token"), bins=found, **numbers)


def _evaluation(row: dict[str, Any]) -> Evaluation:
    of = Fields(row)
    return Evaluation(of.text("run"), of.finite("tokens"), of.optional("seconds"), of.number("nats_per_token"), of.optional("error"))


def _sample(row: dict[str, Any]) -> Sample:
    of = Fields(row)
    return Sample(of.text("model"), of.text("sampler"), of.text("text"))


def _notes(path: Path) -> Notes:
    if not path.exists():
        return Notes()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        tables = tuple(_table(table) for table in found.get("tables") or ())
        title, command = (_text(found.get(name) or "") for name in ("title", "command"))
        return Notes(title, command, _texts(found.get("rules")), tables, _texts(found.get("models")))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} does not hold notes on a comparison ({_said(error)}): remove it") from error


def _table(found: dict[str, Any]) -> Table:
    columns = tuple(_text(column) for column in found["columns"])
    rows = [tuple("-" if cell is None else str(cell) for cell in row) for row in found["rows"]]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"a row of the table {found['title']!r} has not as many cells as it has columns")
    return Table(_text(found["title"]), columns, rows, _text(found.get("note") or ""))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not text")
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | None):
        raise ValueError(f"{value!r} is no list")
    return tuple(map(_text, value or ()))


def _said(error: Exception) -> str:
    return f"{error} is missing" if isinstance(error, KeyError) else str(error)
