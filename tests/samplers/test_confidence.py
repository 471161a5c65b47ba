import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.contracts import check_sampler
from tests.samplers.watched import CHAIN, PAIR, Watched, assert_law, blank, oracle, pair_law
from tests.test_schedules import SCHEDULES
from textdiff.batch import Batch
from textdiff.guidance.filters import Filters
from textdiff.oracle import Markov
from textdiff.prediction import Prediction, TablePrediction
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.base import Sampler
from textdiff.samplers.confidence import Confidence, Entropy, EntropyBound, Greedy, Margin, RandomOrder, Threshold
from textdiff.schedules import Schedule

FAMILY = [Greedy(steps=3), Margin(steps=3), Entropy(steps=3), RandomOrder(steps=3), Threshold(tau=0.6), EntropyBound(gamma=0.5)]
MASK = 4


@dataclass(frozen=True)
class Fixed:
    """A denoiser of four states and a mask whose belief about each position never changes: `table` (L, 4) probabilities."""

    table: Tensor
    process: Masked = Masked(mask_id=MASK)

    def predictor(self, batch: Batch) -> "Fixed":
        return self

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def rows(self, index: Tensor) -> "Fixed":
        return self

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        log = torch.nn.functional.pad(self.table.log(), (0, 1), value=-math.inf)
        return TablePrediction(log.expand(len(xt), -1, -1))


def reveals(sampler: Sampler, denoiser: object, batch: Batch, seed: int = 0) -> list[Tensor]:
    """The positions (B, L) that each step committed."""
    canvases = list(sampler.trajectory(denoiser, batch, Rng(seed, 0, batch.sample_id)))
    return [(a.x != b.x) for a, b in pairwise(canvases)]


def counts(sampler: Sampler, targets: list[int], length: int = 7) -> list[list[int]]:
    """How many tokens each step commits in rows with so many targets."""
    batch = Batch.of(torch.zeros(len(targets), length, dtype=torch.long), target=torch.arange(length) < torch.tensor(targets)[:, None])
    return [step.sum(1).tolist() for step in reveals(sampler, oracle(CHAIN), batch)]


@pytest.mark.parametrize("sampler", FAMILY, ids=lambda s: type(s).__name__)
def test_keeps_the_contract(sampler: Sampler) -> None:
    check_sampler(sampler, Masked())


@pytest.mark.parametrize("kind", [Greedy, Margin, Entropy, RandomOrder])
def test_equal_shares_with_the_remainder_first_in_every_row(kind: type[Greedy]) -> None:
    assert counts(kind(steps=3), [7, 3, 0, 4, 1]) == [[3, 1, 0, 2, 1], [2, 1, 0, 1, 0], [2, 1, 0, 1, 0]]


@pytest.mark.parametrize("kind", [Greedy, Margin, Entropy, RandomOrder])
def test_more_steps_than_masks_do_no_extra_work(kind: type[Greedy]) -> None:
    watched = Watched(oracle(CHAIN))
    batch = Batch.of(torch.zeros(2, 7, dtype=torch.long), target=torch.arange(7) < torch.tensor([[5], [2]]))
    *_, last = kind(steps=100).trajectory(watched, batch, Rng(0, 0, batch.sample_id))
    assert last.nfe.tolist() == [5, 2]
    assert [len(call.xt) for call in watched.calls] == [2, 2, 1, 1, 1]


def test_a_threshold_above_one_commits_one_token_at_a_time_and_a_small_one_all_at_once() -> None:
    assert counts(Threshold(tau=1.01), [7, 3, 0]) == [[1, 1, 0]] * 3 + [[1, 0, 0]] * 4
    assert counts(Threshold(tau=0.0), [7, 3, 0]) == [[7, 3, 0]]


def test_a_threshold_commits_exactly_the_positions_above_it() -> None:
    table = torch.tensor([[0.97, 0.01, 0.01, 0.01], [0.5, 0.3, 0.1, 0.1], [0.92, 0.04, 0.02, 0.02], [0.4, 0.3, 0.2, 0.1]])
    first, second, third = reveals(Threshold(tau=0.9), Fixed(table.double()), blank(1, 4))
    assert [step[0].nonzero()[:, 0].tolist() for step in (first, second, third)] == [[0, 2], [1], [3]]


