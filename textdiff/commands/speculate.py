"""`textdiff speculate`: a diffusion model, or a drafter trained for it, drafts for a causal one, whose text comes out in fewer passes."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

from textdiff.commands.device import device_named
from textdiff.sampler_words import sampler_named

if TYPE_CHECKING:
    from textdiff.batch import Batch
    from textdiff.samplers.drafting import Drafting
    from textdiff.samplers.speculative import Counts

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Speculate:
    """Continue a prompt by a causal model that another one drafts for: a diffusion model with the same token ids, or a drafter trained for
    it. The text follows the causal model's law, whatever the drafter is."""

    target: str
    """The causal model, whose text it is: run folder, checkpoint folder, or hub id."""
    drafter: str
    """The diffusion model, or the target's own drafter: run folder, checkpoint folder, or hub id."""
    prompt: str = ""
    """Text to continue; without one the model begins by itself."""
    max_new_tokens: int | None = None
    """Tokens to add to the prompt (default: the target's own)."""
    draft_length: int = 8
    """Tokens to draft at a time, at most."""
    adaptive: bool = False
    """Draft fewer where few were accepted of late."""
    draft_steps: int | None = None
    """Calls of the drafter for one draft: so many chunks from left to right (default: 1), or the steps of --draft-sampler (its own)."""
    draft_sampler: str | None = None
    """Draft by any sampler of textdiff, such as Greedy, with options as in Threshold:tau=0.8."""
    temperature: float = 1.0
    """Of the target and of the drafter; 0 takes the most probable token."""
    seed: int = 0
    """The same seed gives the same text."""
    device: str | None = None
    """cpu, cuda, ... (default: a GPU when there is one)."""

    def run(self) -> None:
        """Print the text, then what it cost beside plain sampling by the target, in this process."""
        from transformers.utils import logging

        logging.disable_progress_bar()
        from textdiff.guidance.filters import Filters
        from textdiff.randomness import Rng
        from textdiff.report import printable
        from textdiff.samplers.autoregressive import Autoregressive
        from textdiff.samplers.speculative import Adaptive, DraftLength, Speculative

        filters, length = Filters(self.temperature), (Adaptive if self.adaptive else DraftLength)(self.draft_length)
        device = device_named(self.device)
        target, drafter = self._models()
        drafting = self._drafting(drafter)
        drafting.check(drafter)
        batch = self._batch(target, drafter).to(device)
        guided, drafts = filters(target.to(device)), filters(drafter.to(device))
        rng = Rng(self.seed, 0, batch.sample_id)
        eos_id = -1 if target.vocab.eos_id is None else target.vocab.eos_id
        plain, plain_seconds = _timed(lambda: list(Autoregressive(eos_id).trajectory(guided, batch, rng))[-1])
        sampler = Speculative(drafting, length, eos_id)
        found, seconds = _timed(lambda: list(sampler.rounds(guided, drafts, batch, rng))[-1])
        written = int(batch.target[0].long().argmax() + found.counts.emitted[0])
        special = {target.vocab.bos_id, target.vocab.eos_id, target.vocab.pad_id}
        ids = [i for i in found.canvas.x[0, :written].tolist() if i not in special]
        print(printable(target.tokenizer.decode(ids)))
        for line in (f"{type(drafting.rule).__name__}: {drafting.reason}", *_costs(found.counts)):
            print(f"[{line}]", file=sys.stderr)
        here, there = int(found.counts.emitted) / seconds, int(plain.nfe) / plain_seconds
        print(f"[{here / there:.2f} times the tokens per second of plain sampling: {here:.1f} and {there:.1f}]", file=sys.stderr)

    def _models(self) -> tuple[Any, Any]:
        from textdiff.speculation.opening import causal, drafter_of

        target = causal(self.target, "target")
        return target, drafter_of(target, self.drafter)

    def _drafting(self, drafter: Any) -> "Drafting":
        from textdiff.processes.next_block import NextBlock
        from textdiff.samplers.drafting import AnyOrder, LeftToRightChunks
        from textdiff.samplers.feature_drafting import FromFeatures

        if isinstance(drafter.process, NextBlock):
            if self.draft_steps is not None or self.draft_sampler is not None:
                raise ValueError(f"{self.drafter} writes a draft in one step of its own: leave --draft-steps and --draft-sampler out")
            return FromFeatures()
        if self.draft_sampler is None:
            return LeftToRightChunks(1 if self.draft_steps is None else self.draft_steps)
        return AnyOrder(sampler_named(drafter, self.draft_sampler, self.draft_steps))

    def _batch(self, target: Any, drafter: Any) -> "Batch":
        """One row: BOS or EOS, the prompt, and the blanks."""
        import torch

        from textdiff.batch import Batch
        from textdiff.data.tokenizer import encode

        new = target.generation_config.max_new_tokens if self.max_new_tokens is None else self.max_new_tokens
        if new < 1:
            raise ValueError(f"max_new_tokens is {new}, expected 1 or more")
        first = target.vocab.bos_id if target.vocab.bos_id is not None else target.vocab.eos_id
        ids = [] if first is None else [first]
        ids += encode(target.tokenizer, self.prompt) if self.prompt else []
        if not ids:
            raise ValueError("there is no prompt and the tokenizer has no BOS or EOS token to begin with: give a prompt")
        limit = min(target.max_length, drafter.max_length)
        if len(ids) + new > limit:
            raise ValueError(f"a prompt of {len(ids)} tokens and {new} new ones exceed the {limit} that both models read: shorten one")
        tokens = torch.tensor([ids + [0] * new])
        return Batch.of(tokens, target=(torch.arange(len(ids) + new) >= len(ids))[None])


def _costs(counts: "Counts") -> list[str]:
    passes, emitted = int(counts.passes), int(counts.emitted)
    calls = f"{passes} target passes and {int(counts.drafter_calls)} drafter calls for {emitted} tokens"
    shares = [f"{a / n:.2f}" for a, n in zip(counts.accepted[0].tolist(), counts.tested[0].tolist(), strict=True) if n]
    return [f"{calls}: {emitted / passes:.2f} per target pass", f"accepted by place in the draft: {' '.join(shares) or 'none drafted'}"]


def _timed(run: Callable[[], Kind]) -> tuple[Kind, float]:
    """What `run` returns, and the shorter of the times that it takes twice: the first call of a model prepares for the others."""
    times = []
    for _ in range(2):
        begun = perf_counter()
        result = run()
        times.append(perf_counter() - begun)
    return result, min(times)
