"""Speculation as it happens, in a terminal: what is accepted, what the target writes itself, and what it refuses."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text
from torch import Tensor

from textdiff.batch import Batch
from textdiff.processes.base import Denoiser
from textdiff.randomness import Rng
from textdiff.report import printable
from textdiff.samplers.drafting import Draft, Drafting, Drafts, Place, Rule
from textdiff.samplers.speculative import Counts
from textdiff.speculation.ways import Drafted

_FRAME = 0.15  # seconds that a round stays, at least


class Frame(NamedTuple):
    """One row after a round, as ids."""

    before: list[int]  # final before it, the prompt included
    accepted: list[int]
    own: list[int]  # the target's own token
    refused: list[int]
    counts: Counts


@dataclass(frozen=True)
class _Noted(Drafting):
    """A drafting that notes its drafts, the last one last."""

    inner: Drafting
    drafts: list[Tensor]  # (g,) each

    @property
    def rule(self) -> Rule:  # type: ignore[override]
        return self.inner.rule

    def check(self, drafter: Denoiser) -> None:
        self.inner.check(drafter)

    def begin(self, target: Denoiser, drafter: Denoiser, batch: Batch) -> Drafts:
        return _NotedDrafts(self.inner.begin(target, drafter, batch), self.drafts)


class _NotedDrafts:
    def __init__(self, inner: Drafts, drafts: list[Tensor]) -> None:
        self.inner, self.drafts, self.most = inner, drafts, inner.most

    def __call__(self, place: Place, rng: Rng) -> Draft:
        draft = self.inner(place, rng)
        begin = int(place.settled[0])
        self.drafts.append(draft.tokens[0, begin : begin + int(place.size[0])])
        self.most = self.inner.most
        return draft

    def listening(self) -> AbstractContextManager[object]:
        return self.inner.listening()

    def crop(self, count: Tensor) -> None:
        self.inner.crop(count)
        self.most = self.inner.most


def frames(way: Drafted, prompt: Tensor, seed: int) -> Iterator[Frame]:
    """Every round of a row that continues `prompt` (n,); the last token of a row has no draft."""
    drafts: list[Tensor] = []
    written, noted = 0, 0
    for canvas, counts in replace(way, drafting=_Noted(way.drafting, drafts)).rounds(prompt, seed):
        fresh = int(counts.emitted) - written
        if not fresh:
            continue
        draft = drafts[-1].tolist() if len(drafts) > noted else []
        row, begin = canvas.x[0].tolist(), len(prompt) + written
        end = begin + fresh
        yield Frame(row[:begin], row[begin : end - 1], row[end - 1 : end], draft[fresh - 1 :], counts)
        written, noted = written + fresh, len(drafts)


def show(console: Console, way: Drafted, prompt: Tensor, seed: int, tokenizer: Any) -> None:
    """Write a row: as it grows where the console is a terminal, else its text and what it cost."""
    prompt_size = len(prompt)
    if not console.is_terminal:
        *_, last = frames(way, prompt, seed)
        console.print(_drawn(last._replace(refused=[]), prompt_size, tokenizer), soft_wrap=True)
        return
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        for frame in frames(way, prompt, seed):
            live.update(_drawn(frame, prompt_size, tokenizer), refresh=True)
            time.sleep(_FRAME)
        live.update(_drawn(frame._replace(refused=[]), prompt_size, tokenizer), refresh=True)


def _drawn(frame: Frame, prompt_size: int, tokenizer: Any) -> Group:
    """The row and what it has cost: the prompt dim, accepted tokens green, the target's own bold, refused ones struck through."""
    parts = (
        (frame.before[:prompt_size], "dim"),
        (frame.before[prompt_size:], ""),
        (frame.accepted, "green"),
        (frame.own, "bold"),
        (frame.refused, "strike dim red"),
    )
    text = Text()
    for ids, style in parts:
        text.append(printable(tokenizer.decode(ids, skip_special_tokens=True)), style)
    passes, emitted = int(frame.counts.passes), int(frame.counts.emitted)
    calls = int(frame.counts.drafter_calls)
    cost = f"{emitted} tokens in {passes} target passes and {calls} drafter calls: {emitted / passes:.2f} per pass"
    return Group(text, Text(f"[{cost}]", "dim"))
