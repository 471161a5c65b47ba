"""A pilot tells a masked model's estimator what its tokens cost: it is the same for all, counted, and moves no mean."""

from typing import Any

import torch

from tests.data.texts import byte_level
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Example, collate
from textdiff.evaluation.likelihood import sequence_nats
from textdiff.evaluation.measuring import Settings, Texts, measure
from textdiff.evaluation.pilot import piloted
from textdiff.models.base import ModelSpec
from textdiff.models.discrete import Discrete
from textdiff.models.mask_counts import MaskCounts, Profile
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

TRUNK = TransformerConfig(width=16, layers=1, heads=2, max_length=16)
ROWS = [Example(tokens=[10 + i, 65, 66, 10 + 7 * i], target=[False, True, True, True]) for i in range(20)]


def built(spec: ModelSpec) -> Any:
    torch.manual_seed(0)
    tokenizer = byte_level()
    model = spec.build(Vocab.of(tokenizer)).eval()
    model.tokenizer = tokenizer
    return model


def test_it_is_told_to_masked_models_with_draws_enough_and_to_nobody_else() -> None:
    masked, uniform = built(Discrete(backbone=TRUNK)), built(Discrete(process=Uniform(), backbone=TRUNK))
    told, calls = piloted(masked, ROWS, 0, 4)
    assert isinstance(told, Profile)
    assert calls == 16 * 4
    assert piloted(masked, ROWS, 0, 4).told == told
    assert piloted(masked, ROWS, 1, 4).told != told
    assert piloted(masked, ROWS, 0, 3) == (None, 0)
    assert piloted(uniform, ROWS, 0, 16) == (None, 0)


def test_rows_are_scored_with_it_in_any_batch() -> None:
    model = built(Discrete(backbone=TRUNK))
    together, apart = sequence_nats(model, ROWS, 4, 20), sequence_nats(model, ROWS, 4, 3)
    torch.testing.assert_close(together, apart)
    batch = collate(ROWS, pad_id=0)
    told = piloted(model, ROWS, 0, 4).told
    torch.testing.assert_close(MaskCounts(4, told)(model, batch, Rng(0, 0, batch.sample_id)), together)
    assert not torch.allclose(MaskCounts(4)(model, batch, Rng(0, 0, batch.sample_id)), together)


def test_its_calls_are_counted() -> None:
    model = built(Discrete(backbone=TRUNK))
    found = measure(model, "masked", Texts("three", "document", ["one", "two", "three"]), Settings(length=16, draws=4))
    assert found.forwards == 3 * 4 + 3 * 4


def test_a_row_that_costs_infinitely_much_leaves_the_others_alone() -> None:
    model = built(Discrete(backbone=TRUNK))
    banned = Example(tokens=[65, model.vocab.mask_id], target=[False, True])
    found = sequence_nats(model, [banned, *ROWS], 4)
    assert not found[0].isfinite()
    assert found[1:].isfinite().all()
