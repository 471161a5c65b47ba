import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.backbones.reading import ROUNDS, read_and_taken_back
from tests.backbones.stock_models import tiny
from tests.models.tiny import MASK, PAD, TEXT, VOCAB, autoregressive, lone, ragged, trunk
from textdiff.backbones.pretrained import Pretrained
from textdiff.batch import Batch
from textdiff.models.autoregressive import AutoregressiveLM, AutoregressiveSpec
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.first_hitting import FirstHitting
from textdiff.vocab import Vocab


def by_hand(model: AutoregressiveLM, tokens: list[int], target: list[bool]) -> float:
    """The chain rule: each prefix is read by itself, and its last output is normalised over the ids that may be written."""
    nats = 0.0
    for i in range(1, len(tokens)):
        prefix = torch.tensor([tokens[:i]])
        hidden = model.backbone(prefix, model.backbone.context(Batch.of(prefix)))[0, -1]
        scores = (model.backbone.head().weight @ hidden)[:TEXT].tolist()
        nats -= target[i] * (scores[tokens[i]] - math.log(sum(math.exp(score) for score in scores)))
    return nats


@pytest.mark.parametrize("tied", [True, False])
def test_likelihood_is_the_chain_rule_and_exact(tied: bool) -> None:
    model, batch = autoregressive(backbone=trunk(tied=tied)), ragged()
    nats = model.nll(batch, Rng(0, 0, batch.sample_id))
    assert nats.dtype == torch.float64
    for row in range(4):
        single = lone(batch, row)
        assert float(nats[row]) == pytest.approx(by_hand(model, single.tokens[0].tolist(), single.target[0].tolist()), rel=1e-10)
    assert torch.equal(nats, model.nll(batch, Rng(8, 1, batch.sample_id)))
    assert not model.nll_is_bound


def test_the_loss_is_the_likelihood_and_its_noise_free() -> None:
    model, batch = autoregressive(), ragged()
    loss = model(batch, seed=0, step=0)
    torch.testing.assert_close(loss.total.detach(), model.nll(batch, Rng(0, 0, batch.sample_id)).sum())
    assert torch.equal(loss.nelbo, loss.total.detach())
    assert int(loss.tokens) == int(batch.target.sum())
    assert torch.equal(loss.total, model(batch, seed=5, step=7).total)


def test_losses_and_gradients_of_micro_batches_add_up() -> None:
    model, batch = autoregressive(), ragged()
    model(batch, seed=0, step=0).total.backward()
    whole = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    for part in ([2], [0, 3], [1]):
        model(batch.rows(torch.tensor(part)), seed=0, step=0).total.backward()
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-9, atol=1e-12)


def test_what_stands_in_the_padding_and_behind_the_last_target_changes_nothing() -> None:
    model, batch = autoregressive(), ragged()
    other = batch._replace(tokens=batch.tokens.masked_fill(~batch.attend, 3))
    rng = Rng(0, 0, batch.sample_id)
    assert torch.equal(model.nll(batch, rng), model.nll(other, rng))
    batch.target[:, 3:] = False
    changed = batch._replace(tokens=batch.tokens.index_fill(1, torch.tensor([4, 5]), 2))
    torch.testing.assert_close(model.nll(changed, rng), model.nll(batch, rng))


def test_a_later_token_never_reaches_an_earlier_prediction() -> None:
    model, batch = autoregressive(), Batch.of(torch.tensor([[0, 1, 2, 3]]))
    changed = torch.tensor([[0, 1, 2, 5]])
    before, after = (model.predictor(batch)(tokens, batch.sample_id).hidden for tokens in (batch.tokens, changed))
    assert torch.equal(before, after)  # the belief about the last token is read from the one before it


def test_isolated_documents_cost_what_they_cost_alone() -> None:
    """Two documents in one row, each behind a BOS that is no target."""
    model = autoregressive()
    first, second = [0, 3, 1, 2], [0, 5, 4]
    packed = Batch.of(
        torch.tensor([first + second]),
        target=torch.tensor([[False, True, True, True, False, True, True]]),
        document=torch.tensor([[1] * 4 + [2] * 3]),
    )
    alone = sum(by_hand(model, tokens, [True] * len(tokens)) for tokens in (first, second))
    assert float(model.nll(packed, Rng(0, 0, packed.sample_id))) == pytest.approx(alone, rel=1e-10)


def read_in_parts(model: AutoregressiveLM, tokens: Tensor, cuts: list[int]) -> list[Tensor]:
    predictor = model.predictor(Batch.of(tokens))
    where = torch.ones(len(tokens), 1, dtype=torch.bool)
    edges = [0, *cuts, tokens.shape[1]]
    return [predictor.read(tokens[:, a:b]).logits(where) for a, b in pairwise(edges)]


