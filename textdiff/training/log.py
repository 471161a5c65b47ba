"""What a run writes down: `log.jsonl` always, TensorBoard events where the package is installed."""

import importlib.util
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any


class Log:
    """`log.jsonl`: one row per logged step, one `{"step", "evaluation"}` row per evaluation; a number that is not finite is null."""

    def __init__(self, out: Path, step: int, evaluated: int) -> None:
        """Go on after `step`; rows of later steps, and evaluations later than `evaluated`, are dropped because they will come again."""
        self._path = out / "log.jsonl"
        kept = [line for line in self._lines() if _belongs(line, step, evaluated)]
        working = self._path.with_suffix(".tmp")
        working.write_text("".join(kept))
        working.rename(self._path)
        self._file = self._path.open("a")
        self._board: Any = None
        if importlib.util.find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(out / "tensorboard", purge_step=step + 1 if step else None)  # type: ignore[no-untyped-call]

    def _lines(self) -> list[str]:
        return self._path.read_text().splitlines(keepends=True) if self._path.exists() else []

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """One row of training numbers."""
        self._append({"step": step, **values}, "train", step, values)

    def write_evaluation(self, step: int, values: Mapping[str, float]) -> None:
        """One row of evaluation numbers."""
        self._append({"step": step, "evaluation": dict(values)}, "evaluation", step, values)

    def _append(self, row: dict[str, Any], section: str, step: int, values: Mapping[str, float]) -> None:
        self._file.write(json.dumps(_without_nan(row), allow_nan=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                self._board.add_scalar(f"{section}/{name}", value, step)

    def __enter__(self) -> "Log":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        os.fsync(self._file.fileno())
        self._file.close()
        if self._board is not None:
            self._board.close()


def _belongs(line: str, step: int, evaluated: int) -> bool:
    try:
        row = json.loads(line)
    except ValueError:
        return False  # cut off by a crash
    return bool(row["step"] <= (evaluated if "evaluation" in row else step))


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
