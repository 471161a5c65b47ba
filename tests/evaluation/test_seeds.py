import math
from statistics import mean

import pytest
import torch

from textdiff.evaluation.seeds import interval, quantile


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
