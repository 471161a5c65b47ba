"""Tiny block diffusion models on stock trunks, and rows for them to read."""

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from tests.backbones.stock_models import CAUSAL, tiny
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.processes.base import TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

VOCAB = Vocab(size=64, tokens=61, mask_id=60, pad_id=0, bos_id=1, eos_id=2)
MASK, PAD, EOS, LENGTH = 60, 0, 2, 11  # longer than the windows of 4
EVERY = [*CAUSAL, "bert", "roberta", "electra"]
FEW = ["gpt2", "llama", "mistral", "gemma3_text", "opt"]
NEAR: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-6}  # GPT-J turns its queries in single precision


def stock(name: str, process: TokenProcess, attention: str | None = None, **options: Any) -> DiscreteDiffusionLM:
    """In double precision, so that equal means equal to rounding."""
    pretrained = Pretrained(name=name)
    trunk = pretrained.wrap(tiny(name, attn_implementation=attention).double(), VOCAB, causal=False)
    model: DiscreteDiffusionLM = Discrete(process=process, backbone=pretrained, **options).build(VOCAB, trunk).eval()
    return model


@cache
def blocks(name: str, size: int, inner: TokenProcess | None = None, **options: Any) -> DiscreteDiffusionLM:
    """For reading only: tests share it."""
    return stock(name, Block(Masked() if inner is None else inner, size), **options)


def causal(name: str) -> PreTrainedModel:
    """The same weights as transformers alone runs them."""
    return tiny(name).double()


def text(count: int, length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(3, 60, (count, length), generator=torch.Generator().manual_seed(seed))


def padded(left: bool, lengths: tuple[int, ...] = (LENGTH, 5, 7)) -> Batch:
    """Rows of these lengths, the first token of each given."""
    column, n = torch.arange(LENGTH), torch.tensor(lengths)[:, None]
    attend = column >= LENGTH - n if left else column < n
    tokens = text(len(lengths)).masked_fill(~attend, PAD)
    target = attend & (column != (LENGTH - n if left else 0))
    return Batch.of(tokens, target=target, attend=attend, sample_id=torch.arange(len(lengths)) + 5)


def packed() -> Batch:
    """Two rows of documents that begin inside blocks, the second padded."""
    document = torch.tensor([[1] * 5 + [2] * 4 + [3] * 2, [1] * 2 + [2] * 7 + [0] * 2])
    return Batch.of(text(2).masked_fill(document == 0, PAD), target=document > 0, attend=document > 0, document=document)


def alone(batch: Batch, row: int) -> Batch:
    """One row of a batch without its padding."""
    single, kept = batch.rows(torch.tensor([row])), batch.attend[row]
    parts = {name: getattr(single, name)[:, kept] for name in ("tokens", "target", "attend", "document")}
    return single._replace(**parts)


def noised(model: DiscreteDiffusionLM, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """xt and times (B, L), one per block."""
    rng, length = Rng(seed, 0, batch.sample_id), batch.tokens.shape[1]
    size = model.process.span(length)
    t = rng.uniform("t", (-(-length // size),)).repeat_interleave(size, 1)[:, :length]
    return model.process.corrupt(batch.tokens, t, rng).where(batch.target, batch.tokens), t


def belief(model: DiscreteDiffusionLM, batch: Batch, xt: Tensor, t: Tensor) -> Tensor:
    with torch.no_grad():
        return model.predictor(batch)(xt, t).logits()


def law(logits: Tensor) -> Tensor:
    """log p over the ids that may be written: a stock model gives all its rows a share."""
    return logits.index_fill(-1, torch.tensor(VOCAB.unemittable), -torch.inf).log_softmax(-1)
