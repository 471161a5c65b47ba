"""Importance-sampled mask counts are unbiased: by exact summation over every outcome, and ragged rows equal single ones."""

from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.models.chain_rule import chain_rule_nll
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.mask_counts import MaskCounts, Profile, controlled_mean, count_law, estimate, line_through_others, pilot, strata
from textdiff.models.position_costs import Costs
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
        g, laws = values[k, torch.tensor(outcome)], law.expand(len(k), n)
        found = controlled_mean(laws, k + 1, g, line_through_others(laws, k + 1, g))
        total += float((chance * found).sum()) / 2**draws
    assert total == pytest.approx(float(values.mean()), rel=1e-10)


def test_a_constant_is_estimated_without_variance() -> None:
    """When g(k) is the same for every k, the control variate leaves nothing to chance, whatever counts were drawn."""
    k = torch.tensor([[1, 2, 4, 7], [1, 3, 3, 8], [2, 2, 5, 6]])
    law = count_law(torch.tensor([8, 8, 8]))
    g = torch.full((3, 4), 7.0, dtype=torch.float64)
    flat = controlled_mean(law, k, g, line_through_others(law, k, g))
    torch.testing.assert_close(flat, torch.full((3,), 7.0, dtype=torch.float64))


PROFILES = [None, Profile(1.3, -2.0, 0.7)]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("tokens", [[0, 1, 2], [4, 4, 1]])
def test_expectation_over_every_mask_is_the_mean_over_orders(tokens: list[int], profile: Profile | None) -> None:
    """All 7^4 tuples of masks of three targets, each with costs of its own: what position costs take out has no mean."""
    draws, n = 4, 3
    patterns = torch.tensor(list(product((False, True), repeat=n))[1:])  # (7, n)
    size = patterns.sum(1)
    costs = 5 * torch.rand(7, n, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * patterns
    exact = sum(float(costs[size == k].sum(1).mean()) * n / k for k in range(1, n + 1)) / n
    law = count_law(torch.tensor([n]))
    chosen = torch.tensor(list(product(range(7), repeat=draws)))  # (7^K, K)
    within = torch.tensor([1 / 3, 1 / 3, 1.0], dtype=torch.float64)[size[chosen] - 1]
    chance = (strata(law, draws)[0][torch.arange(draws), size[chosen] - 1] * within).prod(1)
    assert float(chance.sum()) == pytest.approx(1)
    batch = Batch.of(torch.tensor(tokens).expand(len(chosen), n))
    drawn = Costs(size[chosen].double() / n, patterns[chosen], costs[chosen])
    found = estimate(law.expand(len(chosen), n), size[chosen], drawn, batch, profile)
    assert float((chance * found).sum()) == pytest.approx(exact, rel=1e-10)


def test_costs_that_are_the_profile_leave_nothing_to_chance() -> None:
    """Masked tokens that all cost what the profile says: the estimate is its mean over counts, whatever was drawn."""
    profile, n = Profile(0.5, 1.0, 2.0), 6
    k = torch.tensor([[1, 2, 4, 6], [1, 3, 3, 5]])
    masked = torch.arange(n) < k[..., None]
    share = k / n
    costs = Costs(share.double(), masked, profile(share)[..., None] * masked)
    found = estimate(count_law(torch.tensor([n, n])), k, costs, Batch.of(torch.zeros(2, n, dtype=torch.long)), profile)
    exact = sum(float(profile(torch.tensor(i / n))) for i in range(1, n + 1))
    torch.testing.assert_close(found, torch.full((2,), exact, dtype=torch.float64))


def test_a_profile_is_found_again_from_what_it_costs() -> None:
    k, n = torch.arange(0, 200), torch.full((200,), 200)
    truth = Profile(0.5, 1.0, 2.0)
    found = Profile.fitted(k, n, truth(k / n) * k)
    x = torch.tensor([0.1, 0.3, 0.6, 1.0])
    torch.testing.assert_close(found(x), truth(x), rtol=0.02, atol=0)


def test_a_pilot_says_what_masked_tokens_cost() -> None:
    """An untrained network without weights spends the same on every token, whatever is masked."""
    model = small()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    tokens = torch.randint(5, (4, 9), generator=torch.Generator().manual_seed(0))
    found = pilot(model, Batch.of(tokens), Rng(0, 0, torch.arange(4)))
    x = torch.tensor([0.25, 0.5, 1.0])
    torch.testing.assert_close(found(x), torch.full((3,), 5.0, dtype=torch.float64).log(), rtol=0.02, atol=0)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_ragged_batch_equals_single_rows(profile: Profile | None) -> None:
    model, rng = small(), Rng(0, 0, torch.arange(3))
    tokens = torch.randint(5, (3, 9), generator=torch.Generator().manual_seed(0))
    present = torch.arange(9) < torch.tensor([9, 4, 1])[:, None]
    batch = Batch.of(tokens, target=present, attend=present)
    together = MaskCounts(5, profile)(model, batch, rng)
    for row, length in enumerate((9, 4, 1)):
        index = torch.tensor([row])
        alone = Batch.of(tokens[index, :length], sample_id=index)
        torch.testing.assert_close(MaskCounts(5, profile)(model, alone, rng.rows(index)), together[index])


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("draws", [4, 16])
def test_the_mean_of_200_repetitions_is_the_exact_any_order_value(draws: int, profile: Profile | None) -> None:
    """Within 3 standard errors of the mean over all 24 orders by the chain rule."""
    model, tokens = small(), torch.tensor([[0, 3, 1, 3]])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # so that the cost depends on what is masked
    orders = torch.tensor(list(permutations(range(4))))
    exact = float(chain_rule_nll(model, Batch.of(tokens.expand(24, 4)), orders).sum(1).mean())
    copies = Batch.of(tokens.expand(200, 4))
    found = MaskCounts(draws, profile)(model, copies, Rng(0, 0, copies.sample_id))
    assert float(found.std()) > 0
    assert abs(float(found.mean()) - exact) < 3 * float(found.std()) / 200**0.5


@pytest.mark.parametrize("profile", PROFILES)
def test_a_row_without_targets_costs_nothing(profile: Profile | None) -> None:
    batch = Batch.of(torch.zeros(2, 4, dtype=torch.long), target=torch.tensor([[False] * 4, [True] * 4]))
    nats: Tensor = MaskCounts(4, profile)(small(), batch, Rng(0, 0, batch.sample_id))
    assert nats[0] == 0
    assert nats[1] > 0


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="4 or more"):
        MaskCounts(3)
