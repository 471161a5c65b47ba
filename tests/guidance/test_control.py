from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from tests.guidance.mixture import PROCESS, KnowsMixture, KnowsTokens, Mixture, asked, mean_given
from tests.guidance.test_vectors import SAMPLERS, embedded, labelled, sampled
from tests.models.tiny import diffusion, lone, trunk
from textdiff.batch import Batch
from textdiff.guidance.base import Guidance
from textdiff.guidance.clamp import Clamp
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.guidance.control import Attribute, Control, ControlledSteps, Gradient, Jointly, Pattern, PlugAndPlay
from textdiff.models.classifier import ClassifierSpec, NoisyClassifier
from textdiff.models.embedding import EmbeddingDiffusionLM
from textdiff.processes.gaussian import Gaussian
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Sampler
from textdiff.samplers.ddim import DDIM
from textdiff.schedules import CosineSquared

ATTRIBUTE = Attribute(KnowsMixture())


def states(rows: int, seed: int = 0) -> Tensor:
    return 1.5 * torch.randn(rows, 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_exact_classifier_at_gamma_one_gives_the_mean_given_the_class() -> None:
    """Tweedie: E[x0 | xt] + (s^2 / a) grad log p(y | xt) = E[x0 | xt, y], by hand for a mixture of Gaussians."""
    batch, t, xt = asked(12, 0, 1), torch.linspace(0.02, 1.0, 12, dtype=torch.float64), states(12)
    with torch.no_grad():
        found = Gradient(ATTRIBUTE)(Mixture()).predictor(batch)(xt, t).state()  # type: ignore[attr-defined]
        free = Mixture().predictor(batch._replace(source_attend=~batch.source_attend))(xt, t).state()
    exact = mean_given(xt, t, batch.source[:, 0])
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-10)
    assert float((free - exact).abs().max()) > 0.5
    with torch.no_grad():
        twice = Gradient(ATTRIBUTE, 2.0)(Mixture()).predictor(batch)(xt, t).state()  # type: ignore[attr-defined]
        weighed = ClassifierFree(2.0)(Mixture()).predictor(batch)(xt, t).state()  # type: ignore[attr-defined]
    torch.testing.assert_close(twice, weighed, rtol=0, atol=1e-10)  # the classifier that a conditional model implies


def test_guided_samples_have_the_class_that_was_asked_for() -> None:
    """4,000 rows: their mean is that of the class, their standard deviation 0.5, up to the steps' own error."""
    batch = asked(4_000, 1)
    denoiser = Gradient(ATTRIBUTE)(Mixture())
    *_, last = DDIM(steps=64, eta=1.0).trajectory(denoiser, batch, Rng(0, 0, batch.sample_id))
    exact = mean_given(last.x, torch.ones(4_000, dtype=torch.float64), batch.source[:, 0])  # t = 1: almost nothing is seen
    assert float((last.x.mean(0) - exact.mean(0)).abs().max()) < 0.08
    assert float((last.x.std(0) - 0.5).abs().max()) < 0.08


@dataclass(frozen=True, eq=False)
class Towards(Control):
    """grad log p = direction at every position."""

    direction: Tensor

    def log_prob(self, x: Tensor, noise: Tensor, batch: Batch) -> Tensor:
        return (x * self.direction).flatten(1).sum(1)


def test_the_updates_are_those_of_an_optimiser_begun_anew_each_time() -> None:
    """Adagrad of torch on -log p + fluency * sum (mu - x)^2 / std, a new one for each update, as Diffusion-LM's code has it."""
    batch, xs, mean, std = asked(4, 0, 1), states(4), states(4, 1), torch.full((4, 1, 1), 0.3, dtype=torch.float64)
    noise = torch.linspace(0.2, 0.8, 4, dtype=torch.float64)
    for deviation, divisor in ((std, 0.3), (torch.zeros_like(std), 1.0)):
        found = PlugAndPlay(ATTRIBUTE, updates=4, rate=0.07, fluency=0.02).updated(xs, mean, deviation, noise, batch)
        x = xs.clone().requires_grad_()
        for _ in range(4):
            optimiser = torch.optim.Adagrad([x], lr=0.07)
            loss = -ATTRIBUTE.log_prob(x, noise, batch).sum() + 0.02 * ((mean - x) ** 2 / divisor).sum()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        torch.testing.assert_close(found, x.detach(), rtol=0, atol=1e-5)  # Adagrad adds 1e-10 to |gradient|