@pytest.mark.parametrize("cuts", [[1, 2, 3, 4, 5, 6], [3], [1, 4], [5, 6]], ids=str)
def test_reading_in_parts_is_reading_at_once(cuts: list[int]) -> None:
    model, tokens = autoregressive(), torch.tensor([[0, 3, 1, 4, 2, 5, 6], [0, 1, 1, 2, 3, 5, 5]])
    parts = read_in_parts(model, tokens, cuts)
    for end, part in zip([*cuts, 7], parts, strict=True):
        torch.testing.assert_close(part, read_in_parts(model, tokens[:, :end], [])[0])


@pytest.mark.parametrize("options", [{}, {"place_embedding": True}], ids=str)
@torch.no_grad()
def test_rows_that_go_on_from_places_of_their_own_are_read_as_whole_rows(options: dict[str, bool]) -> None:
    model = autoregressive(backbone=trunk(**options))
    tokens = torch.randint(0, 6, (3, 17), generator=torch.Generator().manual_seed(1))  # nothing is predicted from the last
    batch = Batch.of(tokens)
    whole = model.backbone(tokens, model.backbone.context(batch))
    for row, read in enumerate(read_and_taken_back(model.predictor(batch), tokens, ROUNDS)):
        torch.testing.assert_close(read, whole[row, : len(read)], atol=1e-10, rtol=1e-10)


def test_bfloat16_autocast_gives_a_finite_loss_near_the_exact_one() -> None:
    model, batch = autoregressive().float(), ragged()
    exact = model(batch, seed=0, step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch, seed=0, step=0)
    assert loss.total.dtype == torch.float32
    assert float(loss.nelbo) == pytest.approx(float(exact.nelbo), rel=0.03)


def test_a_first_token_cannot_be_scored() -> None:
    model = autoregressive()
    batch = Batch.of(torch.tensor([[1, 2]]))
    for call in (lambda: model.nll(batch, Rng(0, 0, batch.sample_id)), lambda: model(batch, seed=0, step=0)):
        with pytest.raises(ValueError, match="cannot be scored left to right: begin each with BOS"):
            call()


def stock() -> AutoregressiveLM:
    """A stock Llama of 64 rows whose tokenizer knows 60 ids."""
    vocab = Vocab(size=64, tokens=60, pad_id=0, bos_id=1, eos_id=2)
    pretrained = Pretrained(name="llama")
    return AutoregressiveSpec(backbone=pretrained).build(vocab, pretrained.wrap(tiny("llama"), vocab, causal=True)).eval()


def test_a_stock_model_has_the_likelihood_that_transformers_computes() -> None:
    model = stock()
    tokens = torch.tensor([[1, 5, 9, 33, 12]])
    target = torch.tensor([[False, True, True, True, True]])
    log_prob = model.backbone.trunk(input_ids=tokens).logits[0, :-1].log_softmax(-1)
    expected = -log_prob.gather(1, tokens[0, 1:, None]).sum()
    batch = Batch.of(tokens, target=target)
    torch.testing.assert_close(model.nll(batch, Rng(0, 0, batch.sample_id))[0].float(), expected.detach())


def test_a_stock_model_generates_what_transformers_does() -> None:
    model = stock()
    ids = torch.tensor([[1, 5, 9], [0, 1, 7]])
    mask = torch.tensor([[1, 1, 1], [0, 1, 1]])
    ours = model.generate(ids, mask, max_new_tokens=6, do_sample=False)
    banned = list(model.vocab.unemittable)
    theirs = model.backbone.trunk.generate(
        ids, attention_mask=mask, max_new_tokens=6, do_sample=False, pad_token_id=0, eos_token_id=2, suppress_tokens=banned
    )
    assert torch.equal(ours.sequences, theirs)
    drawn = [model.generate(ids, mask, max_new_tokens=6, do_sample=True, seed=seed).sequences for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_a_stock_model_keeps_the_callers_random_state_when_it_is_given_a_seed() -> None:
    model = stock()
    before = torch.random.get_rng_state()
    model.generate(torch.tensor([[1, 5]]), max_new_tokens=2, do_sample=True, seed=9)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_samplers_and_steps_of_diffusion_are_refused() -> None:
    for model in (autoregressive(), stock()):
        with pytest.raises(ValueError, match="FirstHitting samples a Masked process and the model's is LeftToRight"):
            model.generate(torch.tensor([[1, 5]]), max_new_tokens=2, sampler=FirstHitting())
        with pytest.raises(ValueError, match="leave max_denoising_steps out"):
            model.generate(torch.tensor([[1, 5]]), max_new_tokens=2, max_denoising_steps=4)


def test_the_default_sampler_stops_at_the_end_token() -> None:
    assert autoregressive().default_sampler() == Autoregressive(eos_id=6)
    assert autoregressive(Vocab(size=5, tokens=5)).default_sampler() == Autoregressive()


def test_ids_that_are_not_text_have_no_probability() -> None:
    model = autoregressive()
    batch = Batch.of(torch.tensor([[0, 1, 2]]), target=torch.tensor([[False, True, True]]))
    belief = model.predictor(batch)(batch.tokens, batch.sample_id).logits(batch.target).softmax(-1)
    assert bool((belief[:, TEXT:] == 0).all())
    assert {PAD, MASK} <= set(VOCAB.unemittable)
