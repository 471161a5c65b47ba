import math

import numpy
import pytest
import torch
from torch import Tensor

from tests.contracts import CONSTANT, DATA, OTHER, Enumeration, check_process
from tests.test_schedules import SCHEDULES
from textdiff.batch import Clean
from textdiff.processes.base import Noised, UniformTime
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.schedules import Cosine, Geometric, LogLinear, Schedule
from textdiff.vocab import Vocab

MASK = 3
PAIRS = torch.cartesian_prod(torch.arange(3), torch.arange(3))
ENTROPY = float(torch.special.entr(DATA).sum())


def masked(schedule: Schedule) -> Masked:
    return Masked(schedule).bind(Vocab(size=4, tokens=4, mask_id=MASK))


def enumeration(schedule: Schedule, belief: Tensor = DATA) -> Enumeration:
    def noise(t: float) -> Tensor:
        alpha = float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))
        return torch.tensor([0, 0, 0, 1 - alpha], dtype=torch.float64)

    return Enumeration(noise, belief=belief)


def cross_entropies(belief: Tensor) -> tuple[float, float]:
    """Expected -log p summed over the masked tokens: with exactly one masked (both choices averaged), and with both masked."""
    row, column = belief / belief.sum(1, keepdim=True), belief / belief.sum(0)
    one = -(DATA * (row.log() + column.log())).sum() / 2
    both = -(DATA.sum(1) * belief.sum(1).log()).sum() - (DATA.sum(0) * belief.sum(0).log()).sum()
    return float(one), float(both)


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine(), Geometric()], ids=str)
def test_keeps_the_contract(schedule: Schedule) -> None:
    check_process(masked(schedule), enumeration(schedule).noise)


def test_the_mask_token_is_required() -> None:
    with pytest.raises(ValueError, match="add_mask_token"):
        Masked().bind(Vocab(size=3, tokens=3))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_in_the_noise_clock_every_schedule_has_the_same_bound(schedule: Schedule) -> None:
    """Between two signal levels the bound is (u2 - u1) (1 - (u1 + u2) / 2) 2 CE_one + (u2^2 - u1^2) / 2 CE_both, u = 1 - alpha."""
    start, end = schedule.inverse(torch.tensor([0.9, 0.1], dtype=torch.float64)).tolist()
    for belief in (DATA, OTHER):
        one, both = cross_entropies(belief)
        exact = 0.8 * (1 - 0.5) * 2 * one + (0.9**2 - 0.1**2) / 2 * both
        assert enumeration(schedule, belief).integral(masked(schedule), start, end) == pytest.approx(exact, rel=1e-9)


def test_the_whole_bound_is_the_entropy_or_ln_k_or_more() -> None:
    process = masked(LogLinear())
    assert enumeration(LogLinear()).integral(process, 0, 1) == pytest.approx(ENTROPY, abs=1e-12)
    assert enumeration(LogLinear(), CONSTANT).integral(process, 0, 1) == pytest.approx(2 * math.log(3), abs=1e-12)
    assert enumeration(LogLinear(), OTHER).integral(process, 0, 1) > ENTROPY + 0.1


def test_integrand_is_rate_times_cross_entropy_at_masks_only() -> None:
    x0, xt = torch.tensor([[0, 1], [2, 2]]), torch.tensor([[0, MASK], [MASK, MASK]])
    truth = enumeration(LogLinear())
    pred, t = truth.prediction(xt, 0.25), torch.full((2,), 0.25)
    log_prob = pred.table.gather(-1, x0[..., None])[..., 0]
    where = torch.tensor([[True, True], [True, False]])
    nats = masked(LogLinear()).nelbo_at(pred, Clean(x0, x0), xt, t, where)
    expected = torch.tensor([[0.0, -log_prob[0, 1]], [-log_prob[1, 0], 0.0]], dtype=torch.float64) * 4
    torch.testing.assert_close(nats, expected)


def test_clean_positions_cost_nothing_at_time_zero() -> None:
    """t = 0 has an infinite rate and nothing masked: the integrand there is 0, not 0 * inf."""
    x0 = torch.tensor([[0, 1]])
    xt, t = torch.tensor([[0, MASK]]), torch.tensor([[0.0, 0.5]])
    process, pred, where = masked(LogLinear()), enumeration(LogLinear()).prediction(xt, 0.5), torch.ones(1, 2, dtype=torch.bool)
    for s in (None, torch.zeros(1, 2)):
        nats = process.nelbo_at(pred, Clean(x0, x0), xt, t, where, s)
        assert float(nats[0, 0]) == 0
        assert bool(nats.isfinite().all())


