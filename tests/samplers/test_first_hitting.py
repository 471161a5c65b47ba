from itertools import pairwise

import pytest
import torch

from tests.contracts import check_sampler
from tests.samplers.watched import CHAIN, PAIR, Watched, assert_law, blank, oracle, pair_law
from textdiff.batch import Batch
from textdiff.oracle import Markov, mixed, total_variation
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.first_hitting import FirstHitting
from textdiff.schedules import Cosine, Geometric, LogLinear, Schedule


@pytest.mark.parametrize("schedule", [LogLinear(), Cosine()], ids=str)
def test_the_joint_law_of_two_tokens_is_exact(schedule: Schedule) -> None:
    rows = 60_000
    samples = FirstHitting().sample(oracle(PAIR, schedule), blank(rows, 2), Rng(0, 0, torch.arange(rows)))
    assert_law(samples, pair_law())


def test_a_wrong_denoiser_is_found_out() -> None:
    """The same test fails for beliefs mixed with 5 % of the uniform law: it has the power to see an error of that size."""
    rows = 60_000
    samples = FirstHitting().sample(mixed(oracle(PAIR), 0.05), blank(rows, 2), Rng(0, 0, torch.arange(rows)))
    with pytest.raises(AssertionError):
        assert_law(samples, pair_law())


def test_the_conditional_law_given_a_known_token_is_exact() -> None:
    rows = 30_000
    known = torch.arange(3).repeat(rows // 3)
    target = torch.tensor([False, True]).expand(rows, 2)
    batch = Batch.of(torch.stack([known, torch.zeros_like(known)], dim=1), target=target)
    samples = FirstHitting().sample(oracle(PAIR), batch, Rng(0, 0, batch.sample_id))
    assert_law(samples, PAIR.transition / 3)


def test_keeps_the_contract() -> None:
    check_sampler(FirstHitting(), Masked())


@pytest.mark.parametrize("schedule", [LogLinear(), LogLinear(eps=0.1), Cosine(), Geometric()], ids=str)
def test_hitting_times_are_those_of_independent_tokens(schedule: Schedule) -> None:
    """The noise level at which the first of n masks falls is the largest of n uniforms, so of mean n / (n + 1); the next is
    the second largest, and so on down to 1 / (n + 1)."""
    rows, length = 8000, 4
    watched = Watched(oracle(Markov.random(3, length), schedule))
    FirstHitting().sample(watched, blank(rows, length), Rng(0, 0, torch.arange(rows)))
    assert len(watched.calls) == length
    for i, call in enumerate(watched.calls):
        noise = 1 - schedule.alpha(call.t)
        k = length - i
        mean, variance = k / (length + 1), k * (length + 1 - k) / ((length + 1) ** 2 * (length + 2))  # Beta(k, n + 1 - k)
        assert abs(float(noise.mean()) - mean) < 4.5 * (variance / rows) ** 0.5 + 0.002  # schedules may cut 1e-3 off the ends


def test_one_token_per_call_and_row_and_every_order_equally_often() -> None:
    rows = 6000
    watched = Watched(oracle(CHAIN))
    canvases = list(FirstHitting().trajectory(watched, blank(rows, 3), Rng(0, 0, torch.arange(rows))))
    order = torch.stack([(a.x != b.x).long().argmax(1) for a, b in pairwise(canvases)], dim=1)
    for call in watched.calls:
        (where,) = call.asked
        assert bool((where.sum(1) == 1).all())
    share = torch.unique(order, dim=0, return_counts=True)[1] / rows
    assert len(share) == 6
    assert float((share - 1 / 6).abs().max()) < 4.5 * (1 / 6 * 5 / 6 / rows) ** 0.5


def test_calls_are_as_many_as_targets_and_finished_rows_leave_the_batch() -> None:
    target = torch.arange(7) < torch.tensor([7, 3, 0, 5])[:, None]
    watched = Watched(oracle(CHAIN))
    batch = Batch.of(torch.zeros(4, 7, dtype=torch.long), target=target)
    *_, last = FirstHitting().trajectory(watched, batch, Rng(0, 0, batch.sample_id))
    assert last.nfe.tolist() == [7, 3, 0, 5]
    assert [len(call.xt) for call in watched.calls] == [3, 3, 3, 2, 2, 1, 1]


def markov_distance(sequences: int, length: int) -> list[tuple[float, float]]:
    """Total variation of the pair law at distance 1, 2 and 8: of sampled sequences, and of true ones."""
    source, ids = Markov.random(16, length, seed=3), torch.arange(sequences)
    samples = FirstHitting().sample(oracle(source), blank(sequences, length), Rng(0, 0, ids))
    true = source.sample(sequences, Rng(1, 0, ids))
    return [(total_variation(samples, source, d), total_variation(true, source, d)) for d in (1, 2, 8)]


def test_source_of_sixteen_states_is_reproduced() -> None:
    for sampled, true in markov_distance(1000, 16):
        assert sampled < 1.2 * true


@pytest.mark.slow
def test_long_source_of_sixteen_states_is_reproduced_as_closely_as_true_samples_do() -> None:
    distances = markov_distance(4000, 64)
    print("first hitting: total variation (sampled, true) at distance 1, 2, 8:", distances)
    for sampled, true in distances:
        assert sampled < 1.2 * true
