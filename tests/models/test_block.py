import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.tiny import EOS, MASK, PAD, TEXT, VOCAB, autoregressive, diffusion, lone, ragged, trunk
from textdiff import spec as plain
from textdiff.batch import Batch, Clean
from textdiff.models.block import PairedPredictor
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.models.parameterisation import Posterior
from textdiff.prediction import TablePrediction
from textdiff.processes.base import TokenProcess
from textdiff.processes.block import Block, ClippedTime
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.blockwise import Blockwise
from textdiff.samplers.confidence import Greedy, Threshold
from textdiff.samplers.first_hitting import FirstHitting

TIMED = trunk(time_conditioning=True)
KINDS: dict[str, dict[str, Any]] = {
    "masked": {},
    "shifted": {"shift": True},
    "timed": {"backbone": TIMED},
    "timed and shifted": {"backbone": TIMED, "shift": True},
    "uniform": {"inner": Uniform(), "backbone": TIMED},
    "uniform posterior": {"inner": Uniform(), "backbone": TIMED, "parameterisation": Posterior(), "shift": True},
    "hybrid": {"inner": Hybrid(), "backbone": TIMED},
    "self-conditioned": {"backbone": trunk(self_conditioning=True)},
    "encoder": {"backbone": trunk(encoder_layers=1)},
    "labels": {"backbone": trunk(labels=3), "shift": True},
}
each_kind = pytest.mark.parametrize("kind", KINDS)


def blocks(size: int, inner: TokenProcess | None = None, **options: Any) -> DiscreteDiffusionLM:
    return diffusion(process=Block(Masked() if inner is None else inner, size), **options)


def condition(kind: str, batch: Batch) -> Batch:
    """The batch with the source that the kind of model reads."""
    generator, rows = torch.Generator().manual_seed(7), len(batch.tokens)
    if kind == "encoder":
        source = torch.randint(0, 6, (rows, 4), generator=generator)
        return batch._replace(source=source, source_attend=torch.arange(4).expand(rows, -1) < 3)
    if kind == "labels":
        return batch._replace(source=torch.arange(rows)[:, None] % 3, source_attend=torch.ones(rows, 1, dtype=torch.bool))
    return batch


def packed() -> Batch:
    """Two rows of documents that begin inside blocks, the second padded."""
    document = torch.tensor([[1, 1, 1, 2, 2, 2, 2, 3], [1, 2, 2, 2, 2, 2, 0, 0]])
    tokens = torch.randint(1, 6, (2, 8), generator=torch.Generator().manual_seed(3)).masked_fill(document == 0, PAD)
    return Batch.of(tokens, target=document > 0, attend=document > 0, document=document)


