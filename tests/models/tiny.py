"""Tiny models with weights large enough that every token matters, in double precision so that equal means equal to rounding."""

from typing import Any

import torch
from torch import Tensor

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.models.base import LanguageModel
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.vocab import Vocab

# Nine rows: six tokens of text, EOS (5 is text, 6 is EOS), then what may never be written: [PAD] 7, [MASK] 8, and two spare rows.
VOCAB = Vocab(size=11, tokens=9, mask_id=8, pad_id=7, bos_id=0, eos_id=6)
TEXT = 7  # ids 0 .. 6 may be written
PAD, MASK, EOS = 7, 8, 6


def _enlivened(model: LanguageModel, seed: int) -> Any:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.35, generator=generator)
    return model.double().eval()


def trunk(**options: Any) -> TransformerConfig:
    return TransformerConfig(**{"width": 16, "layers": 2, "heads": 2, "max_length": 32, **options})


def diffusion(vocab: Vocab = VOCAB, seed: int = 0, backbone: TransformerConfig | None = None, **options: Any) -> DiscreteDiffusionLM:
    model: DiscreteDiffusionLM = _enlivened(Discrete(backbone=backbone or trunk(), **options).build(vocab), seed)
    return model


def autoregressive(vocab: Vocab = VOCAB, seed: int = 0, backbone: TransformerConfig | None = None) -> AutoregressiveLM:
    model: AutoregressiveLM = _enlivened(AutoregressiveSpec(backbone=backbone or trunk()).build(vocab), seed)
    return model


def ragged(seed: int = 0) -> Batch:
    """Four rows of 6, 3, 5 and 4 tokens, the first of each (and the third of the first row) no target."""
    generator = torch.Generator().manual_seed(seed)
    attend = torch.arange(6) < torch.tensor([6, 3, 5, 4])[:, None]
    tokens = torch.randint(1, 6, (4, 6), generator=generator).masked_fill(~attend, PAD)
    target = attend.clone()
    target[:, 0] = False
    target[0, 2] = False
    stratum = torch.tensor([[2, 8], [0, 8], [7, 8], [4, 8]])
    return Batch.of(tokens, target=target, attend=attend, sample_id=torch.tensor([11, 4, 29, 7]), stratum=stratum)


def lone(batch: Batch, row: int) -> Batch:
    """One row of a batch without its padding."""
    single = batch.rows(torch.tensor([row]))
    n = int(single.attend.sum())
    return single._replace(
        tokens=single.tokens[:, :n], target=single.target[:, :n], attend=single.attend[:, :n], document=single.document[:, :n]
    )


def logits(model: LanguageModel, tokens: Tensor, context: Batch | None = None) -> Tensor:
    """The network's raw logits (B, L, V) in its own order: no shift, nothing banned."""
    backbone = model.backbone
    noise = torch.zeros(len(tokens), dtype=torch.float64)
    hidden = backbone(tokens, backbone.context(Batch.of(tokens) if context is None else context), noise)
    return hidden @ backbone.head().weight.T
