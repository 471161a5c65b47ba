from typing import Any

import pytest

from tests.models.tiny import VOCAB, trunk
from textdiff import families
from textdiff.seq2seq import Seq2Seq
from textdiff.spec import from_plain, to_plain

KINDS = [families.masked, families.uniform, families.autoregressive]


@pytest.mark.parametrize("kind", KINDS)
def test_rivals_are_of_equal_size_and_their_samplers_fit_them(kind: Any) -> None:
    family = kind(trunk())
    model = family.model.build(VOCAB)
    rival = families.autoregressive(trunk()).model.build(VOCAB)
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in rival.parameters())
    for decode in (family.single, family.varied):
        decode.of(model).check(model)
    assert family.fill == model.nll_is_bound  # what is written all at once is told no length


@pytest.mark.parametrize("kind", KINDS)
def test_a_recipe_survives_its_file(kind: Any) -> None:
    recipe = Seq2Seq(**vars(kind(trunk())), data="pairs")
    assert from_plain(to_plain(recipe)) == recipe
