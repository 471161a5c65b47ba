"""The same seed gives two models the same noise on the same tokens: their difference varies less than two numbers of their own noise."""

from copy import deepcopy

import pytest
import torch

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.models.base import LanguageModel, ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.models.embedding import EmbeddingDiffusion
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.vocab import Vocab

TRUNK = TransformerConfig(width=16, layers=1, heads=2, max_length=8)
SPECS = [
    Discrete(Masked(), backbone=TRUNK),
    Discrete(Uniform(), backbone=TRUNK),
    Discrete(Hybrid(), backbone=TRUNK),
    EmbeddingDiffusion(backbone=TRUNK, width=4),
]


def pair(spec: ModelSpec) -> tuple[LanguageModel, LanguageModel]:
    """A model and the same one a little disturbed."""
    torch.manual_seed(0)
    model = spec.build(Vocab(size=6, tokens=6, mask_id=5)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # so that the cost depends on the noise
        other = deepcopy(model)
        for parameter in other.parameters():
            parameter.mul_(1 + 0.02 * torch.randn_like(parameter))
    return model, other


@pytest.mark.parametrize("spec", SPECS)
def test_a_paired_difference_varies_less(spec: ModelSpec) -> None:
    model, other = pair(spec)
    batch = Batch.of(torch.randint(5, (1, 8), generator=torch.Generator().manual_seed(1)).expand(200, 8))
    first, second, unpaired = model.mean_nll(batch, 0, 4), other.mean_nll(batch, 0, 4), other.mean_nll(batch, 1, 4)
    assert torch.equal(model.mean_nll(batch, 0, 4), first)
    assert float((first - second).var()) < 0.2 * float((first - unpaired).var())
