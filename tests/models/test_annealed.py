"""Diffusion models whose attention is annealed in training: what the loss is then, and that nothing but the loss knows of it."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.tiny import MASK, TEXT, VOCAB, autoregressive, diffusion, lone, ragged
from textdiff.backbones.annealing import Annealing, GrowingBlocks, RandomEntries, WholeBatch
from textdiff.backbones.base import Backbone
from textdiff.batch import Batch
from textdiff.models.discrete import Discrete, DiscreteDiffusionLM
from textdiff.models.objective import CrossEntropy
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.projection import Head
from textdiff.randomness import Rng

EVERY_KIND = [RandomEntries(0.5), WholeBatch(0.5), GrowingBlocks(0.5, largest=8)]
each_kind = pytest.mark.parametrize("annealing", EVERY_KIND, ids=lambda kind: type(kind).__name__)


def both_ways(annealing: Annealing) -> tuple[DiscreteDiffusionLM, DiscreteDiffusionLM]:
    """Two models with the same weights, only the first of them annealed."""
    return diffusion(shift=True, annealing=annealing), diffusion(shift=True)


@each_kind
def test_at_the_start_the_loss_is_that_of_the_autoregressive_trunk_on_the_noisy_tokens(annealing: Annealing) -> None:
    source, batch = autoregressive(), ragged()
    model = diffusion(shift=True, annealing=annealing, objective=CrossEntropy())
    model.backbone.load_state_dict(source.backbone.state_dict())
    noised = Masked().bind(VOCAB).measure(model.process, batch.tokens, batch.target, batch.stratum, Rng(3, 5, batch.sample_id))
    with torch.no_grad():
        hidden = source.backbone(noised.xt, source.backbone.context(batch))
        log_prob = (hidden @ source.backbone.head().weight.T)[..., :TEXT].log_softmax(-1)[:, :-1]
    scored = (noised.xt == MASK)[:, 1:]
    expected = -log_prob[scored].gather(1, batch.tokens[:, 1:][scored][:, None]).sum()
    assert int(scored.sum()) > 3
    found = model(batch, seed=3, step=5, progress=0.0)
    torch.testing.assert_close(found.total.detach(), expected)
    assert found.nelbo.isnan()  # no bound of the model that sees everything


@each_kind
def test_after_its_part_the_loss_is_that_of_a_model_without_annealing(annealing: Annealing) -> None:
    annealed, plain = both_ways(annealing)
    for progress in (0.5, 0.9, 1.0):
        one, two = (model(ragged(), seed=1, step=2, progress=progress) for model in (annealed, plain))
        assert torch.equal(one.total, two.total)
        assert torch.equal(one.nelbo, two.nelbo)
    steps = [(annealed(ragged(), 1, step, 0.25).total, plain(ragged(), 1, step, 0.25).total) for step in range(8)]
    assert any(not torch.isclose(one, two) for one, two in steps)  # before it, it is not


@each_kind
def test_likelihood_and_samples_know_nothing_of_annealing(annealing: Annealing) -> None:
    annealed, plain = both_ways(annealing)
    batch = ragged()
    assert torch.equal(annealed.mean_nll(batch, 0, 3), plain.mean_nll(batch, 0, 3))
    prompt = torch.tensor([[0, 3, 1]])
    one, two = (model.generate(prompt, max_new_tokens=6, max_denoising_steps=4, seed=0).sequences for model in (annealed, plain))
    assert torch.equal(one, two)


@each_kind
def test_annealed_losses_and_gradients_of_rows_alone_add_up_to_those_of_the_batch(annealing: Annealing) -> None:
    model, batch, step = diffusion(shift=True, annealing=annealing), ragged(), 4

    def gradients(parts: list[Batch]) -> tuple[Tensor, int, list[Tensor]]:
        model.zero_grad()
        losses = [model(part, seed=0, step=step, progress=0.3) for part in parts]
        total = torch.stack([loss.total for loss in losses]).sum()
        total.backward()
        return total.detach(), sum(int(loss.tokens) for loss in losses), [p.grad.clone() for p in model.parameters() if p.grad is not None]

    whole, parts = gradients([batch]), gradients([lone(batch, row) for row in range(4)])
    torch.testing.assert_close(parts[0], whole[0])
    assert parts[1] == whole[1] == int(batch.target.sum())
    for one, two in zip(parts[2], whole[2], strict=True):
        torch.testing.assert_close(one, two)


@each_kind
def test_an_annealed_loss_is_a_function_of_seed_step_and_progress(annealing: Annealing) -> None:
    """So a resumed run, and every process, meets the same attention."""
    first, second = (diffusion(shift=True, annealing=annealing) for _ in range(2))
    for step in range(6):
        first(ragged(), seed=9, step=step, progress=step / 16)  # what was drawn before leaves no trace
    for step in range(4, 8):
        assert torch.equal(first(ragged(), 9, step, step / 16).total, second(ragged(), 9, step, step / 16).total)


def test_block_diffusion_is_not_annealed() -> None:
    with pytest.raises(ValueError, match="block diffusion has attention of its own, which is not annealed: set annealing to None"):
        Discrete(process=Block(Masked(), size=2), annealing=RandomEntries())


class Counting(Backbone):
    """Built by hand: at position l it is sure of the next token, x_0 + l + 1 modulo 6, and looks at nothing but the first token."""

    causal, max_length = False, 32

    def context(self, batch: Batch, ahead: Tensor | bool = True) -> Any:
        return Nothing()

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        following = (tokens[:, :1] + torch.arange(tokens.shape[1]) + 1) % 6
        return 100.0 * torch.nn.functional.one_hot(following, VOCAB.size).float()

    def head(self, banned: tuple[int, ...] = ()) -> Head:
        return Head(torch.eye(VOCAB.size), None, torch.tensor(banned))


class Nothing:
    """All that `Counting` must know of a batch."""

    def rows(self, index: Tensor) -> "Nothing":
        return self


def test_a_model_of_the_next_token_scores_and_writes_perfectly_under_shift_and_only_so() -> None:
    rows = (torch.arange(6)[:, None] + torch.arange(9)) % 6
    target = torch.ones_like(rows, dtype=torch.bool)
    target[:, 0] = False  # the first token is given: nothing is before it
    batch = Batch.of(rows, target=target)
    shifted, straight = (Discrete(shift=shift).build(VOCAB, Counting()).eval() for shift in (True, False))
    assert float(shifted.mean_nll(batch, 0, 4).abs().max()) < 1e-6
    assert float(straight.mean_nll(batch, 0, 4).min()) > 100
    written = shifted.generate(rows[:, :1], max_new_tokens=8, max_denoising_steps=3, seed=0).sequences
    assert torch.equal(written, rows)


def test_the_first_token_reaches_the_trunk_as_it_is_at_every_noise_level() -> None:
    model, seen = diffusion(shift=True, annealing=RandomEntries()), []
    model.backbone.embedding.register_forward_hook(lambda module, args, output: seen.append(args[0]))  # type: ignore[operator]
    batch = ragged()  # whose first tokens are no targets
    for step in range(30):
        model(batch, seed=0, step=step, progress=0.05)
    assert all(torch.equal(tokens[:, 0], batch.tokens[:, 0]) for tokens in seen)
    assert any(bool((tokens[:, 1] == MASK).all()) for tokens in seen)
