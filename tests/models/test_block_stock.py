"""Beliefs of block diffusion on stock trunks: whole rows and cached blocks agree, the causal and the two-way model at the ends."""

import pytest
import torch
from torch import Tensor

from tests.backbones.stock_models import CAUSAL
from tests.models.stock_blocks import (
    EVERY,
    FEW,
    LENGTH,
    MASK,
    NEAR,
    alone,
    belief,
    blocks,
    causal,
    law,
    noised,
    packed,
    padded,
    stock,
    text,
)
from textdiff.batch import Batch
from textdiff.models.block import PairedPredictor
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng

KINDS = [(name, 3, True, None) for name in EVERY] + [(name, *kind) for name in FEW for kind in ((1, True, None), (4, False, "eager"))]
BATCHES = {"right padding": padded(False), "left padding": padded(True), "packed": packed()}


@pytest.mark.parametrize(("name", "size", "shift", "attention"), KINDS)
@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
@torch.no_grad()
def test_blocks_after_cached_ones_have_the_beliefs_of_the_training_pass(
    name: str, size: int, shift: bool, attention: str | None, batch: Batch
) -> None:
    model = blocks(name, size, shift=shift, attention=attention)
    xt, t = noised(model, batch)
    whole = model.predictor(batch)
    assert isinstance(whole, PairedPredictor)
    together, step_by_step = whole(xt, t).logits(), whole.extend(batch.tokens[:, :0])
    for start in range(0, LENGTH, size):
        here = slice(start, min(start + size, LENGTH))
        seen = batch.attend[:, here]
        for predictor in (whole.extend(batch.tokens[:, :start]), step_by_step):
            torch.testing.assert_close(predictor(xt[:, here], t[:, here]).logits()[seen], together[:, here][seen], **NEAR)
        if here.stop < LENGTH:
            following = step_by_step.extend(batch.tokens[:, here])
            again = step_by_step(xt[:, here], t[:, here]).logits()[seen]  # the old one stays valid
            torch.testing.assert_close(again, together[:, here][seen], **NEAR)
            step_by_step = following


@pytest.mark.parametrize("name", EVERY)
def test_one_block_is_exactly_the_bidirectional_model(name: str) -> None:
    """Windows of stock models included, which then reach w tokens to each side."""
    model, plain, batch = blocks(name, 20, shift=True), stock(name, Masked(), shift=True), padded(False)
    xt, _ = noised(plain, batch)
    t = torch.full((3,), 0.5, dtype=torch.float64)
    torch.testing.assert_close(belief(model, batch, xt, t)[batch.attend], belief(plain, batch, xt, t)[batch.attend], **NEAR)
    rng = Rng(1, 2, batch.sample_id)
    torch.testing.assert_close(model.nll(batch, rng), plain.nll(batch, rng), **NEAR)


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_shifted_blocks_of_one_token_are_the_causal_model(name: str) -> None:
    """A block's token is read from the one before it, which sees what is before itself: the law of the next token, windows included."""
    model, rival, batch = blocks(name, 1, shift=True), causal(name), padded(False)
    following = law(rival(batch.tokens, attention_mask=batch.attend.long()).logits)
    nats = -following[:, :-1].gather(-1, batch.tokens[:, 1:, None])[..., 0].where(batch.target[:, 1:], 0.0).sum(1)
    for seed in range(2):  # whatever is drawn
        torch.testing.assert_close(model.nll(batch, Rng(seed, 0, batch.sample_id)), nats, **NEAR)
    whole, mask, one = model.predictor(batch), torch.full((3, 1), MASK), torch.ones(3, dtype=torch.float64)
    assert isinstance(whole, PairedPredictor)
    predictor = whole.extend(batch.tokens[:, :1])
    for column in range(1, LENGTH):  # from the cache, token by token
        seen = batch.attend[:, column]
        torch.testing.assert_close(law(predictor(mask, one).logits()[:, 0])[seen], following[seen, column - 1], **NEAR)
        predictor = predictor.extend(batch.tokens[:, column : column + 1])


@pytest.mark.parametrize("name", FEW)
@torch.no_grad()
def test_unshifted_blocks_of_one_token_are_the_causal_model_on_the_text_so_far_and_a_mask(name: str) -> None:
    model, rival, tokens = blocks(name, 1), causal(name), text(1)
    xt = torch.full_like(tokens, MASK)
    found = law(belief(model, Batch.of(tokens), xt, torch.ones(1, dtype=torch.float64)))
    for column in range(LENGTH):
        so_far = torch.cat([tokens[:, :column], xt[:, :1]], dim=1)
        torch.testing.assert_close(found[:, column], law(rival(so_far).logits[:, -1]), **NEAR)


