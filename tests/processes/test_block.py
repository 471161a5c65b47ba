import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.contracts import check_process
from tests.samplers.block_oracle import BlockOracle
from textdiff import spec
from textdiff.batch import Batch, Clean
from textdiff.models.objective import Bound
from textdiff.oracle import Markov
from textdiff.processes.base import Noising, TokenProcess, UniformTime
from textdiff.processes.block import Block, ClippedTime
from textdiff.processes.exact_count import ExactCount
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.left_to_right import LeftToRight
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.schedules import Cosine
from textdiff.vocab import Vocab

SOURCE = Markov(torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64), Markov.random(3, 5, seed=2).transition, length=5)
VOCAB = Vocab(size=4, tokens=4, mask_id=3)
INNER = [Masked(), Masked(Cosine()), Uniform(), Hybrid()]
SIZES = [1, 2, 3, 5, 9]


def masks(t: float) -> Tensor:
    """b_t of log-linear masking over three states and [MASK]."""
    return torch.tensor([0.0, 0.0, 0.0, t], dtype=torch.float64)


def test_it_keeps_the_contract_of_its_inner_process() -> None:
    check_process(Block(Masked(), size=2).bind(VOCAB), masks)


@pytest.mark.parametrize("inner", INNER, ids=str)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("noising", [ExactCount(), UniformTime(), ClippedTime()], ids=str)
def test_every_block_has_one_time_and_its_noise_is_the_inner_one(inner: TokenProcess, size: int, noising: Noising) -> None:
    process, rows = Block(inner, size).bind(VOCAB), 200
    x0 = SOURCE.sample(rows, Rng(0, 0, torch.arange(rows)))
    batch = Batch.of(x0)
    noised = noising(process, x0, batch.target, batch.stratum, Rng(1, 0, batch.sample_id))
    times = noised.t if noised.t.dim() == 2 else noised.t[:, None].expand(x0.shape)
    for start in range(0, 5, size):
        block = times[:, start : start + size]
        assert bool((block == block[:, :1]).all())
        assert len(block[:, 0].unique()) == rows
        assert start == 0 or bool((block[:, 0] != times[:, start - 1]).all())  # blocks have times of their own
    lone = Block(inner, 5).bind(VOCAB)
    if size >= 5:
        torch.testing.assert_close(noised, noising(lone.inner, x0, batch.target, batch.stratum, Rng(1, 0, batch.sample_id)), equal_nan=True)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("inner", [Masked(), Uniform(), Hybrid()], ids=str)
@pytest.mark.parametrize("noising", [ExactCount(), UniformTime(t_min=1e-6)], ids=str)
def test_with_the_exact_denoiser_the_bound_is_the_entropy(size: int, inner: TokenProcess, noising: Noising) -> None:
    """The sum over blocks of H(block | blocks before) is H(row), whatever the blocks; a wrong order of conditioning would show."""
    rows = 6000
    oracle = BlockOracle.of(SOURCE, Block(inner, size))
    batch = Batch.of(SOURCE.sample(rows, Rng(0, 0, torch.arange(rows))))
    clean = Clean(batch.tokens, batch.tokens)
    noised = noising(oracle.process, batch.tokens, batch.target, batch.stratum, Rng(1, 0, batch.sample_id))
    nats = Bound()(oracle.process, oracle.predictor(batch)(noised.xt, noised.t), clean, noised, batch.target)[1].sum(1)
    error = nats + SOURCE.log_prob(batch.tokens)  # against the sample's own cost: less noise than against the entropy
    assert abs(float(error.mean())) < 4.5 * float(error.std()) / rows**0.5 + 1e-3
    assert float(nats.mean()) == pytest.approx(SOURCE.entropy(), rel=0.1)


def test_blocks_of_one_token_cost_the_chain_rule_whatever_the_draw() -> None:
    oracle = BlockOracle.of(SOURCE, Block(Masked(Cosine(eps=0.0)), 1))
    batch = Batch.of(SOURCE.sample(50, Rng(0, 0, torch.arange(50))))
    clean, process = Clean(batch.tokens, batch.tokens), oracle.process
    for draw in range(3):
        noised = ExactCount()(process, batch.tokens, batch.target, batch.stratum, Rng(draw, 0, batch.sample_id))
        pred = oracle.predictor(batch)(noised.xt, noised.t)
        torch.testing.assert_close(Bound()(process, pred, clean, noised, batch.target)[1].sum(1), -SOURCE.log_prob(batch.tokens))


def test_clipped_times_fill_their_range_and_bound_nothing() -> None:
    process, rows = Block(Masked(), 2).bind(VOCAB), 1000
    batch = Batch.of(SOURCE.sample(rows, Rng(0, 0, torch.arange(rows))))
    noised = ClippedTime(0.3, 0.8)(process, batch.tokens, batch.target, batch.stratum, Rng(0, 0, batch.sample_id))
    for block in (noised.t[:, 0], noised.t[:, 2], noised.t[:, 4]):
        quantiles = torch.linspace(0.3, 0.8, rows, dtype=torch.float64)
        assert float((block.sort().values - quantiles).abs().max()) < 1.5 * 0.5 / rows  # stratified: one time in each slot
    assert bool(noised.weight.isnan().all())
    pred = BlockOracle(SOURCE, process).predictor(batch)(noised.xt, noised.t)
    loss, bound = Bound()(process, pred, Clean(batch.tokens, batch.tokens), noised, batch.target)
    assert math.isnan(float(bound.sum()))
    hidden = noised.xt == 3
    torch.testing.assert_close(loss[hidden], -pred.log_prob(batch.tokens, hidden) / noised.t[hidden])  # BD3-LM's weight 1/t
    assert bool((loss[~hidden] == 0).all())


def test_configurations_round_trip_and_the_inner_schedule_is_the_only_one() -> None:
    process = Block(Hybrid(Cosine(), share=0.2), size=4)
    assert spec.from_plain(spec.to_plain(process)) == process
    assert process.schedule == Cosine()
    assert replace(process, inner=Masked()).schedule == Masked().schedule
    assert spec.from_plain(spec.to_plain(ClippedTime(0.2, 0.9))) == ClippedTime(0.2, 0.9)


@pytest.mark.parametrize("inner", [LeftToRight(), Block()], ids=str)
def test_only_noise_over_tokens_goes_in_blocks(inner: TokenProcess) -> None:
    with pytest.raises(ValueError, match="as its inner process, expected noise over tokens"):
        Block(inner)


def test_impossible_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^size is 0, expected blocks of 1 token or more$"):
        Block(size=0)
    for low, high in ((0.0, 0.5), (0.5, 0.5), (0.5, 1.1)):
        with pytest.raises(ValueError, match="expected 0 < low < high <= 1"):
            ClippedTime(low, high)
    with pytest.raises(ValueError, match="needs a mask token"):
        Block().bind(replace(VOCAB, mask_id=None))