@pytest.mark.parametrize(("updates", "rate"), [(3, 0.1), (1, 0.25), (7, 0.01)])
def test_without_the_regulariser_every_number_moves_by_updates_times_rate(updates: int, rate: float) -> None:
    batch, xs = asked(4, 0, 1), states(4)
    direction = torch.tensor([[0.3, -2.0], [1e-6, -1e3], [4.0, 5.0]], dtype=torch.float64)
    std, noise = torch.ones(4, 1, 1, dtype=torch.float64), torch.full((4,), 0.5, dtype=torch.float64)
    found = PlugAndPlay(Towards(direction), updates, rate, fluency=0.0).updated(xs, xs, std, noise, batch)
    torch.testing.assert_close(found - xs, (updates * rate * direction.sign()).expand_as(xs), rtol=0, atol=1e-12)


def test_the_regulariser_holds_a_text_at_the_mean_of_the_step() -> None:
    """A pull 2 fluency |x - mu| / std above the slope turns back: without noise x stays within one update of slope std / (2 fluency)."""
    batch, mean = asked(2, 0), states(2)
    std, noise = torch.full((2, 1, 1), 0.5, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    steered = PlugAndPlay(Towards(torch.ones(3, 2, dtype=torch.float64)), updates=400, rate=0.01, fluency=0.2)
    moved = steered.updated(mean, mean, std, noise, batch) - mean
    torch.testing.assert_close(moved, torch.full_like(moved, 1.0 * 0.5 / (2 * 0.2)), rtol=0, atol=0.011)


def test_a_step_is_the_process_and_then_the_updates_above_the_floor() -> None:
    model, batch, guidance = Mixture(), asked(4, 0, 1), PlugAndPlay(ATTRIBUTE, rate=0.2, floor=0.3)
    denoiser, xt = guidance(model), states(4)
    t, s = torch.full((4,), 0.6, dtype=torch.float64), torch.tensor([0.2, 0.3, 0.5, 0.0], dtype=torch.float64)
    pred, rng = denoiser.predictor(batch)(xt, t), Rng(0, 0, batch.sample_id)
    found = denoiser.process.step(pred, xt, t, s, rng)
    plain = PROCESS.step(pred, xt, t, s, rng)
    assert torch.equal(found[[0, 3]], plain[[0, 3]])
    law = PROCESS.posterior(pred.state(), xt, t, s)  # type: ignore[attr-defined]
    updated = guidance.updated(plain, law.mean, law.variance.sqrt(), 1 - PROCESS.alpha(s), batch)
    torch.testing.assert_close(found[1:3], updated[1:3])
    assert float((found - plain)[1:3].abs().max()) == pytest.approx(0.6)
    large = replace(PROCESS, large_variance=True)
    wide = guidance(Mixture(large))
    other = wide.process.step(wide.predictor(batch)(xt, t), xt, t, s, rng)
    again = guidance.updated(large.step(pred, xt, t, s, rng), law.mean, law.forward.sqrt(), 1 - PROCESS.alpha(s), batch)
    torch.testing.assert_close(other[1:3], again[1:3])


def test_control_raises_the_share_of_the_class_and_the_rows_not_told_stay_as_they_are() -> None:
    batch = asked(400, 0, 1)
    batch = batch._replace(source_attend=torch.arange(400)[:, None] < 200)
    clean = torch.zeros(400, dtype=torch.float64)

    def share(denoiser: object) -> tuple[Tensor, Tensor]:
        *_, last = Ancestral(steps=40).trajectory(denoiser, batch, Rng(0, 0, batch.sample_id))  # type: ignore[arg-type]
        return last.x, (KnowsMixture().log_prob(last.x, clean + 1e-3, batch.attend).argmax(1) == batch.source[:, 0]).double()

    free, by_chance = share(Gradient(ATTRIBUTE, 0.0)(Mixture()))
    played, found = share(PlugAndPlay(ATTRIBUTE)(Mixture()))
    assert torch.equal(played[200:], free[200:])
    assert float(by_chance[:200].mean()) < 0.6
    assert float(found[:200].mean()) > 0.95


def test_patterns_and_joint_controls_are_sums_over_what_is_asked_of_targets() -> None:
    x, noise = states(2), torch.full((2,), 0.3, dtype=torch.float64)
    target = torch.tensor([[True, True, False], [True, True, True]])
    told = torch.tensor([[True, True, True, True], [True, False, True, True]])
    batch = asked(2, 0)._replace(target=target, source=torch.tensor([[1, 0, 1, 1], [0, 9, 1, 0]]), source_attend=told)
    table = KnowsTokens().log_prob(x, noise, batch.attend)
    pattern = torch.stack([table[0, 0, 0] + table[0, 1, 1], table[1, 1, 1] + table[1, 2, 0]])
    torch.testing.assert_close(Pattern(KnowsTokens()).log_prob(x, noise, batch), pattern)
    label = KnowsMixture().log_prob(x, noise, batch.attend)
    both = Jointly((ATTRIBUTE, Pattern(KnowsTokens()))).log_prob(x, noise, batch)
    torch.testing.assert_close(both, pattern + torch.stack([label[0, 1], label[1, 0]]))
    untold = batch._replace(source_attend=torch.zeros_like(told))
    assert Jointly((ATTRIBUTE, Pattern(KnowsTokens()))).log_prob(x, noise, untold).tolist() == [0.0, 0.0]


def classifier(model: EmbeddingDiffusionLM, seed: int = 3) -> NoisyClassifier:
    found = ClassifierSpec(model.process, trunk(time_conditioning=True), labels=3, width=8).build(model.vocab)
    generator = torch.Generator().manual_seed(seed)
    for parameter in found.parameters():
        torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    found.double().eval().take_vectors(model)
    return found


@SAMPLERS
@pytest.mark.parametrize("played", [False, True], ids=["Gradient", "PlugAndPlay"])
def test_given_tokens_such_as_an_end_or_the_words_around_a_gap_are_untouched(sampler: Sampler, played: bool) -> None:
    model, batch = embedded(), labelled()
    control = Attribute(classifier(model))
    guidance: Guidance = PlugAndPlay(control, rate=0.5) if played else Gradient(control, 20.0)
    if played and not isinstance(sampler, Ancestral):
        with pytest.raises(ValueError, match=r"^DDIM samples a Gaussian process and the model's is ControlledSteps: choose a sampler"):
            sampled(guidance(model), batch, sampler)
        return
    for canvas in sampler.trajectory(guidance(model), batch, Rng(0, 0, batch.sample_id)):
        assert torch.equal(canvas.x[~batch.target], model.canvas(batch)[0][~batch.target])
    together = sampled(guidance(model), batch, sampler)
    assert torch.equal(together[~batch.target], batch.tokens[~batch.target])
    assert not torch.equal(together, sampled(Gradient(control, 0.0)(model), batch, sampler))
    for row in range(4):
        alone = sampled(guidance(model), lone(batch, row), sampler)
        assert torch.equal(alone[0], together[row, : alone.shape[1]])


@SAMPLERS
def test_gamma_zero_and_rows_without_a_label_are_the_unguided_model_which_is_never_told(sampler: Sampler) -> None:
    model, batch = embedded(), labelled()
    control = Attribute(classifier(model))
    untold = batch._replace(source_attend=torch.zeros(4, 1, dtype=torch.bool))
    free = sampled(model, untold, sampler)
    assert torch.equal(sampled(Gradient(control, 0.0)(model), batch, sampler), free)
    assert torch.equal(sampled(Gradient(control, 5.0)(model), untold, sampler), free)
    assert all(parameter.grad is None for parameter in model.parameters())
    if isinstance(sampler, Ancestral):
        assert torch.equal(sampled(PlugAndPlay(control)(model), untold, sampler), free)


def test_calls_are_the_models_and_a_clamp_goes_inside() -> None:
    model, batch = Mixture(), asked(3, 0, 1)
    *_, last = Ancestral(steps=6).trajectory(PlugAndPlay(ATTRIBUTE)(Clamp()(model)), batch, Rng(0, 0, batch.sample_id))
    assert last.nfe.tolist() == [6, 6, 6]
    assert model.calls == 6


def test_without_signal_there_is_no_guidance() -> None:
    """a = 6e-17 at t = 1 of a cosine without offset: s^2 / a times any slope would leave the vectors' scale for good."""
    process = Gaussian(CosineSquared(eps=0.0), 1e-3)
    control = Towards(torch.ones(3, 2, dtype=torch.float64))
    batch, xt, t = asked(3, 0), states(3), torch.tensor([1.0, 0.995, 0.99], dtype=torch.float64)
    free, found = (Gradient(control, gamma)(Mixture(process)).predictor(batch)(xt, t).state() for gamma in (0.0, 1.0))  # type: ignore[attr-defined]
    a, s = process.levels(t)
    torch.testing.assert_close(found - free, torch.tensor([0.0, 0.0, 1.0])[:, None, None] * (s**2 / a).expand(3, 3, 2))
    for sampler in (Ancestral(steps=64), DDIM(steps=64)):
        for canvas in sampler.trajectory(Gradient(control)(Mixture(process)), batch, Rng(0, 0, batch.sample_id)):
            assert float(canvas.x.square().mean().sqrt()) < 100


def test_a_classifier_that_does_not_fit_the_question_is_refused_in_one_line() -> None:
    x, noise, batch = states(2), torch.full((2,), 0.5, dtype=torch.float64), asked(2, 0, 5)
    with pytest.raises(ValueError, match=r"^the source asks for classes 0 .. 5 and the classifier knows 0 .. 1: ask for one of those$"):
        ATTRIBUTE.log_prob(x, noise, batch)
    hidden = batch._replace(source_attend=torch.tensor([[True], [False]]))
    assert float(ATTRIBUTE.log_prob(x, noise, hidden)[1]) == 0.0
    each = batch._replace(source=torch.tensor([[0, 1, -1], [0, 1, 1]]), source_attend=batch.target)
    with pytest.raises(ValueError, match=r"^the source asks for classes -1 .. 1 and the classifier knows 0 .. 1: ask for one of those$"):
        Pattern(KnowsTokens()).log_prob(x, noise, each)
    with pytest.raises(
        ValueError, match=r"^Attribute needs a classifier of whole texts and this one gives \(2, 3, 2\), of tokens: use Pattern$"
    ):
        Attribute(KnowsTokens()).log_prob(x, noise, asked(2, 0))
    with pytest.raises(ValueError, match=r"^Pattern needs a classifier of tokens and this one gives \(2, 2\), of texts: use Attribute$"):
        Pattern(KnowsMixture()).log_prob(x, noise, each)


def test_a_model_that_must_read_a_text_cannot_be_controlled() -> None:
    model, batch = embedded(backbone=trunk(encoder_layers=1)), labelled()
    with pytest.raises(
        ValueError, match=r"^control takes the source for what is wanted and tells the model nothing of it: the model has an enc"
    ):
        sampled(Gradient(Attribute(classifier(model)))(model), batch, Ancestral(steps=2))


def test_what_cannot_be_controlled_is_refused_in_one_line() -> None:
    for guidance in (Gradient(ATTRIBUTE), PlugAndPlay(ATTRIBUTE)):
        with pytest.raises(ValueError, match=r"^this guidance moves vectors under Gaussian noise and the model's process is Masked$"):
            guidance(diffusion())
    with pytest.raises(ValueError, match=r"^gamma is nan, expected 0 \(not guided\) or more$"):
        Gradient(ATTRIBUTE, float("nan"))
    with pytest.raises(ValueError, match=r"^updates 0, rate 0.1, fluency 0.01, floor 0.05: expected 1 update or more"):
        PlugAndPlay(ATTRIBUTE, updates=0)
    with pytest.raises(ValueError, match=r"the model's process is ControlledSteps$"):
        Clamp()(PlugAndPlay(ATTRIBUTE)(Mixture()))
    process = PlugAndPlay(ATTRIBUTE)(Mixture()).process
    assert isinstance(process, ControlledSteps)
    t, batch = torch.full((2,), 0.5, dtype=torch.float64), asked(2, 0)
    with pytest.raises(ValueError, match=r"^control of reverse steps must be the outermost: put other guidance inside of it$"):
        process.step(Mixture().predictor(batch)(states(2), t), states(2), t, t / 2, Rng(0, 0, batch.sample_id))
    for control, wanted in (
        (ATTRIBUTE, "one label per row, or one and a class per position"),
        (Pattern(KnowsTokens()), "a class for each of 3"),
    ):
        with pytest.raises(ValueError, match=rf"^the source is \(2, 2\), expected {wanted}"):
            control.log_prob(states(2), t, batch._replace(source=torch.zeros(2, 2, dtype=torch.long)))