@pytest.mark.parametrize("name", EVERY)
def test_a_block_is_deaf_to_later_blocks_and_to_the_noise_of_others(name: str) -> None:
    """Through two layers: every noisy and clean token is replaced in turn; at some windows not everything allowed is in reach."""
    model, size = blocks(name, 3), 3
    document = torch.tensor([1] * 7 + [2] * 4)
    clean, noisy = text(1).repeat(LENGTH + 1, 1), text(1, seed=1).repeat(LENGTH + 1, 1)
    index, t = torch.arange(LENGTH), torch.full((LENGTH + 1,), 0.5, dtype=torch.float64)

    def notices(xt: Tensor, x0: Tensor) -> Tensor:
        logits = belief(model, Batch.of(x0, document=document.expand(LENGTH + 1, -1)), xt, t)[..., 3:60]
        moved: Tensor = ((logits[:-1] - logits[-1]).abs() > 1e-10).any(-1).T
        return moved

    changed_noisy, changed_clean = noisy.clone(), clean.clone()
    changed_noisy[index, index], changed_clean[index, index] = (noisy[index, index] + 20) % 57 + 3, (clean[index, index] + 20) % 57 + 3
    block, together = index // size, document[:, None] == document
    for found, allowed in (
        (notices(changed_noisy, clean), together & (block[:, None] == block)),
        (notices(noisy, changed_clean), together & (block[:, None] > block)),
    ):
        assert not bool((found & ~allowed).any())
        assert torch.equal(found & (index[:, None] - index < 4), allowed & (index[:, None] - index < 4))


@pytest.mark.parametrize("name", EVERY)
def test_each_row_costs_what_it_costs_alone(name: str) -> None:
    model = blocks(name, 2, shift=True)
    batch = padded(False)
    together = model.nll(batch, Rng(1, 2, batch.sample_id))
    for row in range(3):
        single = alone(batch, row)
        torch.testing.assert_close(model.nll(single, Rng(1, 2, single.sample_id))[0], together[row], **NEAR)


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("shift", [False, True])
def test_rows_padded_on_the_left_by_whole_blocks_are_believed_what_they_are_alone(name: str, shift: bool) -> None:
    model, batch = blocks(name, 2, shift=shift), padded(True, (LENGTH, 5, 7))
    xt, t = noised(model, batch)
    together = belief(model, batch, xt, t)
    for row in (1, 2):  # with 6 and 4 columns of padding
        single, kept = alone(batch, row), batch.attend[row]
        torch.testing.assert_close(belief(model, single, xt[row : row + 1, kept], t[row : row + 1, kept])[0], together[row, kept], **NEAR)


@pytest.mark.parametrize("name", EVERY)
def test_documents_that_begin_with_blocks_are_believed_what_they_are_alone(name: str) -> None:
    model, tokens = blocks(name, 2, shift=True), text(1)
    document = torch.tensor([[1] * 6 + [2] * 5])
    xt, t = noised(model, Batch.of(tokens))
    whole = belief(model, Batch.of(tokens, document=document), xt, t)
    for here in (slice(0, 6), slice(6, LENGTH)):
        torch.testing.assert_close(belief(model, Batch.of(tokens[:, here]), xt[:, here], t[:, here]), whole[:, here], **NEAR)


@pytest.mark.parametrize("name", FEW)
def test_predictors_keep_a_subset_of_rows(name: str) -> None:
    model, batch, index = blocks(name, 2, shift=True), padded(False), torch.tensor([2, 0])
    xt, t = noised(model, batch)
    whole = model.predictor(batch)
    assert isinstance(whole, PairedPredictor)
    with torch.no_grad():
        expected, here = whole(xt, t).logits()[index], slice(2, 4)
        torch.testing.assert_close(whole.rows(index)(xt[index], t[index]).logits(), expected, **NEAR)
        for some in (whole.extend(batch.tokens[:, :2]).rows(index), whole.rows(index).extend(batch.tokens[index, :2])):
            torch.testing.assert_close(some(xt[index, here], t[index, here]).logits(), expected[:, here], **NEAR)


@pytest.mark.parametrize("name", FEW)
def test_rows_as_long_as_the_model_reads_are_read_in_pairs(name: str) -> None:
    """Twice as many tokens as there are positions."""
    model, batch = blocks(name, 16, shift=True), Batch.of(text(2, 64))
    assert model.max_length == 64
    xt, t = noised(model, batch)
    with torch.no_grad():
        whole = model.predictor(batch)
        assert isinstance(whole, PairedPredictor)
        last = whole.extend(batch.tokens[:, :48])(xt[:, 48:], t[:, 48:]).logits()
    torch.testing.assert_close(last, belief(model, batch, xt, t)[:, 48:], **NEAR)
