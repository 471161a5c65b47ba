import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy
import pytest
import torch
from torch import Tensor

from tests.models.tiny import MASK, PAD, TEXT, VOCAB, diffusion, logits, lone, ragged, trunk
from textdiff.batch import Batch, Clean
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.processes.base import Process, UniformTime
from textdiff.processes.block import Block
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.schedules import Cosine
from textdiff.vocab import Vocab

ROW = [2, 5, 1]


def cross_entropy(model: DiscreteDiffusionLM, hidden: tuple[int, ...]) -> float:
    """-log p of the hidden tokens of ROW given the others, summed; by a plain softmax over the ids that may be written."""
    tokens = torch.tensor([ROW])
    xt = tokens.clone()
    xt[0, list(hidden)] = MASK
    log_prob = logits(model, xt)[0, :, :TEXT].detach().log_softmax(-1)
    return -sum(float(log_prob[i, ROW[i]]) for i in hidden)


def by_size(model: DiscreteDiffusionLM) -> list[float]:
    """Mean cross-entropy per hidden token over all subsets of 1, 2 and 3 hidden tokens."""
    subsets = [list(itertools.combinations(range(3), k)) for k in (1, 2, 3)]
    return [sum(cross_entropy(model, s) for s in group) / len(group) / k for k, group in enumerate(subsets, 1)]


def repeated(rows: int) -> Batch:
    return Batch.of(torch.tensor(ROW).repeat(rows, 1))


def unstratified(batch: Batch) -> Batch:
    """Each row the only slot of its global batch, as `nll` draws it."""
    return batch._replace(stratum=torch.tensor([[0, 1]]).expand(len(batch.tokens), 2))


def test_each_row_of_a_batch_is_unbiased_by_itself() -> None:
    model, batch = diffusion(), Batch.of(torch.tensor(ROW).repeat(3, 1))
    draws = torch.stack([model.nll(batch, Rng(0, k, batch.sample_id)) for k in range(3000)])
    error = draws.std(0) / len(draws) ** 0.5
    assert bool(((draws.mean(0) - sum(by_size(model))).abs() < 4.5 * error).all())


def test_a_network_that_is_told_the_time_has_an_unbiased_bound() -> None:
    """Exact counts must put the network at the times uniform time would: compared with the integral over independent maskings."""
    model = diffusion(backbone=trunk(time_conditioning=True))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    batch = repeated(20_000)
    clean, everywhere = Clean(batch.tokens, batch.tokens), batch.target
    counted = model.nll(batch, Rng(0, 0, batch.sample_id))
    noised = UniformTime(t_min=1e-4)(model.process, batch.tokens, everywhere, batch.stratum, Rng(1, 0, batch.sample_id))
    with torch.no_grad():
        pred = model.predictor(batch)(noised.xt, noised.t)
        timed = (model.process.nelbo_at(pred, clean, noised.xt, noised.t, everywhere) * noised.weight[:, None]).sum(1)
    error = (counted.var() / len(counted) + timed.var() / len(timed)).sqrt()
    assert abs(float(counted.mean() - timed.mean())) < 4 * float(error)


def test_the_bound_is_the_any_order_value_on_average() -> None:
    """E over counts k uniform on 1 .. 3, subsets uniform, weight 3 / k: the sum over k of the mean cost of a token among k hidden."""
    model, rows = diffusion(), 20_000
    batch = repeated(rows)
    nats = model.nll(batch, Rng(0, 0, batch.sample_id))
    assert abs(float(nats.mean()) - sum(by_size(model))) < 4.5 * float(nats.std()) / rows**0.5


def test_the_training_loss_is_the_bound_with_the_same_noise() -> None:
    model, batch = diffusion(), unstratified(ragged())
    loss = model(batch, seed=3, step=5)
    nats = model.nll(batch, Rng(3, 5, batch.sample_id))
    torch.testing.assert_close(loss.total, nats.sum())
    torch.testing.assert_close(loss.nelbo, loss.total.detach())
    assert not loss.nelbo.requires_grad
    assert int(loss.tokens) == int(batch.target.sum())


