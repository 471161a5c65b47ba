"""A sampler from what is typed for it."""

import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdiff.samplers.base import Sampler


def sampler_named(model: Any, typed: str, steps: int | None) -> "Sampler":
    """Any public sampler, with options as in Threshold:tau=0.8, as `model` runs it; raises ValueError for an unknown name or option."""
    import textdiff
    from textdiff.samplers.base import Sampler
    from textdiff.spec import from_plain

    name, _, rest = typed.partition(":")
    public = {item: getattr(textdiff, item) for item in dir(textdiff)}
    kinds = {item: kind for item, kind in public.items() if isinstance(kind, type) and issubclass(kind, Sampler)}
    if name not in kinds:
        raise ValueError(f"there is no sampler {name!r}: expected one of {', '.join(kinds)}")
    kind = kinds[name]
    options: dict[str, Any] = {} if steps is None else {"steps": steps}
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        options[key.strip()] = _number(value, item)
    sampler = from_plain({"class": f"{kind.__module__}.{kind.__qualname__}", **options})
    assert isinstance(sampler, Sampler)
    return model.in_blocks(sampler)  # type: ignore[no-any-return]


def _number(value: str, item: str) -> int | float:
    try:
        return int(value) if re.fullmatch(r"-?\d+", value.strip()) else float(value)
    except ValueError:
        raise ValueError(f"sampler option {item!r} is not name=number") from None
