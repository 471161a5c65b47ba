from itertools import pairwise

import pytest
import torch

from tests.samplers.watched import CHAIN, blank, oracle
from textdiff.batch import Batch
from textdiff.processes.left_to_right import LeftToRight
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.base import Sampler
from textdiff.samplers.confidence import Entropy, EntropyBound, Greedy, Margin, RandomOrder, Threshold
from textdiff.samplers.first_hitting import FirstHitting

MASKED_SAMPLERS = [
    Ancestral(steps=5),
    FirstHitting(),
    Greedy(steps=3),
    Margin(steps=3),
    Entropy(steps=3),
    RandomOrder(steps=3),
    Threshold(tau=0.6),
    EntropyBound(gamma=0.5),
]


class Rival:
    """A denoiser whose process is left to right and that may not be asked anything."""

    process = LeftToRight()


@pytest.mark.parametrize("sampler", MASKED_SAMPLERS, ids=lambda s: type(s).__name__)
def test_trajectory_begins_in_noise_ends_clean_and_settled_positions_never_change(sampler: Sampler) -> None:
    process = oracle(CHAIN).process
    target = torch.tensor([[True] * 7, [False, True, True, False, True, False, False], [False] * 7])
    batch = Batch.of(CHAIN.sample(3, Rng(0, 0, torch.arange(3))), target=target)
    canvases = list(sampler.trajectory(oracle(CHAIN), batch, Rng(1, 0, batch.sample_id)))
    first, last = canvases[0], canvases[-1]
    assert torch.equal(process.is_masked(first.x), target)
    assert (first.t, last.t) == (1.0, 0.0)
    assert first.nfe.tolist() == [0, 0, 0]
    assert bool(last.settled.all())
    for before, after in pairwise(canvases):
        assert torch.equal(before.x[before.settled], after.x[before.settled])
        assert bool((after.settled | ~before.settled).all())
        assert after.t <= before.t
        assert set((after.nfe - before.nfe).tolist()) <= {0, 1}
        assert torch.equal(after.settled, ~process.is_masked(after.x))


@pytest.mark.parametrize("sampler", MASKED_SAMPLERS, ids=lambda s: type(s).__name__)
def test_a_row_alone_has_the_tokens_and_the_calls_it_has_in_a_ragged_batch(sampler: Sampler) -> None:
    lengths, ids = (7, 2, 4, 1), torch.tensor([40, 3, 17, 8])
    column = torch.arange(7)
    attend = column < torch.tensor(lengths)[:, None]
    tokens = CHAIN.sample(4, Rng(0, 0, ids)).masked_fill(~attend, 0)
    target = attend & (column != 1)
    batch = Batch.of(tokens, target=target, attend=attend, sample_id=ids)
    *_, together = sampler.trajectory(oracle(CHAIN), batch, Rng(9, 0, ids))
    assert torch.equal(together.x[~target], tokens[~target])
    for i, n in enumerate(lengths):
        single = Batch.of(tokens[i : i + 1, :n], target=target[i : i + 1, :n], sample_id=ids[i : i + 1])
        *_, alone = sampler.trajectory(oracle(CHAIN), single, Rng(9, 0, single.sample_id))
        assert torch.equal(alone.x[0], together.x[i, :n])
        assert int(alone.nfe) == int(together.nfe[i])


@pytest.mark.parametrize("sampler", MASKED_SAMPLERS, ids=lambda s: type(s).__name__)
def test_another_seed_and_another_sample_have_other_tokens(sampler: Sampler) -> None:
    batch = blank(1, 7)
    drawn = [sampler.sample(oracle(CHAIN), batch, Rng(seed, 0, torch.tensor([row]))) for seed in range(5) for row in range(5)]
    assert len(torch.unique(torch.cat(drawn), dim=0)) > 10


@pytest.mark.parametrize("sampler", MASKED_SAMPLERS, ids=lambda s: type(s).__name__)
def test_nothing_to_generate_costs_nothing(sampler: Sampler) -> None:
    tokens = CHAIN.sample(2, Rng(0, 0, torch.arange(2)))
    batch = Batch.of(tokens, target=torch.zeros_like(tokens, dtype=torch.bool))
    *_, last = sampler.trajectory(oracle(CHAIN), batch, Rng(0, 0, batch.sample_id))
    assert torch.equal(last.x, tokens)
    assert last.nfe.tolist() == [0, 0]


@pytest.mark.parametrize("sampler", MASKED_SAMPLERS[1:], ids=lambda s: type(s).__name__)
def test_masked_samplers_refuse_an_autoregressive_model(sampler: Sampler) -> None:
    with pytest.raises(ValueError, match=r"^\w+ samples a Masked process and the model's is LeftToRight: choose a sampler made for it$"):
        sampler.sample(Rival(), blank(1, 3), Rng(0, 0, torch.arange(1)))


def test_autoregressive_refuses_a_diffusion_model() -> None:
    with pytest.raises(ValueError, match=r"^Autoregressive samples a LeftToRight process and the model's is Masked"):
        Autoregressive().sample(oracle(CHAIN), blank(1, 3), Rng(0, 0, torch.arange(1)))


def test_ancestral_refuses_an_autoregressive_model() -> None:
    """Its `requires` admits every noise process; left to right is not one."""
    with pytest.raises(ValueError, match="choose a sampler made for it"):
        Ancestral(steps=2).sample(Rival(), blank(1, 3), Rng(0, 0, torch.arange(1)))


@pytest.mark.parametrize("kind", [Ancestral, Greedy, Margin, Entropy, RandomOrder])
@pytest.mark.parametrize("steps", [0, -3])
def test_fewer_than_one_step_is_refused(kind: type[Ancestral], steps: int) -> None:
    with pytest.raises(ValueError, match=f"^steps is {steps}, expected 1 or more$"):
        kind(steps=steps)
