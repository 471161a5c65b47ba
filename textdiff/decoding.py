"""From prompts to texts: rows with blank targets, a model's sampler, and the decoded tokens up to the first end token."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any, NamedTuple

import torch

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Example, collate
from textdiff.guidance.filters import Filters
from textdiff.models.base import LanguageModel
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.base import Sampler, written


@dataclass(frozen=True)
class Decode:
    """How one text is drawn; raises ValueError for a temperature below 0."""

    sampler: Sampler
    """The loop; samplers that count their steps take `--...sampler.steps`."""
    temperature: float = 1.0
    """0 takes the most probable token; it acts on beliefs about tokens, so models that regress vectors do without (1)."""

    def __post_init__(self) -> None:
        Filters(self.temperature)

    def of(self, model: LanguageModel) -> Sampler:
        """The sampler as the model runs it: in blocks where it has them, and with rows that end at its EOS."""
        if isinstance(self.sampler, Autoregressive):
            return replace(self.sampler, eos_id=-1 if model.vocab.eos_id is None else model.vocab.eos_id)
        generator: Any = model
        sampler: Sampler = generator.in_blocks(self.sampler)
        return sampler

    def check(self, model: LanguageModel) -> None:
        """Raise ValueError when the model cannot be drawn from so."""
        denoiser: Any = model
        self.of(model).check(denoiser)
        Filters(self.temperature)(denoiser)


def has_encoder(model: LanguageModel) -> bool:
    """Whether prompts go to the trunk's encoder, as the batch's source, instead of standing before the response."""
    backbone = model.spec.backbone
    return isinstance(backbone, TransformerConfig) and backbone.encoder_layers > 0


class Drawn(NamedTuple):
    """One text for each prompt, and what they cost."""

    texts: list[str]
    nfe: float  # network calls a row took part in, on average
    seconds: float  # in all
    ids: list[list[int]]  # of the targets of each row


def draw(
    model: LanguageModel,
    blanks: Sequence[Example],
    decode: Decode,
    number: int = 0,
    batch_size: int = 64,
    seed: int = 0,
    progress: Callable[[int], None] = lambda rows: None,
) -> Drawn:
    """The text of every row of `blanks`, whose targets are what is written; noise is keyed by (seed, number, row), not by the batch.

    A denoiser decodes its state to token ids aligned with the rows, whatever the shape of the state.
    """
    began, device, was_training = time.perf_counter(), next(model.parameters()).device, model.training
    sampler, denoiser = decode.of(model), Filters(decode.temperature)(model)  # type: ignore[arg-type]
    order = sorted(range(len(blanks)), key=lambda i: len(blanks[i].tokens) + len(blanks[i].source))
    ids: list[list[int]] = [[] for _ in blanks]
    calls = 0
    model.eval()
    try:
        for start in range(0, len(order), batch_size):
            index = order[start : start + batch_size]
            batch = collate([blanks[i] for i in index], model.vocab.pad_id or 0, sample_id=index).to(device)
            last = deque(sampler.trajectory(denoiser, batch, Rng(seed, number, batch.sample_id)), maxlen=1).pop()
            with torch.no_grad():
                tokens = written(denoiser, batch, last.x)
            calls += int(last.nfe.sum())
            for i, row, target in zip(index, tokens.cpu(), batch.target.cpu(), strict=True):
                ids[i] = row[target].tolist()
            progress(len(index))
    finally:
        model.train(was_training)
    texts = [text_of(model, row) for row in ids]
    return Drawn(texts, calls / max(1, len(blanks)), time.perf_counter() - began, ids)


def text_of(model: LanguageModel, ids: Sequence[int]) -> str:
    """The text of generated ids up to the first EOS, without special tokens."""
    vocab = model.vocab
    hidden = {vocab.bos_id, vocab.pad_id, vocab.mask_id}
    text: str = model.tokenizer.decode([i for i in takewhile(lambda i: i != vocab.eos_id, ids) if i not in hidden])
    return text
