import math

import pytest
import torch

from tests.contracts import DATA, OTHER, Enumeration, check_process
from tests.processes.formulas import SHARE, Moment, hybrid_moment
from tests.processes.test_interpolating import TIMES, bound, hybrid_noise
from textdiff.batch import Clean
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.schedules import Cosine, LogLinear, Polynomial, Schedule
from textdiff.vocab import Vocab

VOCAB = Vocab(size=4, tokens=4, mask_id=3)


@pytest.mark.parametrize(("share", "gamma"), [(0.1, 1.0), (0.4, 2.0), (0.0, 1.0)])
def test_keeps_the_contract(share: float, gamma: float) -> None:
    check_process(Hybrid(share=share, gamma=gamma).bind(VOCAB), lambda t: hybrid_noise(t, gamma, share))


def test_keeps_the_contract_under_another_clock() -> None:
    """GIDD's time is 1 - schedule.alpha(t)."""
    check_process(Hybrid(Polynomial(), share=SHARE, gamma=0.5).bind(VOCAB), lambda t: hybrid_noise(t**2, gamma=0.5))


def published_weight(t: float, n: int, x: int, z: int) -> float:
    """GIDD's three weights with gamma = 1: of a mask, of the clean token, of another."""
    k = 2 * SHARE / (1 - SHARE)
    c, slope = k * math.sqrt(t * (1 - t)), k * (1 - 2 * t) / (2 * math.sqrt(t * (1 - t)))
    if z == n:
        return 1 / (t * (1 - t))
    rise = c + (1 - t) * slope
    return rise / n / ((1 - t) * (1 - t + c / n)) if z == x else rise / ((1 - t) * c)


@pytest.mark.parametrize("size", [3, 16, 50_000])
def test_weights_are_those_of_gidd_and_count_its_divergence(size: int) -> None:
    cells = [(t, x, z) for t in TIMES for x, z in ((0, 0), (1, 0), (1, size - 1))]
    process = Hybrid(share=SHARE).bind(Vocab(size=size, tokens=size, mask_id=size - 1))
    x, z = (torch.tensor([[value] for value in values]) for values in ([x for _, x, _ in cells], [z for _, _, z in cells]))
    exact = [published_weight(t, size - 1, x, z) for t, x, z in cells]
    weight = process.weight(Clean(x, x), z, torch.tensor([t for t, _, _ in cells], dtype=torch.float64))
    assert weight[:, 0].tolist() == pytest.approx(exact, rel=1e-10)
    moments = [hybrid_moment(t, size, x, z) for t, x, z in cells]
    divergences = [Moment(m.alpha, m.noise, float(m.true[m.z]), m.x, m.z, m.p).kl_and_itakura_saito() for m in moments]
    nats = bound(process, moments, [t for t, _, _ in cells]).tolist()
    assert nats == pytest.approx([w * d for w, d in zip(exact, divergences, strict=True)], rel=1e-10)


@pytest.mark.parametrize("share", [0.05, 0.2, 0.9])
@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_in_the_middle_the_uniform_part_holds_its_share_of_all_probability(share: float, gamma: float) -> None:
    """What is left is halved between the clean token and the mask; of the noise alone the uniform part is 2 p / (1 + p)."""
    at = Hybrid(share=share, gamma=gamma).bind(VOCAB).levels(torch.tensor(0.5, dtype=torch.float64))
    uniform = 3 * float(at.noise)
    assert uniform == pytest.approx(share, rel=1e-14)
    assert float(at.alpha) == pytest.approx((1 - share) / 2, rel=1e-14)
    assert float(at.mask) == pytest.approx((1 - share) / 2, rel=1e-14)
    assert uniform / (uniform + float(at.mask)) == pytest.approx(2 * share / (1 + share), rel=1e-14)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Polynomial(0.5)], ids=str)
def test_without_a_uniform_share_it_is_masked_diffusion(schedule: Schedule) -> None:
    """The same integrand, bins and corruption, and the same tokens after a step in law (both follow the enumerated one)."""
    hybrid, masked = Hybrid(schedule, share=0.0).bind(VOCAB), Masked(schedule).bind(VOCAB)

    def truth(belief: torch.Tensor) -> Enumeration:
        return Enumeration(lambda t: torch.tensor([0, 0, 0, 1 - float(schedule.alpha(torch.tensor(t).double()))]).double(), belief=belief)

    for belief in (DATA, OTHER):
        for t, s in ((0.02, None), (0.5, None), (0.98, None), (0.6, 0.3), (0.3, 0.0)):
            ours, theirs = (truth(belief).nelbo(process, t, s)[0] for process in (hybrid, masked))
            torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    x0, rng = torch.tensor([[0, 1], [2, 2]]).repeat(500, 1), Rng(0, 0, torch.arange(1000))
    t = torch.full((1000,), 0.6, dtype=torch.float64)
    assert torch.equal(hybrid.corrupt(x0, t, rng), masked.corrupt(x0, t, rng))
    assert torch.equal(hybrid.prior(x0, rng), masked.prior(x0, rng))


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Polynomial()], ids=str)
@pytest.mark.parametrize(("share", "gamma"), [(0.0, 1.0), (0.1, 1.0), (0.9, 0.5), (0.5, 2.0)])
def test_time_of_inverts_the_signal_and_its_slope_is_that_of_autograd(schedule: Schedule, share: float, gamma: float) -> None:
    process = Hybrid(schedule, share=share, gamma=gamma).bind(VOCAB)
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64, requires_grad=True)
    alpha = process.alpha(t)
    (slope,) = torch.autograd.grad(alpha.sum(), t)
    alpha = alpha.detach()
    assert bool((alpha.diff() < 0).all())
    torch.testing.assert_close(process.dalpha(t.detach()), slope, rtol=1e-10, atol=1e-14)
    torch.testing.assert_close(process.time_of(alpha), t.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(process.alpha(process.time_of(alpha)), alpha, rtol=1e-12, atol=1e-15)
    assert process.alpha(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([1.0, float(schedule.alpha(torch.tensor(1.0)))], abs=1e-3)


@pytest.mark.parametrize(("share", "gamma"), [(1.0, 1.0), (-0.1, 1.0), (0.1, 0.0), (0.1, 2.5)])
def test_shares_and_shapes_that_are_no_noise_are_refused(share: float, gamma: float) -> None:
    with pytest.raises(ValueError, match=r"expected share in \[0, 1\) and gamma in \(0, 2\]"):
        Hybrid(share=share, gamma=gamma)


def test_the_mask_token_is_required() -> None:
    with pytest.raises(ValueError, match="add_mask_token"):
        Hybrid().bind(Vocab(size=3, tokens=3))
