"""Ways to write the text of one causal model, a row at a time: by itself, by transformers' own speculation, or with drafts of a diffusion
model. An end token is written like any other, so that every way writes as many tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedModel

from textdiff.batch import Batch
from textdiff.guidance.filters import Filters
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.candidates import drafted_generate
from textdiff.processes.base import Denoiser
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.drafting import Drafting, FromText
from textdiff.samplers.speculative import DraftLength, Round, Speculative


class Written(NamedTuple):
    """New tokens and what they cost."""

    tokens: Tensor  # (n,) long
    passes: int  # calls of the target, the one that reads the prompt included
    calls: int  # calls of the drafter
    tested: Tensor  # (G,) long, how often the i-th token of a draft was tested, that is, all before it were accepted
    accepted: Tensor  # (G,) long, and was accepted


class Way(Protocol):
    """One way to write."""

    def __call__(self, prompt: Tensor, seed: int) -> Written:
        """Continue `prompt` (n,)."""
        ...


def blank(prompt: Tensor, new: int) -> Batch:
    """One row: the prompt (n,), and `new` targets."""
    tokens = torch.cat([prompt, prompt.new_zeros(new)])[None]
    return Batch.of(tokens, target=(torch.arange(tokens.shape[1], device=prompt.device) >= len(prompt))[None])


@dataclass(frozen=True)
class Alone:
    """The target by itself in our loop, with its key-value cache."""

    target: AutoregressiveLM
    filters: Filters
    new: int

    def __call__(self, prompt: Tensor, seed: int) -> Written:
        batch, nothing = blank(prompt, self.new), torch.zeros(0, dtype=torch.long)
        *_, canvas = Autoregressive().trajectory(self.filters(self.target), batch, Rng(seed, 0, batch.sample_id))
        return Written(canvas.x[0, len(prompt) :], int(canvas.nfe), 0, nothing, nothing)


@dataclass(frozen=True)
class Drafted:
    """Drafts of a diffusion model in our loop."""

    target: AutoregressiveLM
    filters: Filters
    new: int
    drafter: Denoiser
    drafting: Drafting
    length: DraftLength

    def rounds(self, prompt: Tensor, seed: int) -> Iterator[Round]:
        """The start and every round."""
        batch = blank(prompt, self.new)
        target, drafter = self.filters(self.target), self.filters(self.drafter)
        return Speculative(self.drafting, self.length).rounds(target, drafter, batch, Rng(seed, 0, batch.sample_id))

    def __call__(self, prompt: Tensor, seed: int) -> Written:
        *_, (canvas, counts) = self.rounds(prompt, seed)
        tested, accepted = counts.tested[0].cpu(), counts.accepted[0].cpu()
        return Written(canvas.x[0, len(prompt) :], int(counts.passes), int(counts.drafter_calls), tested, accepted)


@dataclass(frozen=True)
class Stock:
    """The `generate` of a stock target; `asked` are further arguments of it, and `drafter` is the network that drafts, if any."""

    target: AutoregressiveLM
    filters: Filters
    new: int
    asked: tuple[tuple[str, Any], ...] = ()
    drafter: nn.Module | None = None

    def generate(self, ids: Tensor, **options: Any) -> Tensor:
        """`ids` (1, n) and the new ones."""
        sequences: Tensor = stock(self.target).generate(ids, **options, **dict(self.asked))  # type: ignore[operator]
        return sequences

    def __call__(self, prompt: Tensor, seed: int) -> Written:
        trunk, vocab, temperature = stock(self.target), self.target.vocab, self.filters.temperature
        options: dict[str, Any] = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
        options |= {"max_new_tokens": self.new, "suppress_tokens": list(vocab.unemittable) or None, "pad_token_id": vocab.pad_id or 0}
        drafter = nn.Identity() if self.drafter is None else self.drafter
        ids = prompt[None]
        with _plain_defaults(trunk), _calls(trunk) as passes, _calls(drafter) as calls, torch.random.fork_rng():
            torch.manual_seed(seed)
            sequences = self.generate(ids, attention_mask=torch.ones_like(ids), **options)
        lengths = [len(prompt), *(past + 1 for past, _ in passes[1:]), sequences.shape[1]]
        drafted = [past + read - length for (past, read), length in zip(passes, lengths, strict=False)]
        tested, accepted = torch.zeros(2, max([*drafted, 0]), dtype=torch.long)
        for count, (before, after) in zip(drafted, pairwise(lengths), strict=True):
            passed = after - before - 1
            tested[: min(count, passed + 1)] += 1
            accepted[:passed] += 1
        return Written(sequences[0, len(prompt) :], len(passes), len(calls), tested, accepted)


@dataclass(frozen=True, kw_only=True)
class StockDrafted(Stock):
    """The same with drafts of a diffusion model."""

    denoiser: Denoiser
    drafting: FromText
    longest: int

    def generate(self, ids: Tensor, **options: Any) -> Tensor:
        drafts = self.filters(self.denoiser)
        sequences: Tensor = drafted_generate(stock(self.target), drafts, ids, self.drafting, self.longest, **options)
        return sequences


def stock(target: AutoregressiveLM) -> PreTrainedModel:
    """The stock model of a target that is one."""
    assert target.backbone.trunk is not None
    return target.backbone.trunk


@contextmanager
def _plain_defaults(trunk: PreTrainedModel) -> Iterator[None]:
    """Without what a checkpoint's own generation_config.json would add to every call."""
    before, trunk.generation_config = trunk.generation_config, GenerationConfig()
    try:
        yield
    finally:
        trunk.generation_config = before


@contextmanager
def _calls(network: nn.Module) -> Iterator[list[tuple[int, int]]]:
    """The calls of a network while the block lasts: how many tokens its cache held, and how many it read."""
    found: list[tuple[int, int]] = []

    def note(module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        tokens, cache = options["input_ids"] if "input_ids" in options else args[0], options.get("past_key_values")
        found.append((0 if cache is None else int(cache.get_seq_length()), int(tokens.shape[1])))

    handle = network.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
