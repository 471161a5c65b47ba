"""The three structures of a training step are one function: equal losses and gradients in float64."""

import pytest
import torch

from textdiff.bench import training
from textdiff.bench.training import TrainingBench, check_sides

TINY = TrainingBench(vocabulary=50, width=16, layers=1, heads=2, length=12, batch_size=4)


def test_losses_and_gradients_agree() -> None:
    model, batch = TINY.build()
    check_sides(model.double(), batch, tolerance=1e-10)


def test_a_side_that_computes_something_else_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch = TINY.build()
    right = training.whole_cross_entropy
    monkeypatch.setattr(training, "whole_cross_entropy", lambda *args: right(*args) + 1e-3 * model.backbone.embedding.weight.square().sum())
    with pytest.raises(AssertionError, match="no ratio"):
        check_sides(model, batch)


def test_steps_of_all_sides_keep_the_weights_finite() -> None:
    rows = TrainingBench(rounds=1, vocabulary=50, width=16, layers=1, heads=2, length=12, batch_size=4).run()
    assert [row.quantity for row in rows] == ["speed"] * 3 + ["peak memory"] * 2
    assert all(torch.isfinite(torch.tensor([row.low, row.median, row.high])).all() for row in rows)