def noised(model: DiscreteDiffusionLM, batch: Batch, seed: int = 0) -> tuple[Tensor, Tensor]:
    """xt and times (B, L), one per block."""
    rng, length = Rng(seed, 0, batch.sample_id), batch.tokens.shape[1]
    size = model.process.span(length)
    t = rng.uniform("t", (-(-length // size),)).repeat_interleave(size, 1)[:, :length]
    return model.process.corrupt(batch.tokens, t, rng).where(batch.target, batch.tokens), t


def previous(model: DiscreteDiffusionLM, batch: Batch) -> TablePrediction | None:
    generator = torch.Generator().manual_seed(5)
    table = torch.randn(*batch.tokens.shape, VOCAB.size, generator=generator).to(next(model.parameters()).dtype)
    return TablePrediction(table) if model.backbone.self_conditioned else None


def part(belief: TablePrediction | None, here: slice) -> TablePrediction | None:
    return None if belief is None else TablePrediction(belief.table[:, here])


@each_kind
@pytest.mark.parametrize("size", [6, 20])
def test_one_block_is_exactly_the_plain_model(kind: str, size: int) -> None:
    options = dict(KINDS[kind])
    plain = diffusion(process=options.pop("inner", Masked()), **options)
    model, batch = blocks(size, **KINDS[kind]), condition(kind, ragged())
    xt, _ = noised(plain, batch)
    t = torch.tensor([0.2, 0.9, 0.5, 0.7], dtype=torch.float64)
    before = previous(plain, batch)
    expected, found = (m.predictor(batch)(xt, t, before).logits(batch.attend) for m in (plain, model))
    torch.testing.assert_close(found, expected)
    rng = Rng(1, 2, batch.sample_id)
    torch.testing.assert_close(model.nll(batch, rng), plain.nll(batch, rng))
    torch.testing.assert_close(model(batch, seed=0, step=0).total, plain(batch, seed=0, step=0).total)


@each_kind
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("batch", [ragged(), packed()], ids=["ragged", "packed"])
def test_blocks_after_cached_ones_have_the_beliefs_of_the_training_pass(kind: str, size: int, batch: Batch) -> None:
    model, batch = blocks(size, **KINDS[kind]).float(), condition(kind, batch)
    xt, t = noised(model, batch)
    before, length = previous(model, batch), batch.tokens.shape[1]
    with torch.no_grad():
        whole = model.predictor(batch)
        together = whole(xt, t, before).logits()
        step_by_step = whole.extend(batch.tokens[:, :0])
        for start in range(0, length, size):
            here = slice(start, min(start + size, length))
            seen, known = batch.attend[:, here], part(before, here)
            for predictor in (whole.extend(batch.tokens[:, :start]), step_by_step):
                alone = predictor(xt[:, here], t[:, here], known).logits()
                torch.testing.assert_close(alone[seen], together[:, here][seen], rtol=1e-5, atol=1e-5)
            if here.stop < length:
                following = step_by_step.extend(batch.tokens[:, here])
                torch.testing.assert_close(step_by_step(xt[:, here], t[:, here], known).logits(), alone)  # the old one stays valid
                step_by_step = following


@pytest.mark.parametrize("shift", [False, True])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_block_depends_on_its_own_noise_and_on_the_clean_blocks_before_it_alone(shift: bool, size: int) -> None:
    """Every token of [xt ; x0] is replaced in turn; documents are 5 and 3 tokens long."""
    model, length = blocks(size, shift=shift), 8
    document = torch.tensor([1, 1, 1, 1, 1, 2, 2, 2])
    clean = torch.randint(0, 6, (1, length), generator=torch.Generator().manual_seed(0)).repeat(length + 1, 1)
    noisy = torch.randint(0, 6, (1, length), generator=torch.Generator().manual_seed(1)).repeat(length + 1, 1)
    other, t = torch.arange(length), torch.full((length + 1,), 0.5)

    def beliefs(xt: Tensor, x0: Tensor) -> Tensor:
        return model.predictor(Batch.of(x0, document=document.expand(length + 1, -1)))(xt, t).logits()

    def notices(xt: Tensor, x0: Tensor) -> Tensor:
        """(L, L): the belief at the first index moved when the token at the second was replaced."""
        logits = beliefs(xt, x0)
        return (logits[:-1] != logits[-1]).any(-1).T

    changed_noisy, changed_clean = noisy.clone(), clean.clone()
    changed_noisy[other, other], changed_clean[other, other] = (noisy[other, other] + 1) % 6, (clean[other, other] + 1) % 6
    block, together = other // size, document[:, None] == document
    read_noisy = torch.ones(length, dtype=torch.bool)
    if shift:  # the first of a block is read from the clean token before it, but the first of a document at its own place
        read_noisy = (other % size > 0) | (other == 0) | (other == 5)
    assert torch.equal(notices(changed_noisy, clean), together & (block[:, None] == block) & read_noisy[:, None])
    assert torch.equal(notices(noisy, changed_clean), together & (block[:, None] > block))


@pytest.mark.parametrize("kind", ["masked", "shifted", "timed", "timed and shifted"])
def test_blocks_of_one_token_are_the_chain_rule_token_by_token(kind: str) -> None:
    """The bound at t = 1 against one network call per token, each after the tokens before it."""
    model, batch = blocks(1, **KINDS[kind]), packed()
    process, ones = model.process, torch.ones(2, dtype=torch.float64)
    xt = torch.full_like(batch.tokens, MASK).where(batch.target, batch.tokens)
    with torch.no_grad():
        whole = model.predictor(batch)
        nats = process.nelbo_at(whole(xt, ones), Clean(batch.tokens, batch.tokens), xt, ones, batch.target)
        predictor = whole.extend(batch.tokens[:, :0])
        for column in range(8):
            token, here = batch.tokens[:, column : column + 1], batch.target[:, column : column + 1]
            log_prob = predictor(torch.full((2, 1), MASK), ones).logits().log_softmax(-1).gather(-1, token[..., None])[..., 0]
            torch.testing.assert_close(nats[:, column : column + 1][here], -log_prob[here])
            predictor = predictor.extend(token)
    if "timed" not in kind:  # then the time of a mask says nothing and every draw of the bound is exact
        for draw in range(3):
            torch.testing.assert_close(model.nll(batch, Rng(draw, 0, batch.sample_id)), nats.sum(1))


def test_shifted_blocks_of_one_token_are_the_autoregressive_model() -> None:
    model, rival, batch = blocks(1, shift=True), autoregressive(), ragged()
    rival.load_state_dict(model.state_dict())
    rng = Rng(0, 0, batch.sample_id)
    torch.testing.assert_close(model.nll(batch, rng), rival.nll(batch, rng))


def test_the_bound_is_the_enumerated_one_on_average() -> None:
    """Per block of two: the mean over one or two masks of what the masked cost, weighed by 2 over their number."""
    model, row, rows = blocks(2), [2, 5, 1, 3, 4], 20_000

    def cost(hidden: tuple[int, ...], start: int) -> float:
        here = slice(start, start + 2)
        xt = torch.tensor([[MASK if i in hidden else row[i] for i in range(len(row))]])[:, here]
        predictor = model.predictor(Batch.of(torch.tensor([row]))).extend(torch.tensor([row])[:, :start])
        log_prob = predictor(xt, torch.ones(1)).logits()[0].log_softmax(-1)
        return -sum(float(log_prob[i - start, row[i]]) for i in hidden)

    with torch.no_grad():
        expected = cost((4,), 4)
        for start in (0, 2):
            pair = (start, start + 1)
            for k in (1, 2):
                subsets = list(itertools.combinations(pair, k))
                expected += 0.5 * 2 / k * sum(cost(subset, start) for subset in subsets) / len(subsets)
    batch = Batch.of(torch.tensor(row).repeat(rows, 1))
    nats = model.nll(batch, Rng(0, 0, batch.sample_id))
    assert abs(float(nats.mean()) - expected) < 4.5 * float(nats.std()) / rows**0.5


@each_kind
def test_each_row_costs_what_it_costs_alone(kind: str) -> None:
    model, batch = blocks(2, **KINDS[kind]), condition(kind, ragged())
    together = model.nll(batch, Rng(1, 2, batch.sample_id))
    for row in range(4):
        single = lone(batch, row)
        torch.testing.assert_close(model.nll(single, Rng(1, 2, single.sample_id))[0], together[row])


def test_documents_that_begin_with_blocks_cost_what_they_cost_alone() -> None:
    model, length = blocks(2, shift=True), 8
    tokens = torch.randint(1, 6, (1, length), generator=torch.Generator().manual_seed(3))
    document = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]])
    xt, t = noised(model, Batch.of(tokens))
    whole = model.predictor(Batch.of(tokens, document=document))(xt, t).logits()
    for here in (slice(0, 4), slice(4, 8)):
        torch.testing.assert_close(model.predictor(Batch.of(tokens[:, here]))(xt[:, here], t[:, here]).logits(), whole[:, here])