def finite_bound(steps: int) -> tuple[float, float]:
    """The T-step bound under the true belief by enumeration, and its first bin (0, 1/T)."""
    truth, process = enumeration(LogLinear()), masked(LogLinear())
    bins = []
    for i in range(1, steps + 1):
        nats, probability = truth.nelbo(process, i / steps, (i - 1) / steps)
        bins.append(float((nats.sum(1) * probability).sum()))
    return sum(bins), bins[0]


def test_bins_sum_to_the_integral_at_rate_one_over_steps() -> None:
    """T bins exceed the entropy by I / T: two tokens are revealed together with probability 1 / T, at the cost of their information I."""
    one, both = cross_entropies(DATA)
    mutual = both - ENTROPY
    for steps in (1, 4, 64):
        total, first = finite_bound(steps)
        assert total == pytest.approx(ENTROPY + mutual / steps, abs=1e-12)
        assert first == pytest.approx((1 - 1 / steps) / steps * 2 * one + both / steps**2, abs=1e-12)


def test_the_loop_of_steps_that_starts_from_pure_noise_leaves_no_mask_whatever_alpha_at_one_is() -> None:
    process = masked(LogLinear(eps=0.2))
    x = torch.full((100, 2), MASK)
    one, zero = torch.ones(100), torch.zeros(100)
    assert not bool((process.step(enumeration(LogLinear()).prediction(x, 0.5), x, one, zero, Rng(0, 0, torch.arange(100))) == MASK).any())


def enumerated_boundary(process: Masked, truth: Enumeration, t_min: float) -> float:
    """E boundary by its definition: the bin (0, t_min), plus alpha(1) times the cost of revealing everything from pure noise."""
    one, both = cross_entropies(truth.belief)
    u = 1 - float(process.schedule.alpha(torch.tensor(t_min, dtype=torch.float64)))
    left = float(process.schedule.alpha(torch.tensor(1.0)))
    return u * (1 - u) * 2 * one + u**2 * both + left * both


@pytest.mark.parametrize("eps", [0.0, 1e-2])
@pytest.mark.parametrize("belief", [DATA, OTHER], ids=["true", "wrong"])
def test_uniform_time_and_boundary_together_are_the_whole_bound(eps: float, belief: Tensor) -> None:
    """Over independent corruptions the boundary's mean is its definition; with it, the cut integral is the bound with two coarse end
    bins, which exceed the exact count's expectation by ((1 - alpha(t_min))^2 + alpha(1)^2) (CE_both - 2 CE_one) / 2."""
    schedule, t_min, rows = LogLinear(eps), 0.05, 60_000
    process, truth = masked(schedule), enumeration(schedule, belief)
    x0 = PAIRS[torch.multinomial(DATA.flatten(), rows, replacement=True, generator=torch.Generator().manual_seed(0))]
    where = torch.ones_like(x0, dtype=torch.bool)
    drawn = process.boundary(lambda xt, t: truth.prediction(xt, 0.5), Clean(x0, x0), where, Rng(0, 0, torch.arange(rows)), t_min).sum(1)
    definition = enumerated_boundary(process, truth, t_min)
    assert abs(float(drawn.mean()) - definition) < 4.5 * float(drawn.std()) / rows**0.5

    one, both = cross_entropies(belief)
    u_min, left = 1 - float(schedule.alpha(torch.tensor(t_min, dtype=torch.float64))), eps
    total = truth.integral(process, t_min, 1.0) + definition
    excess = (u_min**2 + left**2) * (both / 2 - one)
    assert total - excess == pytest.approx(exact_count(process, truth), abs=1e-9)


def exact_count(process: Masked, truth: Enumeration) -> float:
    """E of weight * nats under `ExactCount`, enumerated over x0, the count and the hidden subset, with the weights that it returns."""
    total, everywhere, rng = 0.0, torch.ones_like(PAIRS, dtype=torch.bool), Rng(0, 0, torch.arange(9))
    for hidden, share in (([True, False], 0.25), ([False, True], 0.25), ([True, True], 0.5)):
        xt = PAIRS.masked_fill(torch.tensor(hidden), MASK)
        noised = ExactCount.with_count(process, PAIRS, everywhere, torch.full((9,), sum(hidden)), rng)
        nats = process.nelbo_at(truth.prediction(xt, 0.5), Clean(PAIRS, PAIRS), xt, noised.t, everywhere)
        total += share * float((DATA.flatten() * noised.weight * nats.sum(1)).sum())
    return total


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_exact_counts_have_the_expectation_of_the_integral(schedule: Schedule) -> None:
    for belief in (DATA, OTHER):
        one, both = cross_entropies(belief)
        assert exact_count(masked(schedule), enumeration(schedule, belief)) == pytest.approx(one + both / 2, rel=1e-12)


