from functools import partial
from typing import Any

import pytest
import torch

from textdiff.backbones.transformer import TransformerConfig
from textdiff.models import presets
from textdiff.models.sizes import Around, of_size, trained_parameters
from textdiff.vocab import Vocab

TRUNK = TransformerConfig(width=64, layers=2, heads=4, max_length=64)
VOCAB = Vocab(size=300, tokens=300, mask_id=3, pad_id=0, bos_id=1, eos_id=2)
TARGET = trained_parameters(presets.autoregressive(TRUNK).build(VOCAB))


@pytest.mark.parametrize(
    "around",
    [presets.masked, presets.block, presets.uniform, presets.hybrid, presets.score, presets.modern, presets.diffusion_lm],
)
def test_every_family_is_as_large_as_the_rival_but_for_less_than_one_hidden_unit(around: Around) -> None:
    spec = of_size(around, TRUNK, VOCAB, TARGET)
    found = trained_parameters(spec.build(VOCAB))
    unit = 2 * TRUNK.width + 1  # of an MLP: a row in, its bias, and a column out
    assert TARGET - TRUNK.layers * unit < found <= TARGET


def test_what_fits_already_is_left_as_it_is() -> None:
    assert of_size(presets.masked, TRUNK, VOCAB, TARGET) == presets.masked(TRUNK)


def test_a_model_of_more_parts_gets_a_narrower_trunk_and_its_running_mean_does_not_count() -> None:
    around = partial(presets.latent, length=31)
    target = trained_parameters(around(TransformerConfig(width=40, layers=2, heads=4, max_length=64)).build(VOCAB)) + 5_000
    model: Any = of_size(around, TRUNK, VOCAB, target).build(VOCAB)
    assert model.spec.backbone.width == model.spec.autoencoder.width == 40
    assert 0 <= target - trained_parameters(model) < 2 * (2 * 40 + 1)
    mean = sum(parameter.numel() for parameter in model.autoencoder.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == trained_parameters(model) + mean


def test_what_is_too_large_at_any_width_has_the_narrowest_trunk() -> None:
    assert of_size(presets.modern, TRUNK, VOCAB, 100).backbone.width == 8  # type: ignore[attr-defined]


def test_counting_draws_no_random_number() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    of_size(presets.modern, TRUNK, VOCAB, TARGET)
    assert torch.equal(torch.rand(3), expected)
