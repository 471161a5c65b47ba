"""Small models trained on a task whose answers are known: reversing a prefix of ten of 24 symbols."""

from dataclasses import replace

import pytest
import torch

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.models import embedding_presets as presets
from textdiff.models.embedding import EmbeddingDiffusion, EmbeddingDiffusionLM
from textdiff.randomness import Rng
from textdiff.samplers.ddim import DDIM
from textdiff.vocab import Vocab

SYMBOLS, HALF = 24, 10
TRUNK = TransformerConfig(width=64, layers=2, heads=4, max_length=2 * HALF, place_embedding=True)
CASES = {
    "Diffusion-LM, 16 numbers": presets.diffusion_lm(TRUNK),
    "cross-entropy, 16 numbers": presets.diffusion_lm_simple(TRUNK),
    "cross-entropy, 64 numbers, shifted": presets.diffusion_lm_simple(TRUNK, 64),
    "anchored, 64 numbers, shifted": replace(
        presets.diffusion_lm(TRUNK, 64),
        objective=replace(presets.diffusion_lm(TRUNK).objective, anchor=1.0),  # type: ignore[call-arg]
    ),
    "modern, 32 numbers": presets.modern(TRUNK, noise=2.5),
}


def reversals(rows: int, seed: int) -> Batch:
    prefix = torch.randint(SYMBOLS, (rows, HALF), generator=torch.Generator().manual_seed(seed))
    tokens = torch.cat([prefix, prefix.flip(1)], dim=1)
    return Batch.of(tokens, target=(torch.arange(2 * HALF) >= HALF).expand(rows, 2 * HALF))


def trained(spec: EmbeddingDiffusion, steps: int = 1200, rows: int = 64) -> EmbeddingDiffusionLM:
    torch.manual_seed(0)
    model = spec.build(Vocab(size=SYMBOLS, tokens=SYMBOLS))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.0)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps)
        optimizer.zero_grad()
        loss = model(reversals(rows, step), 0, step, step / steps)
        (loss.total / loss.tokens).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


@pytest.mark.slow
@pytest.mark.parametrize("case", list(CASES))
def test_a_prefix_is_reversed(case: str) -> None:
    model, batch = trained(CASES[case]), reversals(256, -1)
    sampled = DDIM(steps=50, eta=1.0).sample(model, batch, Rng(0, 0, batch.sample_id))
    exact = float((sampled == batch.tokens).all(1).double().mean())
    print(f"{case}: exact match {exact:.3f}")
    assert exact >= 0.95
