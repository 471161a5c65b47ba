from functools import partial
from typing import Any

import pytest

from tests.models.tiny import VOCAB, trunk
from textdiff import families
from textdiff.seq2seq import Seq2Seq
from textdiff.spec import from_plain, to_plain

KINDS = [families.masked, families.uniform, families.autoregressive]
VECTORS = [families.diffuseq, families.genie, families.modern, partial(families.latent, response_length=12)]


@pytest.mark.parametrize("kind", KINDS)
def test_rivals_over_tokens_are_of_equal_size_and_their_samplers_fit_them(kind: Any) -> None:
    family = kind(trunk())
    model = family.model.build(VOCAB)
    rival = families.autoregressive(trunk()).model.build(VOCAB)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in rival.parameters())
    for decode in (family.single, family.varied):
        decode.check(model)
    assert family.fill == model.nll_is_bound  # what is written all at once is told no length


@pytest.mark.parametrize("kind", VECTORS)
def test_samplers_of_vectors_fit_their_models(kind: Any) -> None:
    family = kind(trunk(layers=4))
    model = family.model.build(VOCAB)
    for decode in (family.single, family.varied):
        decode.check(model)
    assert family.fill


def test_presets_are_the_families_by_name() -> None:
    found = families.presets(trunk(layers=4), 12, lambda family: family)
    assert list(found) == ["diffuseq", "genie", "modern", "latent", "masked", "uniform", "autoregressive"]
    assert found["latent"]() == families.latent(trunk(layers=4), 12)
    assert found["genie"].__doc__ == families.genie.__doc__


@pytest.mark.parametrize("kind", [*KINDS, *VECTORS])
def test_a_recipe_survives_its_file(kind: Any) -> None:
    recipe = Seq2Seq(**vars(kind(trunk())), data="pairs")
    assert from_plain(to_plain(recipe)) == recipe
