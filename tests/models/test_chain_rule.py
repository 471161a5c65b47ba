"""The chain rule is a law that sums to one in every order, and its mean over all orders is the enumerated any-order bound."""

from itertools import permutations, product
from math import comb

import pytest
import torch

from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.models.chain_rule import chain_rule_nll, left_to_right, nll_by_order, random_order
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.processes.base import TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

VOCAB = Vocab(size=5, tokens=5, mask_id=4)


MASKED = Masked()


def small(process: TokenProcess = MASKED) -> DiscreteDiffusionLM:
    torch.manual_seed(0)
    trunk = TransformerConfig(width=16, layers=1, heads=2, max_length=6)
    model = Discrete(process, backbone=trunk).build(VOCAB)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)  # so that the cost depends on what is masked
    return model.double().eval()


@pytest.mark.parametrize("process", [Masked(), Block(inner=Masked(), size=2), Block(inner=Masked(), size=1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
def test_probabilities_of_all_sequences_sum_to_one(process: TokenProcess, order: tuple[int, ...]) -> None:
    tokens = torch.tensor(list(product(range(4), repeat=3)))
    batch = Batch.of(tokens)
    nats = chain_rule_nll(small(process), batch, torch.tensor(order).expand(len(tokens), 3))
    assert float((-nats.sum(1)).exp().sum()) == pytest.approx(1, abs=1e-9)


def test_the_mean_over_all_orders_is_the_any_order_bound() -> None:
    """Sum over mask patterns m of the cost of m / (|m| C(L, |m|)), against all 24 orders of 4 tokens."""
    model, tokens = small(), torch.tensor([[0, 3, 1, 2]])
    exact = 0.0
    for pattern in list(product((False, True), repeat=4))[1:]:
        masked = torch.tensor([pattern])
        count = sum(pattern)
        with torch.no_grad():
            pred = model.predictor(Batch.of(tokens))(tokens.masked_fill(masked, 4), torch.tensor([0.5], dtype=torch.float64))
            exact -= float(pred.log_prob(tokens, masked).sum()) / (count * comb(4, count))
    orders = torch.tensor(list(permutations(range(4))))
    nats = chain_rule_nll(model, Batch.of(tokens.expand(24, 4)), orders)
    assert float(nats.sum(1).mean()) == pytest.approx(exact, rel=1e-9)
    assert float(nats.sum(1).std()) > 1e-3  # orders differ, so that the mean says something


def test_a_ragged_batch_with_known_tokens_equals_single_rows() -> None:
    model, rng = small(), Rng(0, 0, torch.arange(3))
    tokens = torch.randint(4, (3, 6), generator=torch.Generator().manual_seed(0))
    present = torch.arange(6) < torch.tensor([6, 4, 1])[:, None]
    target = present & (torch.arange(6) != 2)
    batch = Batch.of(tokens, target=target, attend=present)
    rank = random_order(batch, rng)
    together = chain_rule_nll(model, batch, rank, rows_at_once=4)
    assert torch.equal(together != 0, target)
    for row, length in enumerate((6, 4, 1)):
        alone = Batch.of(tokens[row : row + 1, :length], target=target[row : row + 1, :length])
        torch.testing.assert_close(chain_rule_nll(model, alone, rank[row : row + 1, :length])[0], together[row, :length])


def test_blocks_as_long_as_the_row_are_the_masked_model_itself() -> None:
    """And left to right in blocks of one token is the bound itself, which leaves nothing to chance."""
    batch = Batch.of(torch.tensor([[0, 3, 1, 2, 2, 0]]))
    single = small(Block(inner=Masked(), size=1))
    nats = chain_rule_nll(single, batch, left_to_right(batch)).sum(1)
    torch.testing.assert_close(nats, single.nll(batch, Rng(0, 0, batch.sample_id)))
    rank = torch.tensor([[3, 1, 5, 0, 2, 4]])
    whole = small(Block(inner=Masked(), size=6))
    torch.testing.assert_close(chain_rule_nll(whole, batch, rank), chain_rule_nll(small(), batch, rank))


def test_each_order_has_a_number_of_its_own() -> None:
    model, batch = small(), Batch.of(torch.tensor([[0, 3, 1, 2, 2, 0]]))
    rng = Rng(3, 0, batch.sample_id)
    nats = nll_by_order(model, batch, rng, 3)
    for i in range(3):
        torch.testing.assert_close(nats[:, i], chain_rule_nll(model, batch, random_order(batch, rng.draw(i))).sum(1))
    assert len(set(nats[0].tolist())) == 3


def test_what_has_no_masks_and_ranks_of_another_shape_are_refused() -> None:
    batch = Batch.of(torch.tensor([[0, 3, 1]]))
    with pytest.raises(ValueError, match="use nll"):
        chain_rule_nll(small(Uniform()), batch, left_to_right(batch))
    with pytest.raises(ValueError, match="give each position a rank"):
        chain_rule_nll(small(), batch, torch.arange(3))
