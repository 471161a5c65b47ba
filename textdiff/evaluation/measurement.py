"""What one model says of one set of texts, text by text, and the rules it was counted by: the raw numbers behind every table."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Self

KINDS = ("exact", "upper bound", "estimate")


class TextScore(NamedTuple):
    """The likelihood of one text, summed over its windows."""

    text: int  # its number in the data set
    nats: float  # -log p(text), or a bound of it
    tokens: int  # counted tokens, EOS among them where it counts
    text_bytes: int  # UTF-8 bytes of the text
    characters: int  # Unicode code points
    words: int  # runs of characters that are not white space
    document: int | None = None  # that a passage was cut from: passages of one document are not independent


@dataclass(frozen=True)
class Rules:
    """How tokens were counted; two numbers are comparable only where the rules allow it."""

    unit: str
    """What a text is: "document", "passage" or "response"."""
    start: str | None
    """The token that stands before every text as context; None where there is none, and the first token of a text is its context."""
    end: bool
    """Whether EOS after each text is counted."""
    length: int
    """Tokens of a window, its context included."""
    stride: int
    """Counted tokens of each window of a text after its first."""
    detokenizer: str = "none"
    """What was done to the data's own tokenisation."""
    fill: int | None = None
    """Targets of every response, which EOS fills up to; None where its first EOS is the last target."""


@dataclass(frozen=True)
class Measurement:
    """A model's likelihood of every text of a data set. Raises ValueError for a kind that is none of `KINDS`."""

    model: str
    data: str
    kind: str
    rules: Rules
    texts: str
    """Digest of the texts: measurements of the same texts can be paired."""
    tokenizer: str
    """Digest of the tokenizer: only models that share it can be compared per token."""
    parameters: int
    draws: int
    forwards: int
    """Network calls, a row being one call."""
    seed: int
    """Of the bound's noise: equal seeds are common random numbers."""
    training_seed: int | None = None
    """Of the run that made the model, where it is known."""
    scores: tuple[TextScore, ...] = ()
    weights: str = ""
    """Digest of the model's weights: a measurement is gone on with, or used again, only while the model is the same."""
    target_se: float | None = None
    """The standard error that was asked for, nats per token; `scores` then holds a random part of the texts where that was enough."""
    outcome: str = ""
    """What became of it, in a sentence."""
    lost: float = 0.0
    """Share of the texts that the tokenizer does not give back."""

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}, expected one of {', '.join(KINDS)}")

    @classmethod
    def read(cls, path: Path) -> Self:
        """The measurement that `write` wrote; raises ValueError for a file that does not hold one."""
        try:
            head, *rows = [json.loads(line) for line in path.read_text().splitlines()]
            rules = Rules(**head.pop("rules"))
            return cls(**head, rules=rules, scores=tuple(TextScore(**row) for row in rows))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} does not hold a measurement ({error}): measure again") from error

    def write(self, path: Path) -> None:
        """A line with everything but the scores, then a line for each text."""
        working = path.with_suffix(".tmp")
        working.write_text("".join(json.dumps(line) + "\n" for line in (self.head(), *(score._asdict() for score in self.scores))))
        working.rename(path)

    def head(self) -> dict[str, Any]:
        """Everything but the scores, as plain data."""
        return {name: value for name, value in asdict(self).items() if name != "scores"}


def read_all(folder: Path) -> Sequence[Measurement]:
    """Every measurement of a folder, in the order of the files' names."""
    return [Measurement.read(path) for path in sorted(folder.glob("*.jsonl"))]
