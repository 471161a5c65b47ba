"""Files of lines that each hold a JSON object; a mistake in one is told by the number of its line."""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True)
class Fields:
    """What a line holds, by name. All raise ValueError for what is missing or of another kind."""

    found: Mapping[str, Any]

    def text(self, name: str) -> str:
        """Text."""
        if not isinstance(value := self._there(name), str):
            raise ValueError(f"{name} is {_short(value)}, expected text")
        return value

    def number(self, name: str) -> float:
        """A number; nan for null and for one that is not finite."""
        return number(name, self._there(name))

    def finite(self, name: str) -> float:
        """A number that is there."""
        if math.isnan(value := self.number(name)):
            raise ValueError(f"{name} is {_short(self.found[name])}, expected a number")
        return value

    def optional(self, name: str) -> float:
        """A number; nan where there is none."""
        return number(name, self.found.get(name))

    def _there(self, name: str) -> Any:
        if name not in self.found:
            raise ValueError(f"{name} is missing")
        return self.found[name]


def number(name: str, value: Any) -> float:
    """A value that was read from JSON, as a number; nan for None and for one that is not finite; raises ValueError for anything else."""
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"{name} is {_short(value)}, expected a number")
    try:
        return float(value) if math.isfinite(value) else math.nan
    except OverflowError:
        return math.nan  # an integer of more digits than a float can hold


def read(path: Path, of: Callable[[dict[str, Any]], Row]) -> list[Row]:
    """What `of` makes of every line that is not blank, nothing where there is no file.

    Raises ValueError, naming file and line, for one that holds no object and for one of which `of` raises ValueError.
    """
    found = []
    for place, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else (), 1):
        if line.strip():
            try:
                found.append(of(_object(line)))
            except ValueError as error:
                raise ValueError(f"line {place} of {path}: {error}; mend that line or remove it") from error
    return found


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A line for each row; the file is replaced whole or not at all."""
    working = path.with_name(path.name + ".tmp")
    working.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    working.replace(path)


def _object(line: bytes) -> dict[str, Any]:
    try:
        found = json.loads(line.decode())
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at character {error.pos + 1})") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start + 1}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{_short(found)}, expected an object with names")
    return found


def _short(value: Any) -> str:
    shown = json.dumps(value)
    return shown if len(shown) <= 40 else f"{shown[:39]}…"
