"""Multiple choice: the answer to which a model gives the least nats after the question, in all or per character or token of the answer."""

import math
import string
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from textdiff.batch import Example, collate
from textdiff.data.readers import ROW_SUFFIXES, BadRows, read_rows
from textdiff.data.tokenizer import Encoder
from textdiff.evaluation.statistics import ratio_error
from textdiff.models.base import LanguageModel

_QUESTION = ("context", "prompt", "question")  # columns, the first that is there


class Question(NamedTuple):
    """What is asked, what may be answered, and which of it is right."""

    context: str
    choices: tuple[str, ...]
    answer: int


class Share(NamedTuple):
    """Of the questions, with its standard error, nan for one question."""

    value: float
    error: float


@dataclass(frozen=True)
class Choices:
    """How many questions a model answers rightly."""

    questions: int
    chance: float  # of a guess
    kind: str  # of the likelihoods: "exact" or "upper bound"
    total: Share  # by the nats of a choice: lm-eval's acc
    per_character: Share  # by nats per character of the choice as it is written: lm-eval's acc_norm
    per_token: Share
    chosen: tuple[int, ...]  # by total nats, of each question

    def as_dict(self) -> dict[str, Any]:
        """Plain numbers for json; None for the error of a single question, which does not exist."""
        shares = {"total": self.total, "per_character": self.per_character, "per_token": self.per_token}
        plain = {name: {"value": value, "error": None if math.isnan(error) else error} for name, (value, error) in shares.items()}
        return {**asdict(self), **plain}


def read_questions(path: Path) -> list[Question]:
    """The questions of a .jsonl, .json or .parquet file: context (or prompt, or question), choices, and the answer as its number from 0,
    its text, or its letter.

    Raises ValueError naming the row that is not so or whose answer is one choice by its text and another by its letter, and for a file
    that holds no rows.
    """
    if path.suffix.lower() not in ROW_SUFFIXES:
        raise ValueError(f"{path} has suffix {path.suffix!r}, expected one of {', '.join(ROW_SUFFIXES)}")
    found = [_question(row, place) for place, row in read_rows(path, BadRows(skip=False))]
    if not found:
        raise ValueError(f"{path} holds no question")
    return found


def _question(row: dict[str, Any], place: str) -> Question:
    column = next((name for name in _QUESTION if isinstance(row.get(name), str)), None)
    if column is None:
        raise ValueError(f"{place}: no text under {', '.join(_QUESTION)}; columns are {list(row)}")
    choices = row.get("choices")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(choice, str) and choice.strip() for choice in choices):
        raise ValueError(f"{place}: choices are {choices!r}, expected a list of two or more texts")
    if len(set(choices)) < len(choices):
        raise ValueError(f"{place}: two choices are the same")
    if any("\ud800" <= character <= "\udfff" for text in (row[column], *choices) for character in text):
        raise ValueError(f"{place}: it holds half of a surrogate pair, which is not text")
    return Question(row[column], tuple(choices), _answer(row.get("answer"), choices, place))


def _answer(given: Any, choices: Sequence[str], place: str) -> int:
    letters = string.ascii_uppercase[: len(choices)]
    if isinstance(given, int) and not isinstance(given, bool) and 0 <= given < len(choices):
        return given
    named = {choices.index(given)} if isinstance(given, str) and given in choices else set()
    if isinstance(given, str) and len(given) == 1 and given in letters:
        named.add(letters.index(given))
    if len(named) > 1:
        raise ValueError(f"{place}: answer {given!r} is the text of one choice and the letter of another: give its number from 0")
    if not named:
        expected = f"a number from 0 to {len(choices) - 1}, the text of a choice, or its letter"
        raise ValueError(f"{place}: answer is {given!r}, expected {expected}")
    return named.pop()


