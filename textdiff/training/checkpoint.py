"""Checkpoint folders that are whole or absent: written aside, flushed, renamed; every file is checked against its hash when read.

`step-00000100/` holds safetensors files, `state.json` and `manifest.json` (size and SHA-256 of each file). Nothing is pickled.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


class CheckpointError(ValueError):
    """A checkpoint could not be written or read."""


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Keeps a second run out of `folder`; the system drops the lock of a process that died. Raises ValueError when it is taken."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / "run.lock").open("a+")
    except OSError as error:
        raise ValueError(f"cannot write to the output folder {folder}: {error.strerror}; choose another") from error
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise ValueError(
                f"another run (process {owner}) is writing to {folder}: wait for it, stop it, or choose another folder"
            ) from error
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        yield


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Fill a new folder beside `target`, flush it to disk, then put it in the target's place; on an error `target` is as it was.

    Raises CheckpointError when the disk is full or not writable.
    """
    working = target.with_name(f"{target.name}.tmp-{os.getpid()}")
    try:
        working.mkdir(parents=True)
        fill(working)
        for path in working.rglob("*"):
            _flush(path)
        _flush(working)
        retired = target.with_name(f"{target.name}.old-{os.getpid()}")
        if target.exists():
            target.rename(retired)  # a folder cannot be renamed onto another; `remove_debris` undoes this half
        working.rename(target)  # the commit
        _flush(target.parent)
        shutil.rmtree(retired, ignore_errors=True)
    except (OSError, SafetensorError) as error:
        written = sum(path.stat().st_size for path in working.rglob("*") if path.is_file())
        raise CheckpointError(
            f"could not write {target} (stopped after {written / 1e6:.1f} MB): {error}; "
            "what was saved before is intact: free some space and resume"
        ) from error
    finally:
        shutil.rmtree(working, ignore_errors=True)


def save_checkpoint(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any], keep: int) -> Path:
    """Write `step-N` with one safetensors file per entry of `tensors`, then remove all but the newest `keep`; raises CheckpointError."""

    def fill(folder: Path) -> None:
        for name, entries in tensors.items():
            save_file({key: value.contiguous() for key, value in entries.items()}, folder / f"{name}.safetensors")
        (folder / "state.json").write_text(json.dumps(state, indent=1))
        manifest = {path.name: {"size": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(folder.iterdir())}
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1))

    target = root / f"step-{step:08d}"
    replace_folder(target, fill)
    for old in list_checkpoints(root)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def list_checkpoints(root: Path) -> list[Path]:
    """The checkpoint folders under `root`, newest first, unverified."""
    return sorted((path for path in root.glob("step-*") if path.name[5:].isdigit()), reverse=True)


def find_checkpoint(root: Path, say: Callable[[str], None] = print) -> Path | None:
    """The newest checkpoint that verifies, or None when there are none; what an interrupted run left half-written is removed.

    A damaged checkpoint is renamed to `step-N.damaged` and reported to `say`. Raises CheckpointError when all are damaged.
    """
    remove_debris(root)
    faults: dict[Path, str] = {}
    for path in list_checkpoints(root):
        fault = verify(path)
        if fault is not None:
            faults[path] = fault
            continue
        for damaged, what in faults.items():
            aside = damaged.with_name(f"{damaged.name}.damaged")  # or it would count as the newest when old ones are removed
            shutil.rmtree(aside, ignore_errors=True)
            damaged.rename(aside)
            say(f"{damaged.name} is damaged ({what}): set aside as {aside.name}, going back to {path.name}")
        return path
    if faults:
        details = ", ".join(f"{path.name}: {fault}" for path, fault in faults.items())
        raise CheckpointError(f"no checkpoint under {root} is intact ({details}): start again in another folder")
    return None


def remove_debris(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder`; a folder that it had retired, but not yet replaced, comes back."""
    for working in _own(folder, "tmp"):
        shutil.rmtree(working, ignore_errors=True)
    for retired in _own(folder, "old"):
        target = retired.with_name(retired.name.rpartition(".old-")[0])
        if target.exists():
            shutil.rmtree(retired, ignore_errors=True)
        else:
            retired.rename(target)


def _own(folder: Path, kind: str) -> list[Path]:
    """The working folders that this file makes; others of like name are the user's."""
    return [path for path in folder.glob(f"*.{kind}-*") if re.fullmatch(rf"(model|step-\d{{8}})\.{kind}-\d+", path.name)]


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None when every file has the size and hash that its manifest says."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        for name, entry in manifest.items():
            if (folder / name).stat().st_size != entry["size"] or _sha256(folder / name) != entry["sha256"]:
                return f"{name} has changed"
        return None if "state.json" in manifest else "manifest.json names no state"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return "manifest.json is unreadable"


def read_state(folder: Path) -> dict[str, Any]:
    """`state.json` of a verified checkpoint."""
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    return state


def read_tensors(folder: Path, name: str) -> dict[str, Tensor]:
    """One safetensors file of a verified checkpoint, on the CPU."""
    return load_file(folder / f"{name}.safetensors")


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
