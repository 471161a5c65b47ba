from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.contracts import check_pair_laws, check_sampler
from tests.samplers.enumerated import HYBRID, UNIFORM, Case, run
from tests.samplers.watched import CHAIN, PAIR, Watched, assert_law, blank, oracle, pair_law
from textdiff.oracle import Markov, Oracle
from textdiff.processes.base import TokenProcess
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.schedules import Cosine, LogLinear, Schedule
from textdiff.vocab import Vocab


def finite_step_law(schedule: Schedule, steps: int) -> Tensor:
    """The law after `steps` steps: tokens revealed together are independent given nothing, else the second sees the first."""
    alpha = schedule.alpha(torch.linspace(1, 0, steps + 1, dtype=torch.float64))
    alpha[0], alpha[-1] = 0, 1  # pure noise at the start, clean at the end
    together = float((alpha.diff() ** 2).sum())
    product = pair_law().sum(1)[:, None] * pair_law().sum(0)
    return (1 - together) * pair_law() + together * product


@pytest.mark.parametrize("schedule", [LogLinear(), LogLinear(eps=0.1), Cosine()], ids=str)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_law_of_few_steps_is_the_enumerated_one(schedule: Schedule, steps: int) -> None:
    rows = 40_000
    samples = Ancestral(steps=steps).sample(oracle(PAIR, schedule), blank(rows, 2), Rng(steps, 0, torch.arange(rows)))
    assert_law(samples, finite_step_law(schedule, steps))


def test_the_enumerated_law_converges_to_the_joint_law_at_rate_one_over_steps() -> None:
    far, near = ((finite_step_law(LogLinear(), steps) - pair_law()).abs().sum() for steps in (10, 1000))
    assert float(far / near) == pytest.approx(100)


def test_many_steps_reproduce_the_joint_law() -> None:
    rows = 20_000
    assert_law(Ancestral(steps=400).sample(oracle(PAIR), blank(rows, 2), Rng(0, 0, torch.arange(rows))), pair_law())


@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid(share=0.3)], ids=["masked", "uniform", "hybrid"])
def test_keeps_the_contract(process: TokenProcess) -> None:
    check_sampler(Ancestral(steps=200), process, rows=1000)


@pytest.mark.parametrize("steps", [1, 2, 5])
@pytest.mark.parametrize("case", [UNIFORM, HYBRID], ids=["uniform", "hybrid"])
def test_the_law_of_few_steps_under_other_noise_is_the_enumerated_one(case: Case, steps: int) -> None:
    exact = run(case.prior(), [case.reverse(i / steps, (i - 1) / steps) for i in range(steps, 0, -1)])
    assert_law(Ancestral(steps=steps).sample(case.oracle, blank(40_000, 2), Rng(steps, 0, torch.arange(40_000))), exact)


@pytest.mark.parametrize("process", [Uniform(), Hybrid(share=0.3)], ids=["uniform", "hybrid"])
def test_tokens_change_more_than_once_and_calls_are_counted(process: TokenProcess) -> None:
    rows, steps = 40, 30
    watched = Watched(Oracle.of(CHAIN, process))
    canvases = list(Ancestral(steps=steps).trajectory(watched, blank(rows, 7), Rng(0, 0, torch.arange(rows))))
    mask = CHAIN.states
    changes = torch.stack([(a.x != b.x) & (a.x != mask) for a, b in pairwise(canvases)]).sum(0)
    assert int(changes.max()) > 1
    assert int(canvases[-1].nfe.sum()) == sum(len(call.xt) for call in watched.calls) < rows * steps
    assert not any(bool(canvas.settled.any()) for canvas in canvases[:-1])


def test_only_rows_that_change_are_run_and_only_changing_positions_projected() -> None:
    """The projected positions of all steps are exactly the targets, once each; nfe counts the steps in which a row changed."""
    rows, steps = 6, 40
    watched = Watched(oracle(CHAIN))
    canvases = list(Ancestral(steps=steps).trajectory(watched, blank(rows, 7), Rng(0, 0, torch.arange(rows))))
    assert len(canvases) == steps + 1
    changed = torch.stack([(a.x != b.x).any(1) for a, b in pairwise(canvases)])
    assert torch.equal(canvases[-1].nfe, changed.sum(0))
    assert len(watched.calls) == int(changed.any(1).sum()) < steps
    assert sum(len(call.xt) for call in watched.calls) == int(changed.sum())
    assert sum(int(where.sum()) for call in watched.calls for where in call.asked) == rows * 7
    for call in watched.calls:
        (where,) = call.asked
        assert bool((call.xt[where] == CHAIN.states).all())
        assert bool(where.any(1).all())


def test_times_are_equal_steps_from_one_to_zero() -> None:
    canvases = list(Ancestral(steps=4).trajectory(oracle(CHAIN), blank(2, 7), Rng(0, 0, torch.arange(2))))
    assert [canvas.t for canvas in canvases] == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_source_of_sixteen_states_is_reproduced() -> None:
    source, ids = Markov.random(16, 16, seed=3), torch.arange(400)
    check_pair_laws(Ancestral(steps=300).sample(oracle(source), blank(400, 16), Rng(0, 0, ids)), source)


@pytest.mark.slow
@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid(share=0.3)], ids=["masked", "uniform", "hybrid"])
def test_long_source_of_sixteen_states_is_reproduced_as_closely_as_true_samples_do(process: TokenProcess) -> None:
    source, ids = Markov.random(16, 64, seed=3), torch.arange(4000)
    check_pair_laws(Ancestral(steps=1000).sample(Oracle.of(source, process), blank(4000, 64), Rng(0, 0, ids)), source)


def test_unbound_process_vocabulary_is_named_in_the_error() -> None:
    with pytest.raises(ValueError, match="mask token"):
        Masked().bind(Vocab(size=4, tokens=4))
