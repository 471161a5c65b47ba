import math
from statistics import mean

import pytest
import torch

from textdiff.evaluation.seeds import gap, interval, quantile


@pytest.mark.parametrize(
    ("p", "degrees", "table"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 3, 3.18245),
        (0.975, 4, 2.77645),
        (0.95, 5, 2.01505),
        (0.995, 9, 3.24984),
        (0.975, 30, 2.04227),
    ],
)
def test_quantiles_are_those_of_the_tables(p: float, degrees: int, table: float) -> None:
    assert quantile(p, degrees) == pytest.approx(table, rel=1e-5)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_intervals_hold_the_mean_as_often_as_they_say(count: int) -> None:
    torch.manual_seed(0)
    draws = torch.randn(4_000, count, dtype=torch.float64) * 3 + 1
    found = [interval(row) for row in draws.tolist()]
    share = mean(abs(one.mean - 1) <= one.half_width for one in found)
    assert abs(share - 0.95) < 4 * math.sqrt(0.95 * 0.05 / len(found))


def test_one_value_has_no_interval_and_says_so() -> None:
    assert math.isnan(interval([2.0]).half_width)
    assert str(interval([2.0])) == "2.0000 (one seed)"
    with pytest.raises(ValueError, match="0 values"):
        interval([])


def test_two_families_are_compared_by_welchs_test() -> None:
    """1, 2, 3 and 2, 4, 6: t = -2 / sqrt(1/3 + 4/3) with 2.94 degrees of freedom, rounded down to 2, where P(|T| > t) is
    1 - t / sqrt(2 + t^2)."""
    found = gap([1.0, 2.0, 3.0], [2.0, 4.0, 6.0])
    error = math.sqrt(5 / 3)
    t = 2 / error
    assert found == pytest.approx((-2.0, 4.30265 * error, 1 - t / math.sqrt(2 + t * t)), rel=1e-5)


def test_welchs_interval_and_p_value_keep_their_level_where_spreads_differ() -> None:
    torch.manual_seed(0)
    a, b = torch.randn(4_000, 3, dtype=torch.float64) * 3 + 1, torch.randn(4_000, 5, dtype=torch.float64)
    found = [gap(one, other) for one, other in zip(a.tolist(), b.tolist(), strict=True)]
    assert 0.93 < mean(abs(one.mean - 1) <= one.half_width for one in found) < 0.97
    assert all((one.p < 0.05) is (abs(one.mean) > one.half_width) for one in found)


def test_a_family_of_one_run_has_no_spread_to_compare_with() -> None:
    found = gap([1.0, 2.0], [5.0])
    assert found.mean == -3.5
    assert math.isnan(found.half_width)
    assert math.isnan(found.p)
    assert gap([1.0, 1.0], [1.0, 1.0]) == (0.0, 0.0, 1.0)
