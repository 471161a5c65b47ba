import pytest
import torch
from torch import nn

from textdiff.training.optimizer import build_optimizer, learning_rate_at


def test_learning_rate_at_known_points():
    rates = [learning_rate_at(step, steps=110, peak=2.0, warmup=10, final_fraction=0.1) for step in (0, 4, 9, 10, 60, 110, 500)]
    assert rates == pytest.approx([0.2, 1.0, 2.0, 2.0, 1.1, 0.2, 0.2])  # halfway down the cosine: (1 + 0.1) / 2
    assert learning_rate_at(77, 110, 2.0, 10, final_fraction=1.0) == 2.0
    assert learning_rate_at(0, 110, 2.0, 0, final_fraction=1.0) == 2.0


def test_decay_shrinks_matrices_only():
    layer = nn.Linear(3, 3)
    with torch.no_grad():
        layer.bias.fill_(1.0)
    before = {name: p.detach().clone() for name, p in layer.named_parameters()}
    optimizer = build_optimizer(dict(layer.named_parameters()), weight_decay=0.5, betas=(0.9, 0.99))
    for p in layer.parameters():
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    optimizer.step()
    torch.testing.assert_close(layer.weight.detach(), before["weight"] * (1 - 0.1 * 0.5))
    assert torch.equal(layer.bias, before["bias"])


def test_narrow_weights_are_refused():
    with pytest.raises(ValueError, match="float32"):
        build_optimizer(dict(nn.Linear(2, 2).bfloat16().named_parameters()), 0.0, (0.9, 0.99))
