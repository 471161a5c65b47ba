"""A tiny latent model, and a ragged batch for it."""

from typing import Any

import pytest
import torch

from tests.models.tiny import EOS, PAD, VOCAB, trunk
from textdiff.batch import Batch
from textdiff.models.autoencoder import AutoencoderConfig
from textdiff.models.latent import LatentDiffusion

LENGTH, BOS = 4, 0
SIZES = AutoencoderConfig(length=LENGTH, latents=3, latent_width=4, width=16, layers=1, heads=2)
FIRST, SECOND = 0.1, 0.9  # progress inside the two stages
SETTINGS = pytest.mark.parametrize(
    ("backbone", "self_conditioning"), [(trunk(), 0.0), (trunk(encoder_layers=1), 0.5), (trunk(labels=6), 0.0)]
)


def model(seed: int = 0, sizes: AutoencoderConfig = SIZES, **options: Any) -> Any:
    """In double precision, with weights so large that everything matters."""
    built = LatentDiffusion(**{"autoencoder": sizes, "backbone": trunk(), **options}).build(VOCAB)
    generator = torch.Generator().manual_seed(seed)
    for parameter in built.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.35, generator=generator)
    return built.double().eval()


def ragged(backbone: Any = None) -> Batch:
    attend = torch.arange(5) < torch.tensor([5, 3, 4])[:, None]
    tokens = torch.tensor([[BOS, 1, 5, 2, EOS], [BOS, 3, EOS, PAD, PAD], [BOS, 4, 4, EOS, PAD]])
    target = attend.clone()
    target[:, 0] = False
    source, source_attend = None, None
    if backbone is not None and backbone.encoder_layers:
        source = torch.tensor([[1, 2, 3], [4, 5, PAD], [2, PAD, PAD]])
        source_attend = source != PAD
    elif backbone is not None and backbone.labels:
        source = torch.tensor([[2], [0], [5]])
    stratum = torch.tensor([[2, 8], [0, 8], [7, 8]])
    ids = torch.tensor([11, 4, 29])
    return Batch.of(tokens, target, attend, source=source, source_attend=source_attend, sample_id=ids, stratum=stratum)
