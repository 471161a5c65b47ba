"""A model's likelihood of every text of a data set: resumable, on any number of processes, up to a standard error where one is asked for.

What is scored together is fixed by data and settings alone: windows of like length form a batch, and the batches come in random order, so
that the running estimate is fair. Neither an interruption nor the number of processes changes a bit of the result.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from textdiff.data.collate import Pairs
from textdiff.data.readers import Pair
from textdiff.data.windows import Extent, Windows
from textdiff.evaluation.collective import from_first
from textdiff.evaluation.identity import model_digest, texts_digest, tokenizer_digest
from textdiff.evaluation.measurement import Measurement, Rules, TextScore
from textdiff.evaluation.raw import Raw, check_same
from textdiff.evaluation.round_trip import share_lost
from textdiff.evaluation.scoring import Plan, Rows, Running, Scoring
from textdiff.models.base import LanguageModel

_USUAL_LENGTH = 128
_OPEN = ("draws", "forwards", "outcome")  # of a measurement: only its end decides them


class Texts(NamedTuple):
    """What is measured."""

    description: str
    unit: str  # what a text is: "document", "passage" or "response"
    texts: Sequence[str] | Sequence[Pair]  # of a pair the response is scored, given the prompt
    detokenizer: str = "none"
    documents: Sequence[int] = ()  # of each passage, where documents were cut

    @property
    def scored(self) -> list[str]:
        """What is scored of each text: all of it, or the response."""
        return [text.response if isinstance(text, Pair) else text for text in self.texts]


@dataclass(frozen=True)
class Settings:
    """How it is measured. Raises ValueError for numbers that mean nothing."""

    length: int | None = None
    """Tokens of a window, its context included (default: 128, or the model's limit if that is less); pairs' rows may be shorter."""
    stride: int | None = None
    """Counted tokens of a text's windows after its first (default: half the length)."""
    end: bool = False
    """Count EOS after each text."""
    draws: int = 16
    """Draws for a bound in one round; an exact likelihood takes one."""
    batch_size: int = 32
    """Windows at a time."""
    seed: int = 0
    """Of the bound's noise, and of the order of texts where a target may end it early."""
    target_se: float | None = None
    """Score texts in random order until the standard error of nats per token over texts is so small; if all texts are not enough, draw
    the bound again in further rounds, while noise of the draws is what is left. An interval that was stopped early covers a little less
    than it says (textdiff/evaluation/stopping.py): for a number to be published measure all texts."""

    def __post_init__(self) -> None:
        for name, value in (("draws", self.draws), ("batch_size", self.batch_size)):
            if value < 1:
                raise ValueError(f"{name} is {value}, expected 1 or more")
        if self.target_se is not None and not self.target_se > 0:
            raise ValueError(f"target_se is {self.target_se}, expected nats per token above 0")


PairRows = Callable[[Sequence[Pair]], Pairs]


def measure(
    model: LanguageModel,
    name: str,
    data: Texts,
    settings: Settings,
    path: Path | None = None,
    progress: Callable[[Running], None] = lambda running: None,
    should_stop: Callable[[], bool] = lambda: False,
    pair_rows: PairRows | None = None,
    training_seed: int | None = None,
) -> Measurement:
    """The likelihood of every text under a model with its tokenizer, or of a random part of them where that meets `settings.target_se`.

    With `path` each finished batch is kept in a file beside it, an interrupted measurement goes on where it stopped, and the result is
    written there; a result that is there already is returned. `pair_rows` says how the model reads pairs (default: as its rows of at
    most `length` tokens). With torch.distributed running each process scores its share of the batches and all return the same.

    Raises ValueError when there is no token to score, when the model cannot read the rows, and when the file at `path` is of another
    measurement; EvaluationStopped when `should_stop`, which is asked once per batch on every process, says so anywhere.
    """
    if model.tokenizer is None:
        raise ValueError(f"{name} has no tokenizer files: text cannot be turned into its ids")
    rows, rules = _rows(model, name, data, settings, pair_rows)
    if not rows.tokens.sum():
        raise ValueError(f"there is no token to score: {data.description} is empty, or nothing in it is a target")
    settings = settings if model.nll_is_bound else replace(settings, draws=1)
    empty = _unmeasured(model, name, data, settings, rules, training_seed)
    finished = from_first(lambda: None if path is None or not path.exists() else _reused(path, empty))
    if finished is not None:
        return finished
    raw = None if path is None else _opened(path.with_suffix(".partial"), empty, settings)
    try:
        result = _measured(model, data, rows, settings, empty, raw, progress, should_stop)
    finally:
        if raw is not None:
            raw.close()
    if path is not None:
        from_first(lambda: _kept(result, path, raw))
    return result


def _unmeasured(model: LanguageModel, name: str, data: Texts, settings: Settings, rules: Rules, training_seed: int | None) -> Measurement:
    """All that is known of a measurement before it begins."""
    return Measurement(
        model=name,
        data=data.description,
        kind="upper bound" if model.nll_is_bound else "exact",
        rules=rules,
        texts=texts_digest(data.texts),
        tokenizer=tokenizer_digest(model.tokenizer),
        parameters=sum(p.numel() for p in model.parameters()),
        draws=settings.draws,
        forwards=0,
        seed=settings.seed,
        training_seed=training_seed,
        weights=model_digest(model),
        target_se=settings.target_se,
        lost=share_lost(model.tokenizer, data.scored),
    )


def _measured(
    model: LanguageModel,
    data: Texts,
    rows: Rows,
    settings: Settings,
    empty: Measurement,
    raw: Raw | None,
    progress: Callable[[Running], None],
    should_stop: Callable[[], bool],
) -> Measurement:
    """The measurement, once its batches are scored."""
    plan = Plan.of(rows, settings.batch_size, settings.seed, settings.target_se)
    was_training = model.training
    model.eval()
    try:
        scoring = Scoring(model, rows, plan, settings.draws, settings.seed, data.documents, raw, progress, should_stop)
        scored, outcome = scoring.run(settings.target_se)
    finally:
        model.train(was_training)
    draws = settings.draws * len(scoring.nats)
    return replace(empty, draws=draws, forwards=scoring.forwards, outcome=outcome, scores=_scores(data, scoring, scored))


def _scores(data: Texts, scoring: Scoring, texts: NDArray[np.int64]) -> tuple[TextScore, ...]:
    nats, tokens = scoring.values(texts).mean(0).tolist(), scoring.rows.of_texts(scoring.rows.tokens)[texts].tolist()
    found, of_text = [], data.scored
    for i, text_nats, counted in zip(texts.tolist(), nats, tokens, strict=True):
        document = data.documents[i] if data.documents else None
        found.append(TextScore(i, text_nats, int(counted), *Extent.of(of_text[i]), document))
    return tuple(found)


def _rows(model: LanguageModel, name: str, data: Texts, settings: Settings, pair_rows: PairRows | None) -> tuple[Rows, Rules]:
    """The rows of a model and the rules they are counted by."""
    length = min(_USUAL_LENGTH, model.max_length) if settings.length is None else settings.length
    pairs = [text for text in data.texts if isinstance(text, Pair)]
    texts = [text for text in data.texts if not isinstance(text, Pair)]
    if not pairs:
        if length > model.max_length:
            raise ValueError(f"length is {length} and {name} reads {model.max_length} tokens: shorten the windows")
        windows = Windows(texts, model.tokenizer, length, settings.stride, settings.end)
        rules = Rules(data.unit, windows.start, settings.end, length, windows.stride, data.detokenizer)
        return Rows.of(windows, windows.text_of), rules
    responses = Pairs(pairs, model.tokenizer, length) if pair_rows is None else pair_rows(pairs)
    if texts or len(responses) != len(data.texts):
        left = len(data.texts) - len(responses)
        raise ValueError(f"{left} of {len(data.texts)} pairs are no rows of {name}: leave them out of every model's measurement")
    start = model.tokenizer.convert_ids_to_tokens(responses.start_id)
    rules = Rules(data.unit, start, True, responses.max_length, responses.max_length, data.detokenizer, responses.fill)
    return Rows.of(responses, np.arange(len(responses))), rules


def _reused(path: Path, wanted: Measurement) -> Measurement:
    """The measurement that a file holds; raises ValueError when it is another than the wanted one."""
    found = Measurement.read(path)
    check_same(path, *({key: value for key, value in of.head().items() if key not in _OPEN} for of in (found, wanted)))
    if found.draws % wanted.draws or (wanted.target_se is None and found.draws != wanted.draws):
        check_same(path, {"draws": found.draws}, {"draws": wanted.draws})
    return found


def _opened(path: Path, empty: Measurement, settings: Settings) -> Raw | None:
    """The file of the unfinished measurement, on the first process only."""
    head: dict[str, Any] = {**empty.head(), "batch_size": settings.batch_size}
    opened: list[Raw] = []
    from_first(lambda: opened.append(Raw(path, head)))
    return opened[0] if opened else None


def _kept(result: Measurement, path: Path, raw: Raw | None) -> None:
    result.write(path)
    if raw is not None:
        raw.remove()
