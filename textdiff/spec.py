"""A tree of frozen dataclasses <-> plain data, the form in which `config.json` and `recipe.yaml` hold it.

Plain data names its class by import path (`{"class": "textdiff.schedules.LogLinear", "eps": 0.001}`). A class is imported only
from a trusted package and built only when it is a dataclass, so reading a configuration never runs code that came with it.
"""

import dataclasses
import difflib
import importlib
import types
import typing
from pathlib import Path
from typing import Any, TypeVar

Kind = TypeVar("Kind")


def to_plain(value: Any) -> Any:
    """Plain data (dict, list, str, int, float, bool, None) of a dataclass tree; raises TypeError for anything else."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        kind = type(value)
        fields = {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value) if f.init}
        return {"class": f"{kind.__module__}.{kind.__qualname__}", **fields}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    raise TypeError(f"{type(value).__name__} has no plain form: only dataclasses, lists, strings, numbers and None do")


def from_plain(data: Any, trusted: tuple[str, ...] = ("textdiff",)) -> Any:
    """The inverse of `to_plain`; raises ValueError for an untrusted or unknown class, an unknown or missing field, or a wrong type."""
    if isinstance(data, list):
        return tuple(from_plain(item, trusted) for item in data)
    if not isinstance(data, dict):
        return data
    if "class" not in data:
        return {key: from_plain(item, trusted) for key, item in data.items()}
    kind = _find_class(data["class"], trusted)
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind) if f.init]
    values = {}
    for name, item in data.items():
        if name == "class":
            continue
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; its fields are {known}"
            raise ValueError(f"{kind.__name__} has no field {name!r}{hint}")
        values[name] = _checked(from_plain(item, trusted), hints[name], f"{kind.__name__}.{name}")
    missing = [f.name for f in dataclasses.fields(kind) if f.init and f.name not in values and _is_required(f)]
    if missing:
        raise ValueError(f"{kind.__name__} needs {missing}, which the data does not give")
    return kind(**values)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def replaced(value: Kind, **changes: Any) -> Kind:
    """`dataclasses.replace` for values known only by a base class."""
    return dataclasses.replace(value, **changes)  # type: ignore[type-var]


def _find_class(path: str, trusted: tuple[str, ...]) -> type:
    module_name, _, name = path.rpartition(".")
    if module_name.split(".")[0] not in trusted:
        raise ValueError(f"class {path!r} is outside the trusted packages {list(trusted)}: name its package in `trusted` to admit it")
    try:
        kind = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"class {path!r} cannot be imported ({error}): was the file written by another version of textdiff?") from error
    if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
        raise ValueError(f"{path!r} is not a dataclass: only configuration classes can be named in a configuration")
    return kind


def _checked(value: Any, hint: Any, where: str) -> Any:
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(value, str) and not _fits(value, hint) and _fits(Path(value), hint):
        return Path(value)
    if not _fits(value, hint):
        raise ValueError(f"{where} got {value!r} ({type(value).__name__}), expected {getattr(hint, '__name__', hint)}")
    return value


def _fits(value: Any, hint: Any) -> bool:
    origin = typing.get_origin(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in typing.get_args(hint))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, origin or hint)
