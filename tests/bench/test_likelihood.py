"""Every estimator against the enumeration of every mask pattern of a short sequence; the variance ratio against known variances."""

from itertools import product
from math import comb
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data.texts import byte_level
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.bench.likelihood import LikelihoodBench, StratifiedCounts, bernoulli, variance_ratio
from textdiff.models.autoregressive import AutoregressiveSpec
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.mask_counts import MaskCounts
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

LENGTH, COPIES = 4, 4000
TRUNK = TransformerConfig(width=16, layers=1, heads=2, max_length=16)


@pytest.fixture
def model() -> DiscreteDiffusionLM:
    torch.manual_seed(0)
    built = Discrete(backbone=TransformerConfig(width=16, layers=1, heads=2, max_length=LENGTH)).build(Vocab(size=6, tokens=6, mask_id=5))
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(8.0)  # so that the cost depends on what is masked
    return built.double().eval()


@torch.no_grad()
def enumerated(model: DiscreteDiffusionLM, tokens: torch.Tensor) -> float:
    """Sum over mask patterns m of the cost of m / (|m| C(L, |m|)): the integral over t of 1/t times the chance of m at t."""
    nats = 0.0
    for pattern in product((False, True), repeat=LENGTH):
        masked = torch.tensor([pattern])
        count = int(masked.sum())
        if count:
            pred = model.predictor(Batch.of(tokens))(tokens.masked_fill(masked, 5), torch.tensor([count / LENGTH], dtype=torch.float64))
            nats -= float(pred.log_prob(tokens, masked).sum()) / (count * comb(LENGTH, count))
    return nats


def test_all_estimators_have_the_enumerated_mean(model: DiscreteDiffusionLM) -> None:
    tokens = torch.tensor([[0, 3, 1, 4]])
    exact, copies = enumerated(model, tokens), Batch.of(tokens.expand(COPIES, LENGTH))
    for estimator in (bernoulli, StratifiedCounts(2), StratifiedCounts(3), MaskCounts(4), MaskCounts(7)):
        draws = estimator(model, copies, Rng(0, 0, copies.sample_id))
        assert abs(float(draws.mean()) - exact) < 4 * float(draws.std()) / COPIES**0.5 + 1e-3 * exact  # the cut at t = 1e-3


def test_ratio_of_known_variances() -> None:
    noise = torch.randn(2, 20_000, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low, median, high = variance_ratio(4.0 * noise[0], 0.5 * noise[1], draws=16, seed=0)
    assert low <= median <= high
    assert abs(median - 4.0) < 0.1  # 16 / 16 against 1 / 4


def test_different_means_are_refused() -> None:
    noise = torch.randn(2, 500, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with pytest.raises(AssertionError, match="no ratio"):
        variance_ratio(noise[0], noise[1] + 0.5, draws=4, seed=0)


def test_only_a_masked_model_has_masks_to_count(tmp_path: Path) -> None:
    tokenizer = byte_level()
    for name, spec in (("causal", AutoregressiveSpec(backbone=TRUNK)), ("uniform", Discrete(backbone=TRUNK, process=Uniform()))):
        model: Any = spec.build(Vocab.of(tokenizer))
        model.tokenizer = tokenizer
        model.save_pretrained(tmp_path / name)
        with pytest.raises(ValueError, match="no masked diffusion model"):
            LikelihoodBench(model=str(tmp_path / name)).measure()
    masked: Any = Discrete(backbone=TRUNK).build(Vocab.of(tokenizer))
    masked.tokenizer = tokenizer
    masked.save_pretrained(tmp_path / "masked")
    with pytest.raises(ValueError, match="reads 16 tokens and sequences have 64"):
        LikelihoodBench(model=str(tmp_path / "masked")).measure()
    rows = LikelihoodBench(rounds=1, model=str(tmp_path / "masked"), length=16, sequences=2).measure()
    assert [row.quantity for row in rows][2] == "variance of 4 importance-sampled counts"
    assert all(0 < row.low <= row.median <= row.high for row in rows)
