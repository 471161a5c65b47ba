"""Importance-sampled mask counts are unbiased: by exact summation over every outcome, and ragged rows equal single ones."""

from itertools import product

import pytest
import torch
from torch import Tensor

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.mask_counts import MaskCounts, controlled_mean, count_law, strata
from textdiff.randomness import Rng
from textdiff.vocab import Vocab


def small() -> DiscreteDiffusionLM:
    torch.manual_seed(0)
    model = Discrete(backbone=TransformerConfig(width=16, layers=1, heads=2, max_length=9)).build(Vocab(size=6, tokens=6, mask_id=5))
    model.double().eval()
    return model


def test_strata_partition_the_law() -> None:
    law = count_law(torch.tensor([5, 1, 9]))
    parts = strata(law, 4)
    torch.testing.assert_close(law.sum(1), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(parts.sum(2), torch.ones(3, 4, dtype=torch.float64))
    torch.testing.assert_close(parts.mean(1), law)


@pytest.mark.parametrize("n", [1, 3, 5])
def test_expectation_over_every_outcome_is_the_mean_over_counts(n: int) -> None:
    """All n^K count vectors with all 2^K outcomes of a random g(k): the weighted sum is the mean of E g(k) over k."""
    draws = 4
    values = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(n)) * 10  # two equally likely values of g(k)
    law = count_law(torch.tensor([n]))
    parts = strata(law, draws)[0]
    k = torch.tensor(list(product(range(n), repeat=draws)))  # (n^K, K)
    chance = parts[torch.arange(draws), k].prod(1)
    total = 0.0
    for outcome in product(range(2), repeat=draws):
        estimate = controlled_mean(law.expand(len(k), n), k + 1, values[k, torch.tensor(outcome)])
        total += float((chance * estimate).sum()) / 2**draws
    assert total == pytest.approx(float(values.mean()), rel=1e-10)


def test_a_constant_is_estimated_without_variance() -> None:
    """When g(k) is the same for every k, the control variate leaves nothing to chance, whatever counts were drawn."""
    k = torch.tensor([[1, 2, 4, 7], [1, 3, 3, 8], [2, 2, 5, 6]])
    law = count_law(torch.tensor([8, 8, 8]))
    flat = controlled_mean(law, k, torch.full((3, 4), 7.0, dtype=torch.float64))
    torch.testing.assert_close(flat, torch.full((3,), 7.0, dtype=torch.float64))


def test_a_ragged_batch_equals_single_rows() -> None:
    model, rng = small(), Rng(0, 0, torch.arange(3))
    tokens = torch.randint(5, (3, 9), generator=torch.Generator().manual_seed(0))
    present = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    batch = Batch.of(tokens, target=present, attend=present)
    together = MaskCounts(5)(model, batch, rng)
    for row, length in enumerate((9, 4, 1)):
        index = torch.tensor([row])
        alone = Batch.of(tokens[index, :length], sample_id=index)
        torch.testing.assert_close(MaskCounts(5)(model, alone, rng.rows(index)), together[index])


def test_a_row_without_targets_costs_nothing() -> None:
    batch = Batch.of(torch.zeros(2, 4, dtype=torch.long), target=torch.tensor([[False] * 4, [True] * 4]))
    nats: Tensor = MaskCounts(4)(small(), batch, Rng(0, 0, batch.sample_id))
    assert nats[0] == 0
    assert nats[1] > 0


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="4 or more"):
        MaskCounts(3)
