import numpy
import pytest
import torch
from torch import Tensor

from tests.contracts import check_process
from tests.processes.formulas import Moment, belief, uniform_moment
from tests.processes.test_interpolating import TIMES, bound
from textdiff.processes.uniform import Uniform
from textdiff.schedules import LinearSigma, Polynomial, Schedule
from textdiff.vocab import Vocab

V3, V4, PADDED = Vocab(size=3, tokens=3), Vocab(size=4, tokens=4, mask_id=3), Vocab(size=6, tokens=5, mask_id=3, pad_id=4)


def noise_mass(schedule: Schedule, t: float) -> float:
    return 1 - float(schedule.alpha(torch.tensor(t, dtype=torch.float64)))


@pytest.mark.parametrize(
    ("process", "vocab", "ids"),
    [
        (Uniform(LinearSigma()), V3, (0, 1, 2)),
        (Uniform(Polynomial()), V4, (0, 1, 2)),
        (Uniform(every_id=True), V4, (0, 1, 2, 3)),
        (Uniform(ids=(0, 1)), V3, (0, 1)),
    ],
    ids=["with another clock", "beside a mask", "the mask too", "chosen ids"],
)
def test_keeps_the_contract(process: Uniform, vocab: Vocab, ids: tuple[int, ...]) -> None:
    def noise(t: float) -> Tensor:
        table = torch.zeros(vocab.size, dtype=torch.float64)
        table[list(ids)] = noise_mass(process.schedule, t) / len(ids)
        return table

    check_process(process.bind(vocab), noise)


@pytest.mark.parametrize("size", [3, 16, 50_000])
def test_the_bound_is_the_closed_form_of_udlm_and_of_duo(size: int) -> None:
    cells = [(t, x, z) for t in TIMES for x, z in ((0, 0), (1, 0), (0, size - 1))]
    moments = [uniform_moment(t, size, x, z) for t, x, z in cells]
    nats = bound(Uniform().bind(Vocab(size=size, tokens=size)), moments, [t for t, _, _ in cells]).tolist()
    assert nats == pytest.approx([m.udlm(-1.0) for m in moments], rel=1e-10)
    assert nats == pytest.approx([m.duo(-1.0) for m in moments], rel=1e-10)


def chosen_moment(t: float, ids: tuple[int, ...], x: int, z: int, p: numpy.ndarray) -> Moment:
    noise = numpy.zeros_like(p)
    noise[list(ids)] = numpy.longdouble(t) / len(ids)
    return Moment(1 - t, noise, 1 / (len(ids) * (1 - t)) if z in ids else 0.0, x, z, p)


def test_a_subset_of_noise_ids_has_the_general_bound_for_data_and_beliefs_outside_it() -> None:
    """Sixteen ids, noise on five: clean tokens inside and outside, beliefs everywhere; a token outside is known and costs nothing."""
    ids, p = (0, 3, 4, 8, 15), belief(16)
    process = Uniform(ids=ids).bind(Vocab(size=16, tokens=16))
    cells = [(t, x, z) for t in TIMES for x, z in ((0, 0), (3, 4), (1, 15), (2, 2))]
    moments = [chosen_moment(t, ids, x, z, p) for t, x, z in cells]
    nats = bound(process, moments, [t for t, _, _ in cells])
    exact = [0.0 if m.z == 2 else m.bregman() for m in moments]
    assert nats.tolist() == pytest.approx(exact, rel=1e-10)
    assert bool((nats[3::4] == 0).all())


def test_noise_falls_on_real_tokens_unless_all_ids_are_asked_for() -> None:
    assert Uniform().bind(PADDED).ids == (0, 1, 2)
    assert Uniform(every_id=True).bind(PADDED).ids == (0, 1, 2, 3, 4, 5)


@pytest.mark.parametrize("ids", [(0, 6), (-1, 2), (1, 1)])
def test_ids_that_the_model_does_not_have_are_refused(ids: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected different ids below the model's 6 rows"):
        Uniform(ids=ids).bind(PADDED)
