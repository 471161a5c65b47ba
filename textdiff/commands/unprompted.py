"""Texts that a model writes by itself: its blank row, and the ways of drawing it that are typed or usual."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from textdiff.sampler_words import sampler_named

if TYPE_CHECKING:
    from textdiff.batch import Example
    from textdiff.decoding import Decode
    from textdiff.models.base import LanguageModel

_STEPS = (4, 8, 16, 32, 64, 128)


def blank_text(model: "LanguageModel", place: str, length: int) -> "Example":
    """BOS, else EOS, and `length` blanks; raises ValueError for a model that cannot write them unprompted."""
    from textdiff.batch import Example
    from textdiff.decoding import has_encoder

    if has_encoder(model):
        raise ValueError(f"{place} has an encoder and answers prompts, and texts are written without one: leave it out")
    if 1 + length > model.max_length:
        raise ValueError(f"length is {length} and {place} writes {model.max_length - 1} tokens at most: shorten the texts")
    vocab = model.vocab
    first = vocab.eos_id if vocab.bos_id is None else vocab.bos_id
    if first is None:
        raise ValueError(f"{place} has no BOS or EOS token to begin a text with, and no prompt is given: leave it out")
    blank = next(i for i in (vocab.mask_id, vocab.eos_id, first) if i is not None)
    return Example(tokens=[first, *[blank] * length], target=[False, *[True] * length])


def ways_of(model: Any, place: str, blank: "Example", typed: Sequence[str]) -> "dict[str, Decode]":
    """How a model writes, by what is typed for it: the samplers of its side, causal or diffusion, else its own at several numbers of steps.

    Raises ValueError, before anything is drawn, for a sampler of its side that it cannot be drawn with.
    """
    from textdiff.batch import collate
    from textdiff.processes.left_to_right import LeftToRight
    from textdiff.randomness import Rng

    batch = collate([blank], model.vocab.pad_id or 0)
    causal, ways = isinstance(model.process, LeftToRight), {}
    for words in typed:
        way = _way(model, place, words)
        if issubclass(way.sampler.requires, LeftToRight) == causal:
            ways[words] = way
    ways = ways or {words: _way(model, place, words) for words in _usual(model, causal)}
    for words, way in ways.items():
        try:
            way.check(model)
            next(iter(way.of(model).trajectory(model, batch, Rng(0, 0, batch.sample_id))))  # some refuse only when they begin
        except ValueError as error:
            raise ValueError(f"{words} cannot draw from {place}: {error}") from error
    return ways


def _usual(model: Any, causal: bool) -> list[str]:
    from textdiff.samplers.blockwise import Blockwise

    if causal:
        return ["Autoregressive"]
    own = model.default_sampler()
    name = type(own.inner if isinstance(own, Blockwise) else own).__name__
    return [f"{name}:steps={steps}" for steps in _STEPS]


def _way(model: Any, place: str, words: str) -> "Decode":
    """A sampler's words, among whose options a temperature may be."""
    from textdiff.decoding import Decode

    name, _, rest = words.partition(":")
    options = [item for item in rest.split(",") if item]
    heat = [item for item in options if item.partition("=")[0].strip() == "temperature"]
    others = ",".join(item for item in options if item not in heat)
    try:
        temperature = float(heat[-1].partition("=")[2]) if heat else 1.0
    except ValueError:
        raise ValueError(f"sampler option {heat[-1]!r} is not name=number") from None
    try:
        return Decode(sampler_named(model, f"{name}:{others}" if others else name, None), temperature)
    except ValueError as error:
        raise ValueError(f"{words} for {place}: {error}") from error