@pytest.mark.parametrize("shift", [False, True])
def test_rows_padded_on_the_left_by_whole_blocks_are_believed_what_they_are_alone(shift: bool) -> None:
    """Also where the first token has nothing before it to be read from but padding."""
    model, batch = blocks(2, shift=shift), ragged()
    xt, t = noised(model, batch)
    alone = model.predictor(batch)(xt, t).logits()
    left = Batch.of(*(torch.nn.functional.pad(part, (4, 0)) for part in (batch.tokens, batch.target, batch.attend)))
    together = model.predictor(left)(torch.nn.functional.pad(xt, (4, 0)), torch.nn.functional.pad(t, (4, 0), value=0.5)).logits()
    torch.testing.assert_close(together[:, 4:][batch.attend], alone[batch.attend], rtol=1e-5, atol=1e-6)


def test_predictors_keep_a_subset_of_rows() -> None:
    model, batch, index = blocks(2, shift=True), ragged(), torch.tensor([3, 1])
    xt, t = noised(model, batch)
    whole = model.predictor(batch)
    expected = whole(xt, t).logits()[index]
    torch.testing.assert_close(whole.rows(index)(xt[index], t[index]).logits(), expected)
    cached, here = whole.extend(batch.tokens[:, :2]), slice(2, 4)
    twice = cached.rows(torch.tensor([0, 1, 3])).rows(torch.tensor([2, 1]))
    for some in (cached.rows(index), whole.rows(index).extend(batch.tokens[index, :2]), twice):
        torch.testing.assert_close(some(xt[index, here], t[index, here]).logits(), expected[:, here])
    assert cached.rows(torch.arange(4)) is cached  # nothing is copied


