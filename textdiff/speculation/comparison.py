"""What each way to write costs: all of them in one process, in turns, on the same prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.table import Table
from torch import Tensor

from textdiff.batch import Batch
from textdiff.bench.base import Bench, quartiles, ratios
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.speculation.ways import Way, Written

_TIE = {torch.float32: 1e-4, torch.float64: 1e-10}  # nats between two tokens, less than passes of different sizes tell apart


class Same(NamedTuple):
    """How many of the rows are those of another way, and how many turn off where two tokens are as good as equally likely."""

    rows: int
    ties: int
    of: int

    def __str__(self) -> str:
        return f"{self.rows} of {self.of}" + (f", {self.ties} at a tie" if self.ties else "")


@dataclass(frozen=True)
class Line:
    """What one way costs over all prompts."""

    name: str
    tokens: int
    passes: int
    calls: int
    seconds: float  # of a round, median
    speed: tuple[float, float, float]  # tokens per second in those of the faster plain way: lower quartile, median, upper quartile
    accepted: list[float]  # by place in the draft, of those tested there
    same: Same | None  # as the first way writes, where no chance is in it

    @property
    def per_pass(self) -> float:
        """Tokens written per pass of the target."""
        return self.tokens / self.passes


def compared(
    bench: Bench, ways: Mapping[str, Way], plain: Sequence[str], target: AutoregressiveLM, prompts: Sequence[Tensor], chance: bool
) -> list[Line]:
    """A line for each way, in seconds of `bench`'s clock; speed is that of the faster of the ways in `plain`.

    Without `chance` (at temperature 0) what each writes is compared to what the first does.
    """
    found: dict[str, list[Written]] = {}

    def side(name: str, i: int) -> None:
        found[name] = [ways[name](prompt, i * len(prompts) + row) for row, prompt in enumerate(prompts)]

    times = bench.interleaved({name: lambda i, name=name: side(name, i) for name in ways})  # type: ignore[misc]
    middle = {name: quartiles(each)[1] for name, each in times.items()}
    base, first = min(plain, key=middle.__getitem__), next(iter(ways))
    lines = []
    for name, rows in found.items():
        alike = None if chance else same(target, prompts, found[first], rows)
        lines.append(_line(name, rows, middle[name], ratios(times[base], times[name]), alike))
    return lines


def _line(name: str, rows: Sequence[Written], seconds: float, speed: tuple[float, float, float], alike: Same | None) -> Line:
    most = max(len(row.tested) for row in rows)
    tested, accepted = torch.zeros(2, most, dtype=torch.long)
    for row in rows:
        tested[: len(row.tested)] += row.tested
        accepted[: len(row.accepted)] += row.accepted
    shares = [a / n for a, n in zip(accepted.tolist(), tested.tolist(), strict=True) if n]
    tokens, passes, calls = (sum(part) for part in zip(*((len(row.tokens), row.passes, row.calls) for row in rows), strict=True))
    return Line(name, tokens, passes, calls, seconds, speed, shares, alike)


def same(target: AutoregressiveLM, prompts: Sequence[Tensor], one: Sequence[Written], other: Sequence[Written]) -> Same:
    """Token for token, row by row."""
    rows = ties = 0
    for prompt, mine, theirs in zip(prompts, one, other, strict=True):
        if torch.equal(mine.tokens, theirs.tokens):
            rows += 1
        elif len(mine.tokens) == len(theirs.tokens):
            ties += _is_tie(target, prompt, mine.tokens, theirs.tokens)
    return Same(rows, ties, len(prompts))


@torch.no_grad()
def _is_tie(target: AutoregressiveLM, prompt: Tensor, one: Tensor, other: Tensor) -> bool:
    place = int((one != other).long().argmax())
    tokens = torch.cat([prompt, one[: place + 1]])[None]
    batch, where = Batch.of(tokens), torch.zeros_like(tokens, dtype=torch.bool)
    where[0, -1] = True
    log_prob = target.predictor(batch)(tokens, batch.sample_id).logits(where)[0].log_softmax(-1)
    return bool((log_prob[one[place]] - log_prob[other[place]]).abs() < _TIE.get(log_prob.dtype, 1e-4))


def table(lines: Sequence[Line], caption: str) -> Table:
    """The lines for a terminal."""
    names = ("written", "per pass", "passes", "calls", "speed (quartiles)", "identical", "accepted by place")
    result = Table(*names, caption=caption, caption_justify="left", caption_style="", box=SIMPLE_HEAD)
    for line in lines:
        low, median, high = line.speed
        shares = " ".join(f"{share:.2f}".removeprefix("0") for share in line.accepted)
        alike = "" if line.same is None else str(line.same)
        speed = f"{median:.2f} ({low:.2f}-{high:.2f})"
        result.add_row(line.name, f"{line.per_pass:.2f}", str(line.passes), str(line.calls), speed, alike, shares)
    for column in result.columns:  # a number that is cut short says something else
        column.min_width = max(len(str(cell)) for cell in [column.header, *column.cells])
    return result
