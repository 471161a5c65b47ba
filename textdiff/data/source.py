"""What a user's `source` names: a file or folder here, or an id on the Hugging Face hub."""

import re
from pathlib import Path
from typing import NamedTuple

PARQUET_BRANCH = "refs/convert/parquet"  # where the hub keeps its own copy of a data set
_SUFFIXES = {".txt", ".md", ".jsonl", ".json", ".csv", ".parquet", ".arrow", ".gz", ".zst", ".zip"}
_HUB = re.compile(r"(?P<repository>\w[\w.-]*/\w[\w.-]*)(:(?P<config>[\w.+-]+))?(@(?P<revision>[\w./-]+))?")


class HubId(NamedTuple):
    """`org/name[:config][@revision]`."""

    repository: str
    config: str | None
    revision: str | None


def local_path(source: str) -> Path | None:
    """The file or folder a source names, or None when it can only be a hub id; raises ValueError for a path to nothing.

    What exists here wins over a hub id of the same spelling; what looks like a path is never asked of the hub.
    """
    path = Path(source).expanduser()
    if path.exists():
        return path
    if source.startswith(("/", ".", "~")) or "\\" in source or source.endswith("/") or path.suffix.lower() in _SUFFIXES:
        raise ValueError(f"there is no file or folder {source!r} (looked in {path.absolute().parent}): check the path")
    return None


def hub_id(source: str) -> HubId:
    """The parts of a hub id; raises ValueError for anything else."""
    match = _HUB.fullmatch(source)
    if match is None:
        raise ValueError(f"{source!r} is neither a file or folder here nor a hub id: a hub id is org/name[:config][@revision]")
    return HubId(match["repository"], match["config"], match["revision"])


def first_line(error: BaseException) -> str:
    """The first line of an error's message, for a message of one line."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