def test_clipped_times_train_and_are_never_a_likelihood() -> None:
    model, plain, batch = blocks(2, noising=ClippedTime()), blocks(2), ragged()
    loss = model(batch, seed=0, step=0)
    loss.total.backward()
    assert math.isfinite(float(loss.total.detach()))
    assert float(loss.total.detach()) > 0
    assert math.isnan(float(loss.nelbo))
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)
    rng = Rng(0, 0, batch.sample_id)
    torch.testing.assert_close(model.nll(batch, rng), plain.nll(batch, rng))


@pytest.mark.parametrize("kind", ["masked", "shifted", "uniform"])
def test_save_and_load_keep_the_blocks(kind: str, tmp_path: Path) -> None:
    model, batch = blocks(3, **KINDS[kind], noising=ClippedTime()).float(), ragged()
    model.save_pretrained(tmp_path)
    process = json.loads((tmp_path / "config.json").read_text())["spec"]["process"]
    assert process["class"] == "textdiff.processes.block.Block"
    assert process["size"] == 3
    loaded = DiscreteDiffusionLM.from_pretrained(tmp_path)
    assert loaded.spec == model.spec
    rng = Rng(0, 0, batch.sample_id)
    assert torch.equal(loaded.nll(batch, rng), model.nll(batch, rng))
    prompt = torch.tensor([[3, 1, 4]])
    assert torch.equal(*(m.generate(prompt, max_new_tokens=9, seed=1).sequences for m in (loaded, model)))
    sampler = Blockwise(Ancestral(steps=3), eos_id=2)
    given, named = ({"sampler": sampler}, {"sampler_config": plain.to_plain(sampler)})
    assert torch.equal(*(model.generate(prompt, max_new_tokens=9, seed=1, **options).sequences for options in (given, named)))