def binary_entropies() -> tuple[Tensor, Tensor]:
    """Beliefs of rising uncertainty in shuffled order, and their entropies in nats."""
    p = torch.tensor([0.90, 0.99, 0.60, 0.97], dtype=torch.float64)
    table = torch.stack([p, 1 - p, torch.zeros_like(p), torch.zeros_like(p)], dim=1)
    return table, torch.special.entr(table).sum(1)


def test_an_entropy_bound_commits_the_longest_prefix_within_gamma_of_its_largest() -> None:
    """Sorted entropies h1 <= h2 <= h3 <= h4: the prefix of k is admitted when h1 + .. + h(k-1) <= gamma."""
    table, entropy = binary_entropies()
    h = entropy.sort().values.cumsum(0)
    order = entropy.argsort().tolist()  # [1, 3, 0, 2]
    for gamma, first in ((float(h[0]) * 0.99, 1), (float(h[0]) * 1.01, 2), (float(h[1]) * 1.01, 3), (float(h[2]) * 1.01, 4)):
        step = reveals(EntropyBound(gamma=gamma), Fixed(table), blank(1, 4))[0]
        assert sorted(step[0].nonzero()[:, 0].tolist()) == sorted(order[:first])


def test_an_entropy_bound_of_zero_commits_one_uncertain_token_and_a_large_one_all() -> None:
    assert counts(EntropyBound(gamma=0.0), [7, 3, 0]) == [[1, 1, 0]] * 3 + [[1, 0, 0]] * 4
    assert counts(EntropyBound(gamma=1e9), [7, 3, 0]) == [[7, 3, 0]]
    certain = torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 1.0, 0, 0]], dtype=torch.float64)
    steps = reveals(EntropyBound(gamma=0.0), Fixed(certain), blank(1, 3))
    assert [step[0].tolist() for step in steps] == [[True, True, True]]  # two certain tokens cost nothing, and the third comes with them


def test_a_negative_entropy_bound_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^gamma is -0.1, expected nats, 0 or more$"):
        EntropyBound(gamma=-0.1)


def brute_force_scores(belief: Tensor) -> dict[type[Confidence], Tensor]:
    """Each rule's score of probabilities (B, L, V), the larger the sooner."""
    ordered = belief.sort(dim=-1, descending=True).values
    return {
        Greedy: ordered[..., 0],
        Margin: ordered[..., 0] - ordered[..., 1],
        Entropy: -torch.special.entr(belief).sum(-1),
    }


@pytest.mark.parametrize("kind", [Greedy, Margin, Entropy])
def test_each_step_commits_the_best_scores_of_its_rule(kind: type[Greedy]) -> None:
    """Every step of 50 rows is replayed: nothing left masked scores above anything committed."""
    denoiser, rows = oracle(CHAIN), 50
    batch = blank(rows, 7)
    canvases = list(kind(steps=4).trajectory(denoiser, batch, Rng(0, 0, batch.sample_id)))
    predict = denoiser.predictor(batch)
    for before, after in pairwise(canvases):
        score = brute_force_scores(predict(before.x, torch.zeros(rows)).table.exp())[kind]
        committed, left = before.x != after.x, after.x == MASK
        worst = score.masked_fill(~committed, math.inf).amin(1)
        assert bool((worst >= score.masked_fill(~left, -math.inf).amax(1)).all())


def test_the_rules_disagree_where_they_should() -> None:
    """The largest probability, the largest margin and the least entropy stand at three different positions."""
    table = torch.tensor([[0.50, 0.50, 0, 0], [0.52, 0.16, 0.16, 0.16], [0.53, 0.46, 0.005, 0.005]], dtype=torch.float64)
    for kind, position in ((Greedy, 2), (Margin, 1), (Entropy, 0)):
        assert reveals(kind(steps=3), Fixed(table), blank(1, 3))[0][0].nonzero()[:, 0].tolist() == [position]


@pytest.mark.parametrize("sampler", [Greedy(steps=4), Margin(steps=4), Entropy(steps=4), Threshold(tau=1.01), EntropyBound(gamma=0.0)])
def test_ties_fall_from_left_to_right(sampler: Sampler) -> None:
    table = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64).repeat(4, 1)
    steps = reveals(sampler, Fixed(table), blank(3, 4))
    assert [step.nonzero()[:, 1].tolist() for step in steps] == [[i] * 3 for i in range(4)]


