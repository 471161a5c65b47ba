from typing import Any

import pytest
import torch
from torch import Tensor

from tests.guidance.mixture import PROCESS, Mixture, asked, mean_given
from tests.models.tiny import VOCAB, lone, ragged, trunk
from tests.models.tiny_latents import model as latents
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.guidance.base import GuidedDenoiser
from textdiff.guidance.clamp import Clamp
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.guidance.filters import Filters
from textdiff.guidance.vectors import SourceHidden, Weighed
from textdiff.models.embedding import EmbeddingDiffusion, EmbeddingDiffusionLM
from textdiff.models.reading import Regression, Softmax
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Sampler
from textdiff.samplers.ddim import DDIM
from textdiff.state_prediction import StatePrediction

SAMPLERS = pytest.mark.parametrize(
    "sampler", [Ancestral(steps=5), DDIM(steps=5), DDIM(steps=5, eta=1.0)], ids=["ancestral", "ddim", "eta 1"]
)


def embedded(seed: int = 0, **options: Any) -> EmbeddingDiffusionLM:
    """A tiny model of vectors in double precision, whose every weight matters."""
    options = {"backbone": trunk(labels=3), "label_dropout": 0.1, **options}
    model = EmbeddingDiffusion(width=8, **options).build(VOCAB)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4, generator=generator)
    return model.double().eval()


def labelled() -> Batch:
    return ragged()._replace(source=torch.tensor([[0], [2], [1], [2]]), source_attend=torch.ones(4, 1, dtype=torch.bool))


def sampled(denoiser: Any, batch: Batch, sampler: Sampler) -> Tensor:
    return sampler.sample(denoiser, batch, Rng(0, 0, batch.sample_id))


def noisy(model: Any, batch: Batch, t: float) -> tuple[Tensor, Tensor]:
    known, target = model.canvas(batch)
    times = torch.full((len(known),), t, dtype=torch.float64)
    return model.process.corrupt(known, times, Rng(1, 0, batch.sample_id)).where(target[..., None], known), times


@SAMPLERS
@pytest.mark.parametrize("self_conditioning", [0.0, 0.5])
def test_gamma_zero_and_one_are_the_model_not_told_and_told_in_one_call(sampler: Sampler, self_conditioning: float) -> None:
    model, batch = embedded(self_conditioning=self_conditioning), labelled()
    untold = batch._replace(source_attend=torch.zeros(4, 1, dtype=torch.bool))
    *_, told_before, told_run = sampler.trajectory(model, batch, Rng(0, 0, batch.sample_id))
    *_, free_before, free_run = sampler.trajectory(model, untold, Rng(0, 0, batch.sample_id))
    assert not torch.equal(told_before.x, free_before.x)  # the last canvases are vectors of tokens, which may be the same
    for gamma, before, exact in ((1.0, told_before, told_run), (0.0, free_before, free_run)):
        *_, found_before, found = sampler.trajectory(ClassifierFree(gamma)(model), batch, Rng(0, 0, batch.sample_id))
        assert torch.equal(found_before.x, before.x)
        assert torch.equal(found.x, exact.x)
        assert torch.equal(found.nfe, exact.nfe)
    *_, both = sampler.trajectory(ClassifierFree(2.0)(model), batch, Rng(0, 0, batch.sample_id))
    assert torch.equal(both.nfe, 2 * told_run.nfe)


@pytest.mark.parametrize("gamma", [0.3, 2.0])
def test_weighing_x0_weighs_the_noise_and_the_velocity_alike(gamma: float) -> None:
    batch, t = asked(6, 0, 1), torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    xt = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    model = Mixture()
    c, u = (model.predictor(each)(xt, t).state() for each in (batch, batch._replace(source_attend=~batch.source_attend)))
    guided = ClassifierFree(gamma)(model).predictor(batch)(xt, t)
    assert isinstance(guided, StatePrediction)
    torch.testing.assert_close(guided.state(), u + gamma * (c - u))
    for of in (PROCESS.noise_of, PROCESS.velocity_of):
        torch.testing.assert_close(of(guided.state(), xt, t), of(u, xt, t) + gamma * (of(c, xt, t) - of(u, xt, t)))
    torch.testing.assert_close(c, mean_given(xt, t, batch.source[:, 0]))


def test_each_of_the_two_reads_its_own_belief_before() -> None:
    """By hand: the model told and not told, each with the belief it had itself."""
    model, batch = embedded(self_conditioning=0.5), labelled()
    (first, t), (second, s) = noisy(model, batch, 0.8), noisy(model, batch, 0.6)
    hidden = batch._replace(source_attend=torch.zeros(4, 1, dtype=torch.bool))
    by_hand = []
    for each in (batch, hidden):
        predict = model.predictor(each)
        by_hand.append(predict(second, s, predict(first, t)).state())
    exact = by_hand[1] + 3.0 * (by_hand[0] - by_hand[1])
    weighed = ClassifierFree(3.0)(model)
    for denoiser in (weighed, Clamp()(weighed)):  # a clamp outside hands each belief back unclamped
        guided = denoiser.predictor(batch)
        found: Any = guided(second, s, guided(first, t))
        belief = found if isinstance(found, Weighed) else found.inner
        torch.testing.assert_close(belief.state(), exact)
        assert found.calls == 2
    mixed = ClassifierFree(3.0)(model).predictor(batch)
    swapped: Any = mixed(second, s, None)
    assert float((swapped.state() - exact).detach().abs().max()) > 1e-6  # the belief before is read


