"""How well texts do what was asked of them, beside how fluent they are: the table and the picture of controlled generation.

`trigram` is nats/token of the samples under a trigram of the training text, `distinct-2` the share of different pairs of tokens.
Both count targets only.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from textdiff.batch import Example, collate
from textdiff.data.token_classes import TokenClasses
from textdiff.evaluation.ngram import Trigram, nats_per_token
from textdiff.guidance.base import Guidance
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.models.classifier import NoisyClassifier
from textdiff.processes.base import Denoiser
from textdiff.randomness import Rng
from textdiff.samplers.base import Sampler
from textdiff.vocab import Vocab

_ROWS = 64  # sampled and judged at a time

Write = Callable[[Guidance, Sequence[Example]], list[Example]]  # a text for each shape
Trial = tuple[str, float | None, list[Example], Tensor]  # guidance, strength, texts, how much of what was asked each of them did
Steering = Sequence[tuple[str, float, Guidance]]  # name, strength


class Measured(NamedTuple):
    """One row of the table."""

    guidance: str
    gamma: float | None
    success: float  # percent
    standard_error: float
    trigram: float  # nats/token
    distinct: float


class Table:
    """Rows that are printed as soon as they are measured; fluency counts the targets of each text."""

    def __init__(self, train: Sequence[Example], vocab: Vocab) -> None:
        self.trigram, self.vocab, self.rows = Trigram(train, vocab), vocab, list[Measured]()
        print(f"\n{'guidance':<22}{'gamma':>6}{'success %':>16}{'trigram':>10}{'distinct-2':>12}")

    def add(self, guidance: str, gamma: float | None, examples: Sequence[Example], right: Tensor) -> None:
        """Measure texts, of which `right` (N,) says whether, or how much of what was asked, each did."""
        right = right.double()
        share, error = 100 * float(right.mean()), 100 * float((right.var(correction=0) / len(right)).sqrt())
        row = Measured(guidance, gamma, share, error, nats_per_token(self.trigram, examples, self.vocab), distinct(examples))
        shown = "" if gamma is None else f"{gamma:g}"
        print(f"{guidance:<22}{shown:>6}{f'{share:.1f} ± {error:.1f}':>16}{row.trigram:>10.3f}{row.distinct:>12.3f}", flush=True)
        self.rows.append(row)


def distinct(examples: Sequence[Example]) -> float:
    """Different pairs of neighbouring targets, as a share of all pairs."""
    pairs = [
        (first, second)
        for row in examples
        for first, second, *wanted in zip(row.tokens, row.tokens[1:], row.target, row.target[1:], strict=False)
        if all(wanted)
    ]
    return len(set(pairs)) / max(1, len(pairs))


def judged(judge: NoisyClassifier, examples: Sequence[Example]) -> Tensor:
    """Whether the judge finds the kind of each text, (N,) bool; or of each of their targets, (N,) where it judges tokens."""
    parts = []
    for start in range(0, len(examples), _ROWS):
        batch = collate(examples[start : start + _ROWS], judge.vocab.pad_id or 0).to(judge.device)
        right = judge.judge(batch) == (batch.source if judge.spec.each else batch.source[:, 0])
        parts.append(right[batch.target] if judge.spec.each else right)
    return torch.cat(parts).cpu()


def sampled(denoiser: Denoiser, sampler: Sampler, shapes: Sequence[Example], vocab: Vocab, device: Any) -> list[Example]:
    """A text for each shape, whose targets are blank; the noise is that of its number, whatever guides."""
    found: list[Example] = []
    for start in range(0, len(shapes), _ROWS):
        some = shapes[start : start + _ROWS]
        batch = collate(some, vocab.pad_id or 0, sample_id=range(start, start + len(some))).to(device)
        tokens = sampler.sample(denoiser, batch, Rng(0, 0, batch.sample_id)).cpu()
        found += [shape._replace(tokens=row[: len(shape.tokens)].tolist()) for shape, row in zip(some, tokens, strict=True)]
    return found


def class_trials(
    write: Write, steering: Steering, shapes: Sequence[Example], free: list[Example], classes: TokenClasses
) -> Iterator[Trial]:
    """The classes of a real row's tokens are asked for; texts that are `free` of guidance are held against them first."""
    yield "classes: none", 0.0, free, agreement(free, shapes, classes.of)
    for name, strength, guidance in steering:
        found = write(guidance, [shape._replace(source=classes.pattern(shape)) for shape in shapes])
        yield f"classes: {name}", strength, found, agreement(found, shapes, classes.of)


