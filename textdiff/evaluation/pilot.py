"""What a bound's estimator is told of a model before it scores: from few rows, evenly spaced, on noise of its own."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from textdiff.batch import Example, collate
from textdiff.models.base import PILOT_DRAWS, LanguageModel

_ROWS = 16


class Piloted(NamedTuple):
    """What `mean_nll` is told, and the network calls it took, a row being one."""

    told: Any
    calls: int


def piloted(model: LanguageModel, examples: Sequence[Example], seed: int, draws: int) -> Piloted:
    """A pilot on up to 16 of the examples that have targets; on every process the same, whatever is scored where."""
    count = min(_ROWS, len(examples))
    chosen = [i * len(examples) // count for i in range(count)]
    chosen = [i for i in chosen if any(examples[i].target)]
    if not chosen:
        return Piloted(None, 0)
    device = next(model.parameters()).device
    batch = collate([examples[i] for i in chosen], pad_id=model.vocab.pad_id or 0, sample_id=chosen).to(device)
    told = model.pilot(batch, seed, draws)
    return Piloted(told, 0 if told is None else len(chosen) * PILOT_DRAWS)