@pytest.mark.parametrize("schedule", [None, Cosine()], ids=str)
def test_uniform_time_is_the_integral_of_the_enumerated_costs_on_average(schedule: Cosine | None) -> None:
    """Integral over u = 1 - alpha(t), t from t_min to 1, of 1/u sum over k of C(3, k) u^k (1 - u)^(3 - k) k times the mean cost at k."""
    process, t_min, rows = Masked() if schedule is None else Masked(schedule), 0.05, 20_000
    model = diffusion(process=process, noising=UniformTime(t_min=t_min))
    low, high = (1 - process.schedule.alpha(torch.tensor([t_min, 1.0]))).tolist()
    points, weights = numpy.polynomial.legendre.leggauss(20)
    exact = 0.0
    for u, weight in zip(low + (high - low) * (points + 1) / 2, weights * (high - low) / 2, strict=True):
        exact += weight * sum((1, 3, 3, 1)[k] * u ** (k - 1) * (1 - u) ** (3 - k) * k * cost for k, cost in enumerate(by_size(model), 1))
    totals = torch.stack([model(repeated(rows // 20), seed=0, step=step).total for step in range(20)]).detach() / (rows // 20)
    assert abs(float(totals.mean()) - exact) < 4.5 * float(totals.std()) / 20**0.5


def test_each_row_of_a_batch_costs_what_it_costs_alone_without_padding() -> None:
    model, batch = diffusion(), ragged()
    together = model.nll(batch, Rng(1, 2, batch.sample_id))
    for row in range(4):
        single = lone(batch, row)
        torch.testing.assert_close(model.nll(single, Rng(1, 2, single.sample_id))[0], together[row])


def test_what_stands_in_the_padding_changes_nothing() -> None:
    model, batch = diffusion(), ragged()
    other = batch._replace(tokens=batch.tokens.masked_fill(~batch.attend, 3))
    rng = Rng(0, 0, batch.sample_id)
    assert torch.equal(model.nll(batch, rng), model.nll(other, rng))


def test_losses_and_gradients_of_micro_batches_add_up() -> None:
    model, batch = diffusion(), ragged()

    def run(parts: list[list[int]]) -> tuple[float, int, dict[str, Tensor]]:
        model.zero_grad()
        total, tokens = 0.0, 0
        for part in parts:
            loss = model(batch.rows(torch.tensor(part)), seed=0, step=1)
            loss.total.backward()
            total, tokens = total + float(loss.nelbo), tokens + int(loss.tokens)
        return total, tokens, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    total, tokens, gradients = run([[0, 1, 2, 3]])
    for parts in ([[0, 1], [2, 3]], [[3], [1], [0], [2]]):
        again, count, others = run(parts)
        assert again == pytest.approx(total, rel=1e-12)
        assert count == tokens
        assert others.keys() == gradients.keys() == {name for name, _ in model.named_parameters()}
        for name, gradient in gradients.items():
            torch.testing.assert_close(others[name], gradient, rtol=1e-9, atol=1e-12)


def test_a_row_without_targets_costs_nothing() -> None:
    model, batch = diffusion(), unstratified(ragged())
    batch.target[1] = False
    nats = model.nll(batch, Rng(0, 0, batch.sample_id))
    assert float(nats[1]) == 0
    assert bool(nats.isfinite().all())
    assert float(model(batch, seed=0, step=0).nelbo) == pytest.approx(float(nats.sum()))


def test_the_noise_of_a_loss_is_a_function_of_seed_step_and_sample() -> None:
    model, batch = diffusion(), ragged()
    first = model(batch, seed=0, step=0).total
    assert torch.equal(first, model(batch, seed=0, step=0).total)
    assert float(first) != float(model(batch, seed=1, step=0).total)
    assert float(first) != float(model(batch, seed=0, step=1).total)
    assert float(first) != float(model(batch._replace(sample_id=batch.sample_id + 1), seed=0, step=0).total)


@pytest.mark.parametrize("tied", [True, False])
def test_ids_that_are_not_text_have_no_probability(tied: bool) -> None:
    model = diffusion(backbone=trunk(tied=tied))
    batch = Batch.of(torch.full((1, 4), MASK))
    pred = model.predictor(batch)(batch.tokens, torch.ones(1))
    belief = pred.logits(batch.target).softmax(-1)
    assert bool((belief[:, TEXT:] == 0).all())
    assert bool((belief[:, :TEXT] > 0).all())
    torch.testing.assert_close(belief.sum(1), torch.ones(4, dtype=torch.float64))


def test_a_pad_that_is_the_end_token_may_be_written() -> None:
    shared = diffusion(Vocab(size=9, tokens=9, mask_id=MASK, pad_id=6, eos_id=6))
    batch = Batch.of(torch.full((1, 3), MASK))
    belief = shared.predictor(batch)(batch.tokens, torch.ones(1)).logits(batch.target).softmax(-1)
    assert bool((belief[:, 6] > 0).all())


def next_token_model(shift: bool) -> DiscreteDiffusionLM:
    """A trunk whose output at each position names the successor of the token it reads there: id + 1 modulo 7, whatever surrounds it."""
    model = diffusion(backbone=trunk(width=32, layers=1, heads=2, tied=False), shift=shift)
    with torch.no_grad():
        block = model.backbone.blocks[0]
        block.attention.out.weight.zero_()
        block.mlp[2].weight.zero_()
        block.mlp[2].bias.zero_()
        model.backbone.embedding.weight.copy_(torch.eye(VOCAB.size, 32))
        model.backbone.output.weight.zero_()
        for i in range(TEXT):
            model.backbone.output.weight[(i + 1) % TEXT, i] = 50.0
    return model


def test_a_shifted_model_reads_each_position_from_the_one_before() -> None:
    counting = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 0, 1]])
    every_other = torch.tensor([[False, True] * 4 + [False]])  # each hidden token stands behind a visible one
    process, t = Masked().bind(VOCAB), torch.full((1,), 0.5)
    xt = counting.masked_fill(every_other, process.mask_id)
    batch = Batch.of(counting, target=every_other)
    for shift, perfect in ((True, True), (False, False)):
        log_prob = next_token_model(shift).predictor(batch)(xt, t).log_prob(counting, every_other)
        assert bool((log_prob > -1e-6).all()) is perfect
        assert bool((log_prob < -1).all()) is not perfect


def test_a_time_conditioned_trunk_is_told_the_noise_level_and_uses_it() -> None:
    model = diffusion(process=Masked(Cosine()), backbone=trunk(time_conditioning=True))
    told: list[Tensor] = []
    forward: Callable[..., Tensor] = model.backbone.forward

    def watch(tokens: Tensor, context: object, noise: Tensor | None = None, cache: object = None, previous: object = None) -> Tensor:
        assert noise is not None
        told.append(noise)
        return forward(tokens, context, noise, cache, previous)

    model.backbone.forward = watch
    batch = Batch.of(torch.full((2, 3), MASK))
    early, late = (model.predictor(batch)(batch.tokens, torch.full((2,), t)).hidden for t in (0.2, 0.9))
    expected = [float(1 - Cosine().alpha(torch.tensor(t))) for t in (0.2, 0.9)]
    assert [float(noise[0]) for noise in told] == pytest.approx(expected)
    assert not torch.allclose(early, late)


def test_each_row_has_its_own_time() -> None:
    model = diffusion(backbone=trunk(time_conditioning=True))
    batch = Batch.of(torch.full((2, 3), MASK))
    mixed = model.predictor(batch)(batch.tokens, torch.tensor([0.2, 0.9])).hidden
    for row, t in enumerate((0.2, 0.9)):
        torch.testing.assert_close(mixed[row], model.predictor(batch)(batch.tokens, torch.full((2,), t)).hidden[row])


def test_predictor_rows_are_those_of_the_whole_batch() -> None:
    model, batch = diffusion(), ragged()
    index = torch.tensor([3, 1])
    t = torch.full((4,), 0.5)
    whole = model.predictor(batch)(batch.tokens, t).hidden
    torch.testing.assert_close(model.predictor(batch).rows(index)(batch.tokens[index], t[index]).hidden, whole[index])


def test_bfloat16_autocast_gives_a_finite_loss_near_the_exact_one() -> None:
    model, batch = diffusion().float(), ragged()
    exact = model(batch, seed=0, step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(batch, seed=0, step=0)
    loss.total.backward()
    assert loss.total.dtype == torch.float32
    assert float(loss.nelbo) == pytest.approx(float(exact.nelbo), rel=0.03)
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_attention_is_bidirectional() -> None:
    model, batch = diffusion(), Batch.of(torch.tensor([[1, 2, 3, 4]]))
    changed = torch.tensor([[1, 2, 3, 5]])
    before, after = (model.predictor(batch)(xt, torch.ones(1)).hidden for xt in (batch.tokens, changed))
    assert float((before[0, 0] - after[0, 0]).abs().max()) > 1e-3


def test_the_default_sampler_has_the_steps_it_is_given() -> None:
    assert diffusion().default_sampler(7).steps == 7


def test_a_vocabulary_without_a_mask_token_is_refused() -> None:
    with pytest.raises(ValueError, match="needs a mask token"):
        diffusion(replace(VOCAB, mask_id=None))


def test_padding_ids_beyond_the_tokenizer_are_never_sampled() -> None:
    model = diffusion()
    sampled = model.default_sampler(5).sample(model, Batch.of(torch.zeros(200, 8, dtype=torch.long)), Rng(0, 0, torch.arange(200)))
    assert int(sampled.max()) < TEXT <= PAD


def test_a_label_reaches_the_prediction_and_its_absence_is_one_more_class() -> None:
    model = diffusion(backbone=trunk(labels=3))
    tokens = torch.full((5, 3), MASK)
    source, told = torch.tensor([[0], [1], [2], [1], [0]]), torch.tensor([[True], [True], [True], [False], [False]])
    batch = Batch.of(tokens, source=source, source_attend=told)
    hidden = model.predictor(batch)(tokens, torch.full((5,), 0.5)).hidden
    assert len({tuple(row) for row in hidden[:4, 0].tolist()}) == 4
    torch.testing.assert_close(hidden[3], hidden[4])  # what is hidden says nothing
    unlabelled = model.predictor(Batch.of(tokens))(tokens, torch.full((5,), 0.5)).hidden
    torch.testing.assert_close(unlabelled[0], hidden[3])
    torch.testing.assert_close(model.predictor(batch).rows(torch.tensor([2, 0]))(tokens[:2], torch.full((2,), 0.5)).hidden, hidden[[2, 0]])
    with pytest.raises(ValueError, match=r"expected one label per row in 0 \.\. 2"):
        model.predictor(Batch.of(tokens, source=torch.full((5, 1), 3)))


def test_label_dropout_hides_the_labels_of_that_share_of_rows() -> None:
    rows = 4000
    model, told = diffusion(backbone=trunk(labels=2), label_dropout=0.25), []
    context: Callable[..., object] = model.backbone.context
    model.backbone.context = lambda batch, ahead: told.append(batch.source_attend) or context(batch, ahead)
    model(Batch.of(torch.ones(rows, 1, dtype=torch.long), source=torch.ones(rows, 1, dtype=torch.long)), seed=0, step=0)
    assert abs(float(told[0].double().mean()) - 0.75) < 4.5 * (0.1875 / rows) ** 0.5


def test_a_self_conditioned_trunk_reads_the_mean_embedding_of_its_first_belief() -> None:
    """The input is embedding + previous(softmax(logits) E), with the logits of a call without; in sampling and likelihood too."""
    model = diffusion(backbone=trunk(self_conditioning=True))
    batch, t = Batch.of(torch.tensor([ROW])), torch.full((1,), 0.5)
    xt = torch.tensor([[MASK, 5, MASK]])
    predict = model.predictor(batch)
    first = predict.alone(xt, t)
    mean = first.logits().softmax(-1) @ model.backbone.embedding.weight
    torch.testing.assert_close(first.mean(model.backbone.embedding.weight), mean)
    expected = model.backbone(xt, model.backbone.context(batch), None, previous=mean)
    for belief in (predict(xt, t), predict(xt, t, first)):
        torch.testing.assert_close(belief.hidden, expected)
    assert not torch.allclose(expected, first.hidden)
    model.backbone.previous.weight.data.zero_()
    torch.testing.assert_close(predict(xt, t).hidden, first.hidden)


def test_half_of_the_rows_train_with_their_own_first_belief_and_no_gradient_flows_through_it() -> None:
    model, batch = diffusion(backbone=trunk(self_conditioning=True)), repeated(2000)
    seen: list[Tensor] = []
    forward: Callable[..., Tensor] = model.backbone.forward

    def watch(*args: object, previous: Tensor | None = None) -> Tensor:
        if previous is not None:
            seen.append(previous)
        return forward(*args, previous=previous)

    model.backbone.forward = watch
    loss = model(batch, seed=0, step=0)
    assert not seen[0].requires_grad
    share = (seen[0].abs().sum((1, 2)) > 0).double().mean()
    assert abs(float(share) - 0.5) < 4.5 * (0.25 / 2000) ** 0.5
    loss.total.backward()
    assert float(model.backbone.previous.weight.grad.abs().sum()) > 0


@pytest.mark.parametrize("process", [Masked(), Uniform(), Block(Masked(), size=2)], ids=lambda process: type(process).__name__)
def test_a_self_conditioned_row_is_sampled_as_if_it_were_alone(process: Process) -> None:
    model, batch = diffusion(process=process, backbone=trunk(self_conditioning=True)), ragged()
    batch = batch._replace(tokens=batch.tokens.masked_fill(batch.target, 1))
    sampler = model.default_sampler(6)
    together = sampler.sample(model, batch, Rng(0, 0, batch.sample_id))
    for row in range(4):
        single = lone(batch, row)
        alone = sampler.sample(model, single, Rng(0, 0, single.sample_id))
        assert torch.equal(alone[0], together[row, : alone.shape[1]])


@pytest.mark.parametrize("process", [Uniform(), Hybrid()], ids=["uniform", "hybrid"])
def test_a_curriculum_begins_as_masked_diffusion_and_ends_as_its_own_process(process: Process) -> None:
    """Until its part of the run is over the loss is that of the same weights as a masked model, and no bound is reported."""
    timed = trunk(time_conditioning=True)
    model, masked = (
        diffusion(process=kind, backbone=timed, **options) for kind, options in ((process, {"curriculum": 0.5}), (Masked(), {}))
    )
    plain, batch = diffusion(process=process, backbone=timed), ragged()
    early, late = (model(batch, seed=0, step=0, progress=progress) for progress in (0.49, 0.5))
    torch.testing.assert_close(early.total, masked(batch, seed=0, step=0).total)
    assert bool(early.nelbo.isnan())
    torch.testing.assert_close(late.total, plain(batch, seed=0, step=0).total)
    torch.testing.assert_close(late.nelbo, plain(batch, seed=0, step=0).nelbo)


def test_masks_and_blocks_refuse_a_curriculum_of_masks() -> None:
    for process in (Masked(), Block(Uniform())):
        with pytest.raises(ValueError, match=r"curriculum is 0\.5"):
            diffusion(process=process, curriculum=0.5)
