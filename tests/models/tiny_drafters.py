"""Tiny drafters that read the features of tiny causal models, in double precision and with weights large enough that features matter."""

from typing import Any

import torch

from tests.backbones.stock_models import tiny
from textdiff.backbones.drafter import DrafterConfig
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.models.feature_drafter import Anchored, FeatureDrafter, FeatureDrafterSpec, Followed
from textdiff.vocab import Vocab


def drafter_of(target: AutoregressiveLM, block: int = 5, seed: int = 0, objective: Anchored | None = None) -> FeatureDrafter:
    """A drafter with fresh weights."""
    torch.manual_seed(seed)
    network = DrafterConfig(layers=2, heads=2, block=block, features=2)
    spec = FeatureDrafterSpec(Followed.of(target, "target", network.features), network, objective or Anchored())
    return spec.build(target.vocab).double().attach(target).eval()


def stock(name: str) -> AutoregressiveLM:
    """A stock architecture behind our interface, 64 ids, of which 0 is padding and 2 ends a text."""
    trunk: Any = tiny(name).double()
    vocab, pretrained = Vocab(size=64, tokens=64, eos_id=2, pad_id=0), Pretrained(name=name)
    return AutoregressiveSpec(backbone=pretrained).build(vocab, pretrained.wrap(trunk, vocab, causal=True))


def taught(drafter: FeatureDrafter, rows: torch.Tensor, steps: int) -> FeatureDrafter:
    """The drafter after some steps on `rows` (B, L), enough to be right now and then."""
    optimizer, batch = torch.optim.Adam(drafter.parameters(), lr=3e-3), Batch.of(rows)
    for step in range(steps):
        loss = drafter(batch, 0, step)
        optimizer.zero_grad()
        (loss.total / loss.tokens).backward()
        optimizer.step()
    return drafter