@pytest.mark.parametrize("kind", ["masked", "shifted", "timed", "uniform"])
def test_ragged_prompts_generate_what_they_generate_alone(kind: str) -> None:
    model, prompts = blocks(4, **KINDS[kind]), [[3, 1, 4, 2, 5, 1], [2], [1, 5, 3]]
    padded = torch.tensor([[*p, *[PAD] * (6 - len(p))] for p in prompts])
    together = model.generate(padded, (padded != PAD).long(), max_new_tokens=11, seed=2)
    first = model.generate(torch.tensor(prompts[:1]), max_new_tokens=11, seed=2)
    assert torch.equal(first.sequences[0], together.sequences[0])
    assert int(first.nfe) == int(together.nfe[0])
    new = together.sequences[:, 6:]
    for row in new.tolist():
        end = row.index(EOS) + 1 if EOS in row else 11
        assert all(i < TEXT for i in row[:end])
        assert all(i == PAD for i in row[end:])


def test_generation_stops_at_the_end_token_and_at_nothing_else() -> None:
    model = blocks(4)
    with torch.no_grad():
        model.backbone.embedding.weight[EOS] = 0  # its logit is 0 everywhere
    endless = model.generate(torch.tensor([[1, 2]]), max_new_tokens=30, seed=0, sampler=Blockwise(FirstHitting()))
    assert endless.sequences.shape == (1, 32)
    assert int(endless.nfe) == 30 + 7  # a call per token and one for each finished block
    seeds = [model.generate(torch.tensor([[1, 2]]), max_new_tokens=30, seed=seed) for seed in range(20)]
    stopped = [out for out in seeds if EOS in out.sequences[0, 2:].tolist()]
    assert stopped
    for out in stopped:
        end = out.sequences[0].tolist().index(EOS)
        assert int(out.nfe) <= (end // 4 + 1) * 4 - 2 + end // 4  # the blocks after it were never begun
        assert bool((out.sequences[0, end + 1 :] == PAD).all())


def test_infilling_keeps_what_is_given() -> None:
    model, prompt = blocks(2), torch.tensor([[3, MASK, 4, 2, MASK]])
    filled = model.generate(prompt, max_new_tokens=0, seed=0).sequences
    assert torch.equal(filled[prompt != MASK], prompt[prompt != MASK])
    assert bool((filled < TEXT).all())


@pytest.mark.parametrize("size", [1, 3])
def test_greedy_generation_is_that_of_the_uncached_pass(size: int) -> None:
    """Block by block with whole rows and no cache: commit the most probable tokens of the block in one step."""
    model, row = blocks(size, vocab=replace(VOCAB, eos_id=None), shift=True), torch.tensor([[3, 1, *[MASK] * 9]])
    for start in range(0, 11, size):
        belief = model.predictor(Batch.of(row))(row, torch.ones(1)).logits()
        here = torch.arange(11) // size == start // size
        row = torch.where((row == MASK) & here, belief.argmax(-1), row)
    sampler = Blockwise(Greedy(steps=1))
    assert torch.equal(model.generate(torch.tensor([[3, 1]]), max_new_tokens=9, temperature=0.0, sampler=sampler).sequences, row)


def test_the_default_sampler_goes_block_by_block_and_stops() -> None:
    sampler = blocks(2).default_sampler(7)
    assert isinstance(sampler, Blockwise)
    assert (sampler.inner.steps, sampler.eos_id) == (7, EOS)
    with pytest.raises(ValueError, match=r"^Threshold samples a whole row at once and the model's process is Block: wrap it"):
        blocks(2).generate(torch.tensor([[1]]), max_new_tokens=4, sampler=Threshold())


def test_a_canvas_of_the_wrong_length_is_refused() -> None:
    predictor = blocks(2).predictor(ragged())
    assert isinstance(predictor, PairedPredictor)
    with pytest.raises(ValueError, match=r"^3 finished tokens are no whole blocks of 2"):
        predictor.extend(ragged().tokens[:, :3])
    with pytest.raises(ValueError, match=r"^a canvas of 3 tokens is longer than a block of 2"):
        predictor.extend(ragged().tokens[:, :2])(ragged().tokens[:, 2:5], torch.ones(4))