@SAMPLERS
def test_known_vectors_stay_rows_that_hide_their_label_are_not_guided_and_a_ragged_batch_is_its_rows(sampler: Sampler) -> None:
    model, batch = embedded(), labelled()._replace(source_attend=torch.tensor([[True], [False], [True], [False]]))
    together = sampled(ClassifierFree(4.0)(model), batch, sampler)
    assert torch.equal(together[~batch.target], batch.tokens[~batch.target])
    free = sampled(model, batch, sampler)
    assert torch.equal(together[1::2], free[1::2])
    assert not torch.equal(together[::2], free[::2])
    for row in range(4):
        alone = sampled(ClassifierFree(4.0)(model), lone(batch, row), sampler)
        assert torch.equal(alone[0], together[row, : alone.shape[1]])


@SAMPLERS
def test_text_that_an_encoder_reads_is_hidden_by_attending_to_none_of_it(sampler: Sampler) -> None:
    """What is hidden cannot matter: the unconditional belief is finite and the same for any source, as if cross-attention said nothing."""
    model = embedded(backbone=trunk(encoder_layers=1))
    source = torch.tensor([[1, 2, 3], [4, 5, 1], [2, 2, 2], [5, 1, 3]])
    batch = ragged()._replace(source=source, source_attend=torch.ones(4, 3, dtype=torch.bool))
    other = batch._replace(source=source.flip(1, 0))
    hidden, hidden_too = (sampled(ClassifierFree(0.0)(model), each, sampler) for each in (batch, other))
    assert torch.equal(hidden, hidden_too)
    xt, t = noisy(model, batch, 0.5)
    belief = SourceHidden(model).predictor(batch)(xt, t)
    assert bool(belief.state().isfinite().all())  # type: ignore[attr-defined]
    blocks: Any = model.backbone.blocks
    for block in blocks:
        torch.nn.init.zeros_(block.cross.out.weight)
    torch.testing.assert_close(model.predictor(batch)(xt, t).state(), belief.state())  # type: ignore[attr-defined]
    model = embedded(backbone=trunk(encoder_layers=1))
    told, told_other = (sampled(ClassifierFree(2.0)(model), each, sampler) for each in (batch, other))
    assert not torch.equal(told, told_other)


@pytest.mark.parametrize("backbone", [trunk(labels=3), trunk(encoder_layers=1)], ids=["label", "encoder"])
@pytest.mark.parametrize("build", [embedded, latents], ids=["embedding", "latent"])
def test_a_source_that_training_never_hid_cannot_be_hidden_now(build: Any, backbone: TransformerConfig) -> None:
    never = build(backbone=backbone, label_dropout=0.0)
    for gamma in (0.0, 2.0):
        for denoiser in (never, GuidedDenoiser(never)):
            with pytest.raises(ValueError, match=rf"^gamma is {gamma} and the model's condition was never hidden in training: train with"):
                ClassifierFree(gamma)(denoiser)
        ClassifierFree(gamma)(build(backbone=backbone, label_dropout=0.1))
        ClassifierFree(gamma)(build(backbone=trunk(), label_dropout=0.0))  # which reads no source
    assert ClassifierFree(1.0)(never) is never


def test_without_a_source_there_is_nothing_to_weigh() -> None:
    with pytest.raises(ValueError, match=r"^guidance with gamma 2.0 needs a condition and the batch has no source"):
        sampled(ClassifierFree(2.0)(embedded()), ragged(), DDIM(steps=2))


def tempered(law: Tensor) -> Tensor:
    return (law**2) / (law**2).sum(-1, keepdim=True)


def best_two(law: Tensor) -> Tensor:
    kept = law * (law >= law.topk(2).values[..., -1:])
    return kept / kept.sum(-1, keepdim=True)


def best(law: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(law.argmax(-1), law.shape[-1]).to(law.dtype)


@pytest.mark.parametrize(
    ("filters", "changed"), [(Filters(0.5), tempered), (Filters(top_k=2), best_two), (Filters(0.0), best)], ids=["half", "two", "greedy"]
)
@pytest.mark.parametrize("self_conditioning", [0.0, 0.5])
def test_filters_change_the_weights_of_the_mean_and_not_where_it_lands(filters: Filters, changed: Any, self_conditioning: float) -> None:
    model, batch = embedded(reading=Softmax(), self_conditioning=self_conditioning), labelled()
    xt, t = noisy(model, batch, 0.7)
    plain = model.predictor(batch)(xt, t)
    found: Any = filters(model).predictor(batch)(xt, t)
    assert torch.allclose(found.state(), changed(plain.logits().double().softmax(-1)) @ plain.table, atol=1e-6)
    assert not torch.allclose(found.state(), plain.state(), atol=1e-3)
    assert torch.equal(found.landing(), plain.landing())
    assert found.calls == plain.calls
    after: Any = filters(model).predictor(batch)(xt, t, found)  # what the network reads of a belief before is as it was in training
    assert torch.equal(after.inner.state(), model.predictor(batch)(xt, t, plain).state())


@pytest.mark.parametrize(
    ("denoiser", "reason"),
    [
        (embedded(reading=Regression()), "this model draws vectors: leave them out"),
        (latents(), "this model draws vectors: leave them out"),
        (Clamp()(embedded(reading=Softmax())), "vectors that guidance moved: leave temperature, top-k and top-p out, or the guidance"),
    ],
    ids=["regressed", "latent", "guided"],
)
def test_filters_refuse_vectors_that_no_softmax_over_tokens_weighs(denoiser: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Filters(0.5)(denoiser)
    assert Filters()(denoiser) is denoiser
