"""A sampler from what is typed for it, and back."""

import re
from dataclasses import fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from textdiff.samplers.base import Sampler


def sampler_named(model: Any, typed: str, steps: int | None) -> "Sampler":
    """Any public sampler, with options as in Threshold:tau=0.8, as `model` runs it; options that are not typed are those of the model's
    own sampler where it is of that class. Raises ValueError for an unknown name or option."""
    import textdiff
    from textdiff.samplers.base import Sampler
    from textdiff.spec import from_plain, to_plain

    name, _, rest = typed.partition(":")
    public = {item: getattr(textdiff, item) for item in dir(textdiff)}
    kinds = {item: kind for item, kind in public.items() if isinstance(kind, type) and issubclass(kind, Sampler)}
    if name not in kinds:
        raise ValueError(f"there is no sampler {name!r}: expected one of {', '.join(kinds)}")
    kind = kinds[name]
    own = model.default_sampler()
    options: dict[str, Any] = to_plain(own) if type(own) is kind else {"class": f"{kind.__module__}.{kind.__qualname__}"}
    if steps is not None:
        options["steps"] = steps
    for item in filter(None, rest.split(",")):
        key, _, value = item.partition("=")
        options[key.strip()] = _number(value, item)
    sampler = from_plain(options)
    assert isinstance(sampler, Sampler)
    return model.in_blocks(sampler)  # type: ignore[no-any-return]


def typed(sampler: "Sampler", own: "Sampler") -> str:
    """What tells `textdiff generate` to draw by `sampler` and not by a model's `own`, a space behind it; nothing where they are equal, or
    where something differs that is no number: options are numbers."""
    if sampler == own:
        return ""
    base: Any = own if type(own) is type(sampler) else type(sampler)()
    changed = {f.name: getattr(sampler, f.name) for f in fields(sampler) if getattr(sampler, f.name) != getattr(base, f.name)}
    steps = changed.pop("steps", None)
    if not all(isinstance(value, int | float) for value in changed.values()):
        return ""
    options = ",".join(f"{name}={value!r}" for name, value in changed.items())
    named = f"--sampler {type(sampler).__name__}{':' if options else ''}{options} "
    return named if steps is None else f"{named}--steps {steps} "


def _number(value: str, item: str) -> int | float:
    try:
        return int(value) if re.fullmatch(r"-?\d+", value.strip()) else float(value)
    except ValueError:
        raise ValueError(f"sampler option {item!r} is not name=number") from None