def end_trials(write: Write, shapes: Sequence[Example], free: list[Example], eos_id: int) -> Iterator[Trial]:
    """Texts of a quarter, a half and three quarters of each row are asked for by giving their end."""
    lengths = [max(3, len(shape.tokens) * (1 + i % 3) // 4) for i, shape in enumerate(shapes)]
    yield "end: none", None, free, ends_there(free, lengths, eos_id)
    found = write(ClassifierFree(0.0), [ending_at(shape, length, eos_id) for shape, length in zip(shapes, lengths, strict=True)])
    yield "end: given", None, found, ends_there(found, lengths, eos_id)


def gap_trials(write: Write, shapes: Sequence[Example], free: list[Example]) -> Iterator[Trial]:
    """The middle of real rows is to be written again, with the rest hidden or given; what is counted lies in the gap."""
    gaps = [with_gap(shape) for shape in shapes]
    blind = [text._replace(target=gap.target) for text, gap in zip(free, gaps, strict=True)]
    yield "gap: hidden context", None, blind, agreement(blind, shapes)
    found = write(ClassifierFree(0.0), gaps)
    yield "gap: given context", None, found, agreement(found, shapes)


def ending_at(shape: Example, length: int, eos_id: int) -> Example:
    """The first `length` tokens of a row, the last of them a given end: what comes after is padding."""
    return shape._replace(tokens=[*shape.tokens[: length - 1], eos_id], target=[*shape.target[: length - 1], False])


def ends_there(examples: Sequence[Example], lengths: Sequence[int], eos_id: int) -> Tensor:
    """Whether the first end in each text is its wanted token, (N,) bool."""
    ends = [[*row.tokens[1:], eos_id].index(eos_id) + 2 for row in examples]
    return torch.tensor(ends) == torch.tensor(lengths)


def with_gap(shape: Example) -> Example:
    """A row whose middle third is blank and whose other tokens are given."""
    third = len(shape.tokens) // 3
    return shape._replace(target=[third <= i < 2 * third and wanted for i, wanted in enumerate(shape.target)])


def agreement(found: Sequence[Example], wanted: Sequence[Example], of: Tensor | None = None) -> Tensor:
    """The share of each text's targets whose token is the wanted one, or with `of` (V,) of its class, (N,)."""
    shares = []
    for a, b in zip(found, wanted, strict=True):
        pair = torch.stack([torch.as_tensor(a.tokens), torch.as_tensor(b.tokens)])
        same = torch.eq(*(pair if of is None else of[pair]))
        shares.append(same[torch.as_tensor(a.target)].double().mean())
    return torch.stack(shares)


def draw(path: Path, rows: Sequence[Measured], curves: Sequence[str]) -> str:
    """Success and fluency against gamma of the guidances in `curves`, which begin where there is none; returns the picture's name."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4), layout="constrained")
    success, fluency = figure.subplots(1, 2)
    real, none = rows[0], [row for row in rows if row.guidance == "none"]
    for guidance in (name for name in curves if any(row.guidance == name for row in rows)):
        points = [*none, *(row for row in rows if row.guidance == guidance)]
        gammas = [row.gamma for row in points]
        success.errorbar(gammas, [r.success for r in points], [r.standard_error for r in points], marker="o", capsize=2, label=guidance)
        fluency.plot(gammas, [r.trigram for r in points], marker="o", label=guidance)
    labels = ("control success, % (bars: 1 s.e.)", "trigram nats/token")
    for axes, level, label in zip((success, fluency), (real.success, real.trigram), labels, strict=True):
        axes.axhline(level, color="0.5", linestyle="--", linewidth=0.8)
        place: dict[str, Any] = {"xytext": (-2, 3), "textcoords": "offset points", "xycoords": ("axes fraction", "data")}
        axes.annotate("held-out text", (1, level), color="0.4", ha="right", **place)
        axes.set_xlabel("guidance strength gamma")
        axes.set_ylabel(label)
        axes.spines[["top", "right"]].set_visible(False)
    success.legend(frameon=False)
    figure.savefig(path, dpi=120)
    return path.name