def test_greedy_tokens_are_the_most_probable_ones_when_temperature_is_zero() -> None:
    denoiser, batch = Filters(temperature=0.0)(oracle(CHAIN)), blank(1, 7)
    canvases = list(Greedy(steps=7).trajectory(denoiser, batch, Rng(0, 0, batch.sample_id)))
    predict = oracle(CHAIN).predictor(batch)
    for before, after in pairwise(canvases):
        belief = predict(before.x, torch.zeros(1)).table[0]
        (position,) = (before.x != after.x)[0].nonzero()[:, 0].tolist()
        assert int(after.x[0, position]) == int(belief[position].argmax())
    assert torch.equal(canvases[-1].x, Greedy(steps=7).sample(denoiser, batch, Rng(99, 0, batch.sample_id)))


def test_scores_are_those_of_the_unfiltered_prediction() -> None:
    """Temperature 0 makes every drawn law certain; were it scored, all would tie at 1 and fall from left to right."""
    table = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.9, 0.1, 0, 0], [0.6, 0.4, 0, 0]], dtype=torch.float64)
    steps = reveals(Greedy(steps=3), Filters(temperature=0.0)(Fixed(table)), blank(1, 3))
    assert [step[0].nonzero()[:, 0].tolist() for step in steps] == [[1], [2], [0]]


def test_random_order_with_a_step_per_target_is_exact_and_with_one_step_it_is_the_product() -> None:
    rows = 40_000
    for steps, law in ((2, pair_law()), (5, pair_law()), (1, pair_law().sum(1)[:, None] * pair_law().sum(0))):
        assert_law(RandomOrder(steps=steps).sample(oracle(PAIR), blank(rows, 2), Rng(0, 0, torch.arange(rows))), law)


def test_random_order_has_every_order_equally_often() -> None:
    rows = 6000
    steps = reveals(RandomOrder(steps=3), oracle(CHAIN), blank(rows, 3))
    order = torch.stack([step.long().argmax(1) for step in steps], dim=1)
    share = torch.unique(order, dim=0, return_counts=True)[1] / rows
    assert len(share) == 6
    assert float((share - 1 / 6).abs().max()) < 4.5 * (5 / 36 / rows) ** 0.5


@pytest.mark.parametrize("sampler", FAMILY, ids=lambda s: type(s).__name__)
def test_the_vocabulary_is_projected_at_masked_positions_only_and_calls_are_counted_exactly(sampler: Sampler) -> None:
    target = torch.arange(7) < torch.tensor([7, 2, 0, 4, 1])[:, None]
    watched = Watched(oracle(CHAIN))
    batch = Batch.of(torch.zeros(5, 7, dtype=torch.long), target=target)
    *_, last = sampler.trajectory(watched, batch, Rng(0, 0, batch.sample_id))
    for call in watched.calls:
        masked = call.xt == MASK
        assert bool(masked.any(1).all())  # finished rows have left
        assert all(torch.equal(where, masked) for where in call.asked)
    assert int(last.nfe.sum()) == sum(len(call.xt) for call in watched.calls)
    assert int(last.nfe.max()) == len(watched.calls)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_the_network_is_told_the_share_of_targets_still_masked_as_its_noise_level(schedule: Schedule) -> None:
    watched = Watched(oracle(Markov.random(3, 5), schedule))
    target = torch.arange(5) < torch.tensor([[5], [2]])
    batch = Batch.of(torch.zeros(2, 5, dtype=torch.long), target=target)
    RandomOrder(steps=5).sample(watched, batch, Rng(0, 0, batch.sample_id))
    told = [(1 - schedule.alpha(call.t)).tolist() for call in watched.calls]
    shares = [[1.0, 1.0], [0.8, 0.5], [0.6], [0.4], [0.2]]
    for row, expected in zip(told, shares, strict=True):
        assert row == pytest.approx(expected, abs=2e-3)  # schedules that end above 0 cannot name the last 1e-3


@pytest.mark.parametrize("sampler", [s for s in FAMILY if not isinstance(s, RandomOrder)], ids=lambda s: type(s).__name__)
def test_a_prediction_that_is_not_a_number_is_an_error_not_an_endless_loop(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match="have the weights diverged"):
        reveals(sampler, Fixed(torch.full((3, 4), math.nan, dtype=torch.float64)), blank(1, 3))
