"""The corpus `builtin:pydocs`: English of the running Python, its reference topics and the docstrings of its standard library.

A document is one reference topic, or all docstrings of one module in the order of its source, so that what belongs together stays
together. The text differs between Python releases: a number measured on it names the Python version and the corpus sha256.
"""

import ast
import hashlib
import json
import os
import platform
import re
import sysconfig
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

from textdiff.data.splits import Splits, bucket

NAME = "builtin:pydocs"
_RULES = 1  # of extraction; part of the cache's key
_SHORTEST = 200  # characters of a document worth reading
_NOT_PROSE = {"test", "tests", "idle_test", "idlelib", "lib2to3", "tkinter", "turtledemo", "site-packages", "dist-packages", "__pycache__"}


def python() -> str:
    """The running Python, as reported beside every number measured on its text."""
    return f"{platform.python_implementation()} {platform.python_version()}"


def load() -> Splits[str]:
    """The documents by split; extraction takes seconds, so they are kept in the folder `TEXTDIFF_CACHE` (default ~/.cache/textdiff)."""
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = _modules(library)
    cache = _cache_folder() / f"pydocs-{platform.python_version()}-{_fingerprint(library, modules)}.json"
    documents = _read_cache(cache)
    if documents is None:
        documents = _extract(library, modules)
        _write_cache(cache, documents)
    train, validation, test = ([text for name, text in documents.items() if bucket(name) == split] for split in range(3))
    return Splits(train, validation, test)


def _modules(library: Path) -> list[Path]:
    """Source files of the standard library that hold documentation, in an order that does not depend on the file system."""
    found: list[Path] = []
    for folder, folders, files in os.walk(library):
        folders[:] = [name for name in folders if name not in _NOT_PROSE]
        found += [Path(folder, name) for name in files if name.endswith(".py")]
    return sorted(found, key=lambda path: path.relative_to(library).as_posix())


def _fingerprint(library: Path, modules: list[Path]) -> str:
    digest = hashlib.sha256(f"rules {_RULES}\n".encode())
    for path in modules:
        status = path.stat()
        digest.update(f"{path.relative_to(library).as_posix()} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _extract(library: Path, modules: list[Path]) -> dict[str, str]:
    """Name -> text of every document, each paragraph kept where it occurs first."""
    seen: set[str] = set()
    documents = {}
    for name, parts in _sources(library, modules):
        text = "\n\n".join(filter(None, (_first_occurrences(heading, body, seen) for heading, body in parts)))
        if len(text) >= _SHORTEST:
            documents[name] = text + "\n"
    return documents


def _sources(library: Path, modules: list[Path]) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """Name and (heading, text) parts of every document before deduplication."""
    for topic, text in sorted(_topics().items()):
        yield f"topic {topic}", [("", text)]
    for path in modules:
        try:
            with warnings.catch_warnings(action="ignore"):  # old escapes in the library's own source
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError, OSError):
            continue  # a damaged library file holds no documentation we could read
        name = path.relative_to(library).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")
        yield f"module {name}", list(_docstrings(tree, name))


def _topics() -> dict[str, str]:
    try:
        from pydoc_data import topics
    except ImportError:  # a Python stripped to its modules still has their docstrings
        return {}
    return dict(topics.topics)


def _docstrings(node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[tuple[str, str]]:
    """(heading, docstring) of a module, then of its classes and functions, depth first."""
    docstring = ast.get_docstring(node)
    if docstring and _encodable(docstring):
        yield name, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            yield from _docstrings(child, child.name if isinstance(node, ast.Module) else f"{name}.{child.name}")


def _encodable(text: str) -> bool:
    """False for the few docstrings that hold lone surrogates, which are not text."""
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _first_occurrences(heading: str, body: str, seen: set[str]) -> str:
    """The paragraphs of `body` not seen before, under their heading; empty when all were."""
    kept = []
    for paragraph in re.split(r"\n(?:[ \t]*\n)+", body):
        key = " ".join(paragraph.split())
        if key and key not in seen:
            seen.add(key)
            kept.append(paragraph.rstrip())
    return "\n".join(filter(None, [heading, "\n\n".join(kept)])) if kept else ""


def _cache_folder() -> Path:
    return Path(os.environ.get("TEXTDIFF_CACHE") or os.path.expanduser("~/.cache/textdiff"))


def _digest(documents: dict[str, str]) -> str:
    return hashlib.sha256(json.dumps(documents).encode()).hexdigest()


def _read_cache(path: Path) -> dict[str, str] | None:
    """The documents as they were written, or None when there is no such file, or not one that can be trusted."""
    try:
        stored = json.loads(path.read_bytes())
        documents: dict[str, str] = stored["documents"]
        return documents if stored["sha256"] == _digest(documents) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _write_cache(path: Path, documents: dict[str, str]) -> None:
    """Write aside and rename, so that no reader ever sees half a file; a folder that cannot be written costs time, not the run."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=path.parent, prefix=".pydocs-")
    except OSError:
        return
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"python": python(), "sha256": _digest(documents), "documents": documents}, file)
        os.replace(aside, path)
    except OSError:
        Path(aside).unlink(missing_ok=True)
