import torch

from textdiff.training.ema import Ema


def test_average_is_the_recursion_by_hand():
    weight = torch.nn.Parameter(torch.tensor([1.0]))
    ema, expected = Ema({"w": weight}, decay=0.3), 1.0
    for step in range(8):
        with torch.no_grad():
            weight.copy_(torch.tensor([float(step**2)]))
        ema.update(step)
        decay = min(0.3, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step**2
    torch.testing.assert_close(ema.average["w"], torch.tensor([expected]))


def test_decay_zero_is_the_last_weights():
    weight = torch.nn.Parameter(torch.randn(5))
    ema = Ema({"w": weight}, decay=0.0)
    with torch.no_grad():
        weight.normal_()
    ema.update(0)
    assert torch.equal(ema.average["w"], weight)


def test_swap_twice_is_nothing_even_after_an_error():
    weight = torch.nn.Parameter(torch.randn(5))
    before = weight.detach().clone()
    ema = Ema({"w": weight}, decay=0.5)
    ema.average["w"].add_(1)
    try:
        with ema.applied():
            torch.testing.assert_close(weight.detach(), before + 1)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(weight, before)
