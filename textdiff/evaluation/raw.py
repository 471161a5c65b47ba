"""The numbers of a measurement while it is under way, batch by batch, in a file that an interruption does not harm."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

Found = dict[tuple[int, int], list[float]]  # nats of the rows of a batch, by (round of draws, number of the batch)


class Raw:
    """The file of an unfinished measurement: a line that says what is measured, then a line for each finished batch.

    A last line that was cut off is dropped when the file is opened. Raises ValueError for a file of another measurement, naming the first
    difference, and for one that holds something else.
    """

    def __init__(self, path: Path, head: Mapping[str, Any]) -> None:
        self.path = path
        self.found: Found = {}
        whole = self._whole_lines()
        if whole:
            self._read(whole, head)
        self._file: IO[str] = path.open("a")
        if not whole:
            self._append({"unfinished": head})

    def add(self, round_number: int, batch: int, nats: list[float]) -> None:
        """Keep a finished batch: written through to the disk before this returns."""
        self.found[round_number, batch] = nats
        self._append({"round": round_number, "batch": batch, "nats": nats})

    def close(self) -> None:
        """Nothing more will be added."""
        self._file.close()

    def remove(self) -> None:
        """The measurement is finished and kept elsewhere."""
        self.close()
        self.path.unlink()

    def _whole_lines(self) -> list[bytes]:
        if not self.path.exists():
            return []
        content = self.path.read_bytes()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            os.truncate(self.path, end)
        return content[:end].splitlines()

    def _read(self, lines: list[bytes], head: Mapping[str, Any]) -> None:
        try:
            begun, *rows = [json.loads(line) for line in lines]
            before = begun["unfinished"]
            self.found = {(row["round"], row["batch"]): row["nats"] for row in rows}
            if not isinstance(before, dict) or not all(isinstance(nats, list) for nats in self.found.values()):
                raise TypeError("not as it was written")
        except (ValueError, TypeError, KeyError) as error:
            raise ValueError(f"{self.path} does not hold an unfinished measurement ({error}): remove it") from error
        check_same(self.path, before, head)

    def _append(self, line: Mapping[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def check_same(path: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the first difference, unless what a file was begun with is what is asked for now."""
    for name, value in now.items():
        if isinstance(value, Mapping):
            inner = before.get(name)
            check_same(path, inner if isinstance(inner, Mapping) else {}, value)
        elif before.get(name) != value:
            raise ValueError(f"{path} holds a measurement with {name} {before.get(name)!r}, not {value!r}: remove it, or name another file")
