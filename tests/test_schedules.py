import math

import pytest
import torch

from tests.contracts import check_schedule
from textdiff.schedules import (
    Cosine,
    CosineSquared,
    FlowPolynomial,
    Geometric,
    LinearSigma,
    Logarithmic,
    LogLinear,
    OneMinusCosine,
    Polynomial,
    Schedule,
    inside,
)

SCHEDULES = [
    LogLinear(),
    LogLinear(eps=1e-3),
    Cosine(),
    CosineSquared(),
    OneMinusCosine(),
    Polynomial(),
    Polynomial(power=0.5),
    FlowPolynomial(),
    FlowPolynomial(power=0.5),
    Logarithmic(),
    LinearSigma(),
    Geometric(),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_keeps_the_contract(schedule: Schedule) -> None:
    check_schedule(schedule)


@pytest.mark.parametrize(
    ("schedule", "half"),
    [
        (LogLinear(eps=1e-3), 0.5005),
        (Cosine(eps=0), 0.5**0.5),
        (CosineSquared(eps=0), 0.5),
        (OneMinusCosine(eps=0), 1 - 0.5**0.5),
        (Polynomial(2), 0.75),
        (FlowPolynomial(2), 0.25),
        (Logarithmic(), 1 - math.log2(1.5)),
        (LinearSigma(0, 10), math.exp(-5)),
        (Geometric(1e-4, 20), math.exp(-(0.002**0.5))),
    ],
    ids=str,
)
def test_signal_at_half_time_is_the_formula_of_the_paper(schedule: Schedule, half: float) -> None:
    assert float(schedule.alpha(torch.tensor(0.5))) == pytest.approx(half, rel=1e-12)


def test_inside_keeps_times_off_both_ends_and_leaves_the_middle_alone() -> None:
    times = torch.tensor([0.0, 1e-12, 0.3, 1.0], dtype=torch.float64)
    assert inside(times).tolist() == [1e-9, 1e-9, 0.3, 1 - 1e-9]
