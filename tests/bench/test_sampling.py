"""The dense samplers have the law of ours: enumeration of two dependent tokens, and identical greedy tokens."""

import pytest
import torch

from tests.samplers.enumerated import UNIFORM, run
from tests.samplers.watched import CHAIN, PAIR, assert_law, blank, oracle, pair_law
from textdiff.batch import Batch
from textdiff.bench.sampling import SamplingBench, check_greedy, dense_ancestral, dense_first_hitting, dense_uniform
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral

ROWS, STEPS = 20_000, 3


def test_ancestral_law_of_finitely_many_steps() -> None:
    product = PAIR.laws()[0][:, None] * PAIR.laws()[1]
    exact = (1 - 1 / STEPS) * pair_law() + product / STEPS  # both tokens fall in the same of the equal steps with chance 1 / STEPS
    batch = blank(ROWS, 2)
    assert_law(dense_ancestral(oracle(PAIR), batch, STEPS, torch.Generator().manual_seed(0)), exact)
    assert_law(Ancestral(STEPS).sample(oracle(PAIR), batch, Rng(0, 0, batch.sample_id)), exact)


@pytest.mark.parametrize("steps", [1, STEPS])
def test_uniform_law_of_finitely_many_steps(steps: int) -> None:
    exact = run(UNIFORM.prior(), [UNIFORM.reverse(i / steps, (i - 1) / steps) for i in range(steps, 0, -1)])
    batch = blank(ROWS, 2)
    assert_law(dense_uniform(UNIFORM.oracle, batch, steps, torch.Generator().manual_seed(0)), exact)
    assert_law(Ancestral(steps).sample(UNIFORM.oracle, batch, Rng(0, 0, batch.sample_id)), exact)


def test_first_hitting_law_is_exact() -> None:
    assert_law(dense_first_hitting(oracle(PAIR), blank(ROWS, 2), torch.Generator().manual_seed(0)), pair_law())


def test_known_tokens_stay() -> None:
    tokens = torch.randint(3, (8, 2), generator=torch.Generator().manual_seed(0))
    batch = Batch.of(tokens, target=torch.tensor([[False, True]]).expand(8, 2))
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(dense_ancestral(oracle(PAIR), batch, STEPS, generator)[:, 0], tokens[:, 0])
    assert torch.equal(dense_first_hitting(oracle(PAIR), batch, generator)[:, 0], tokens[:, 0])
    assert torch.equal(dense_uniform(UNIFORM.oracle, batch, STEPS, generator)[:, 0], tokens[:, 0])


def test_greedy_tokens_are_identical() -> None:
    check_greedy(oracle(CHAIN), blank(4, 7), steps=3)
    tiny = SamplingBench(vocabulary=300, width=32, layers=2, heads=4, length=12, batch_size=2)
    check_greedy(tiny.build(Masked()), tiny.canvas(3), steps=5)