class Continued:
    """Rows of a model of plain text: BOS (or EOS), the context, and the choice, which alone is scored and which no EOS ends.

    White space at the end of a context belongs to the choice, and a row that is too long loses the beginning of its context, as lm-eval has
    it. `shortened` counts those.
    """

    def __init__(self, model: LanguageModel) -> None:
        tokenizer = model.tokenizer
        self.encode, self.length, self.shortened = Encoder(tokenizer), model.max_length, 0
        first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        self.start: list[int] = [] if first is None else [first]

    def __call__(self, question: Question) -> list[Example]:
        """A row for each choice; raises ValueError for a choice that does not fit by itself, has nothing before it, or no token of its own,
        because the tokenizer merges it into the context's last.
        """
        context = question.context.rstrip()
        space = question.context[len(context) :]
        before, *whole = self.encode([context, *(context + space + choice for choice in question.choices)])
        return [
            self._row(before.ids.tolist(), encoded.ids.tolist(), space + choice)
            for encoded, choice in zip(whole, question.choices, strict=True)
        ]

    def _row(self, before: list[int], whole: list[int], choice: str) -> Example:
        scored, room = len(whole) - len(before), self.length - len(self.start)
        if scored < 1:
            raise ValueError(
                f"the choice {choice[:40]!r} has no token of its own, the tokenizer merges it into the end of its context: "
                "let the choice begin, or the context end, with a space"
            )
        if scored > room or (scored == len(whole) and not self.start):
            raise ValueError(
                f"the choice {choice[:40]!r} has {scored} tokens and the model reads {room}, with something before it: shorten it"
            )
        self.shortened += len(whole) > room
        kept = whole[-room:]
        context = len(self.start) + len(kept) - scored
        return Example(self.start + kept, [False] * context + [True] * scored, text_bytes=len(choice.encode()))


def scored(
    model: LanguageModel,
    questions: Sequence[Question],
    rows: Callable[[Question], Sequence[Example]],
    draws: int = 16,
    batch_size: int = 32,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Choices:
    """Every choice of every question after its context, `rows` making them rows; of equal costs the first choice wins.

    A bound's draws are keyed by the question, so that its choices meet the same noise. Raises ValueError without questions, and for
    a model whose nats are not a number, which no choice can win by.
    """
    if not questions:
        raise ValueError("there is no question to answer")
    made = [(number, example) for number, question in enumerate(questions) for example in rows(question)]
    nats = _nats(model, made, draws, batch_size, seed, progress)
    lost = next((number for (number, _), cost in zip(made, nats, strict=True) if math.isnan(cost)), None)
    if lost is not None:
        raise ValueError(f"the nats of question {lost + 1} ({questions[lost].context[:40]!r}) are not a number: check the model's weights")
    sizes = {
        "total": [1.0] * len(made),
        "per_character": [float(len(choice)) for question in questions for choice in question.choices],
        "per_token": [float(sum(example.target)) for _, example in made],
    }
    chosen = {name: _least(questions, [n / size for n, size in zip(nats, of, strict=True)]) for name, of in sizes.items()}
    shares = {
        name: _share([pick == question.answer for pick, question in zip(picks, questions, strict=True)]) for name, picks in chosen.items()
    }
    chance = math.fsum(1 / len(question.choices) for question in questions) / len(questions)
    kind = "upper bound" if model.nll_is_bound else "exact"
    return Choices(len(questions), chance, kind, **shares, chosen=tuple(chosen["total"]))


def _nats(
    model: LanguageModel, made: Sequence[tuple[int, Example]], draws: int, batch_size: int, seed: int, progress: Callable[[int, int], None]
) -> list[float]:
    """Of each row, whose noise is that of its question's number."""
    device, was_training = next(model.parameters()).device, model.training
    nats: list[float] = []
    model.eval()
    try:
        for start in range(0, len(made), batch_size):
            part = made[start : start + batch_size]
            batch = collate([example for _, example in part], model.vocab.pad_id or 0, sample_id=[number for number, _ in part]).to(device)
            nats += model.mean_nll(batch, seed, draws if model.nll_is_bound else 1).tolist()
            progress(len(nats), len(made))
    finally:
        model.train(was_training)
    return nats


def _least(questions: Sequence[Question], costs: Sequence[float]) -> list[int]:
    picks, first = [], 0
    for question in questions:
        own = costs[first : first + len(question.choices)]
        picks.append(min(range(len(own)), key=own.__getitem__))
        first += len(own)
    return picks


def _share(right: Sequence[bool]) -> Share:
    return Share(sum(right) / len(right), ratio_error(np.array(right, dtype=np.float64), np.ones(len(right))))