def test_exact_counts_hide_every_subset_of_targets_equally_often_and_nothing_else() -> None:
    """Counts 1 .. n are equally frequent, and within a count every subset is; known tokens and target-less rows stay."""
    rows = 30_000
    x0 = torch.zeros(rows, 4, dtype=torch.long)
    target = torch.tensor([True, False, True, True]).repeat(rows, 1)
    target[0] = False
    stratum = torch.stack([torch.arange(rows), torch.full((rows,), rows)], 1)
    noised = ExactCount()(masked(LogLinear()), x0, target, stratum, Rng(0, 0, torch.arange(rows)))
    hidden = noised.xt == MASK
    assert not bool(hidden[~target].any())
    assert float(noised.weight[0]) == 0
    code = (hidden[1:, [0, 2, 3]] * torch.tensor([4, 2, 1])).sum(1)
    share = torch.bincount(code, minlength=8) / (rows - 1)
    expected = torch.tensor([0, 1, 1, 1, 1, 1, 1, 3]) / 9  # subsets of size 1, 2, 3 share a third each
    expected[0] = 0
    assert float((share - expected).abs().max()) < 4.5 * (1 / 9 / rows) ** 0.5


def test_stratified_counts_cover_the_global_batch() -> None:
    """Six rows of six targets each: every count 1 .. 6 occurs once, whichever rows this process holds."""
    x0, target = torch.zeros(6, 6, dtype=torch.long), torch.ones(6, 6, dtype=torch.bool)
    stratum = torch.stack([torch.tensor([3, 0, 5, 1, 4, 2]), torch.full((6,), 6)], 1)
    noised = ExactCount()(masked(LogLinear()), x0, target, stratum, Rng(7, 0, torch.arange(6)))
    assert (noised.xt == MASK).sum(1).tolist() == [4, 1, 6, 2, 5, 3]


def test_uniform_time_is_stratified_keeps_known_tokens_and_weighs_the_interval() -> None:
    rows = 4000
    x0, target = torch.zeros(rows, 5, dtype=torch.long), torch.ones(rows, 5, dtype=torch.bool)
    target[:, 2] = False
    stratum = torch.stack([torch.arange(rows), torch.full((rows,), rows)], 1)
    noised: Noised = UniformTime(t_min=0.1)(masked(LogLinear()), x0, target, stratum, Rng(0, 0, torch.arange(rows)))
    slot = ((noised.t - 0.1) / 0.9 * rows).floor()
    assert torch.equal(slot, torch.arange(rows).double())
    assert bool((noised.weight == 0.9).all())
    assert bool((noised.xt[:, 2] == 0).all())
    share = (noised.xt[:, [0, 1, 3, 4]] == MASK).double().mean()
    assert abs(float(share) - 0.55) < 4.5 * (0.25 / (4 * rows)) ** 0.5


def test_changes_are_the_positions_that_step_changes() -> None:
    process, rng = masked(LogLinear()), Rng(0, 0, torch.arange(500))
    xt = torch.where(rng.uniform("some", (2,)) < 0.7, MASK, 1)
    t, s = torch.full((500,), 0.8), torch.full((500,), 0.5)
    xs = process.step(enumeration(LogLinear()).prediction(xt, 0.5), xt, t, s, rng)
    assert torch.equal(process.changes(xt, t, s, rng), xs != xt)


def test_rows_with_their_own_times_are_corrupted_at_their_own_rates() -> None:
    """t (B, L): each position by its own clock (block diffusion)."""
    t = torch.tensor([0.2, 0.9], dtype=torch.float64).repeat(20_000, 1)
    xt = masked(LogLinear()).corrupt(torch.zeros(20_000, 2, dtype=torch.long), t, Rng(0, 0, torch.arange(20_000)))
    share = (xt == MASK).double().mean(0)
    numpy.testing.assert_allclose(share, [0.2, 0.9], atol=4.5 * (0.16 / 20_000) ** 0.5)
