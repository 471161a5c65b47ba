"""Both structures of a DiffuSeq step are one function: equal losses and gradients in float64."""

import pytest
import torch

from textdiff.bench import embedding
from textdiff.bench.embedding import EmbeddingBench, check_sides

TINY = EmbeddingBench(rounds=1, vocabulary=50, embedding=8, width=16, layers=1, heads=2, length=12, batch_size=4)


@pytest.mark.parametrize("targets", [0, 6])
def test_losses_and_gradients_agree(targets: int) -> None:
    model, batch = TINY.build()
    batch = batch._replace(target=(torch.arange(12) >= targets).expand(4, 12))
    check_sides(model.double(), batch, tolerance=1e-10)


def test_a_side_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = TINY.build()
    right = embedding.published
    monkeypatch.setattr(embedding, "published", lambda *args: right(*args)._replace(loss=right(*args).loss * 1.01))
    with pytest.raises(AssertionError, match="no ratio"):
        check_sides(model, batch)


def test_steps_of_both_sides_keep_the_weights_finite() -> None:
    rows = TINY.run()
    assert [row.quantity for row in rows] == ["speed"] * 2
    assert all(torch.isfinite(torch.tensor([row.low, row.median, row.high])).all() for row in rows)
