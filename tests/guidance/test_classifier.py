from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.guidance.laws import CLASSES, MASK, NAMES, PROCESSES, STATES, Bayes, Knows, joint, labels, noising
from tests.guidance.test_classifier_free import OF_EACH, labelled, network, posterior, sampled
from tests.models.tiny import MASK as TINY_MASK
from tests.models.tiny import VOCAB, lone, trunk
from textdiff.batch import Batch
from textdiff.guidance.base import GuidedDenoiser, GuidedProcess, Unconditional
from textdiff.guidance.classifier import Asked, ClassifierBased, ClassifierSteps, Exact, FirstOrder
from textdiff.guidance.filters import Filters
from textdiff.models.classifier import ClassifierSpec, NoisyClassifier
from textdiff.prediction import MostProbable, TablePrediction
from textdiff.processes.base import TokenProcess
from textdiff.processes.masked import Masked
from textdiff.randomness import Rng
from textdiff.samplers.first_hitting import FirstHitting

EACH_PROCESS = pytest.mark.parametrize("process", PROCESSES, ids=NAMES)


def law_of(guidance: ClassifierBased, denoiser: Bayes, batch: Batch, xt: Tensor, t: float, s: float) -> Tensor:
    """The guided p(zs | zt) of every position, (B, L, 4)."""
    guided = guidance(denoiser)
    assert isinstance(guided.process, GuidedProcess)
    times = (torch.full((len(xt),), time, dtype=torch.float64) for time in (t, s))
    at, before = times
    everywhere = torch.ones_like(xt, dtype=torch.bool)
    table = guided.process.log_posterior(guided.predictor(batch)(xt, at), xt, at, before, everywhere)
    return table.exp().view(*xt.shape, -1)


def reachable(process: TokenProcess) -> list[int]:
    """States that zt can be: without masks in the noise there is no [MASK]."""
    return list(range(STATES)) if NAMES[PROCESSES.index(process)] == "Uniform" else list(range(STATES + 1))


@EACH_PROCESS
@pytest.mark.parametrize("times", [(0.9, 0.3), (0.5, 0.45)])
def test_one_position_is_bayes_rule(process: TokenProcess, times: tuple[float, float]) -> None:
    """p(zs | zt, y) ~ q(zt | zs) sum over x of p(x | y) q(zs | x), by enumeration."""
    law, (t, s) = joint(1), times
    states = [z for z in reachable(process) for _ in range(CLASSES)]
    batch = Batch.of(torch.zeros(len(states), 1, dtype=torch.long), source=torch.arange(len(states))[:, None] % CLASSES)
    found = law_of(Exact(Knows(process, law)), Bayes(process, law), batch, torch.tensor(states)[:, None], t, s)
    both = law[:, :, None] * torch.tensor([1.0, 0.0, 0.0])  # the second of two positions says nothing
    for row, z in enumerate(states):
        exact = posterior(process, both[row % CLASSES], torch.tensor([z, 0]), t, s)[0]
        torch.testing.assert_close(found[row, 0], exact, rtol=1e-9, atol=1e-12)


@EACH_PROCESS
def test_of_two_positions_each_follows_its_exact_law_given_the_class(process: TokenProcess) -> None:
    law, t, s = joint(2), 0.8, 0.3
    xt = torch.cartesian_prod(torch.tensor(reachable(process)), torch.tensor(reachable(process))).repeat_interleave(CLASSES, 0)
    batch = Batch.of(torch.zeros_like(xt), source=torch.arange(len(xt))[:, None] % CLASSES)
    found = law_of(Exact(Knows(process, law)), Bayes(process, law), batch, xt, t, s)
    for row, z in enumerate(xt):
        torch.testing.assert_close(found[row], posterior(process, law[row % CLASSES], z, t, s), rtol=1e-9, atol=1e-12)


@dataclass
class ReadsOne:
    """A classifier of the first token alone: its log-probabilities are linear in that token's one-hot row."""

    table: Tensor  # (4, C) log-probabilities
    states: int = STATES + 1
    rows_read: int = 0

    def log_prob(self, z: Tensor, noise: Tensor, attend: Tensor) -> Tensor:
        self.rows_read += len(z)
        first = z[:, 0] if z.is_floating_point() else torch.nn.functional.one_hot(z[:, 0], self.states)
        return first.double() @ self.table


@EACH_PROCESS
def test_first_order_is_exact_for_a_classifier_that_is_linear_in_the_one_hot_rows(process: TokenProcess) -> None:
    xt = torch.cartesian_prod(torch.tensor(reachable(process)), torch.tensor(reachable(process)))
    batch = Batch.of(torch.zeros_like(xt), source=torch.arange(len(xt))[:, None] % CLASSES)
    reader = ReadsOne(torch.randn(STATES + 1, CLASSES, generator=torch.Generator().manual_seed(1), dtype=torch.float64).log_softmax(1))
    denoiser = Bayes(process, joint(2))
    with torch.no_grad():
        first = law_of(FirstOrder(reader, 2.0), denoiser, batch, xt, 0.7, 0.4)
    assert reader.rows_read == len(xt)
    exact = law_of(Exact(reader, 2.0), denoiser, batch, xt, 0.7, 0.4)
    torch.testing.assert_close(first, exact, rtol=1e-6, atol=1e-7)
    unguided = law_of(Exact(reader, 0.0001), denoiser, batch, xt, 0.7, 0.4)
    assert float((exact[:, 0] - unguided[:, 0]).abs().max()) > 0.1
    torch.testing.assert_close(exact[:, 1], unguided[:, 1])  # the second token says nothing about the class


def test_under_masks_the_reveal_is_weighed_against_staying_masked_and_tokens_are_pinned() -> None:
    """By hand: q(v) (alpha_s - alpha_t) / (1 - alpha_t) p(y | v)^g against (1 - alpha_s) / (1 - alpha_t) p(y | m)^g."""
    process, law, gamma = PROCESSES[0], joint(1), 2.0
    xt = torch.tensor([[MASK], [1]])
    batch = Batch.of(torch.zeros_like(xt), source=torch.tensor([[1], [1]]))
    found = law_of(Exact(Knows(process, law), gamma), Bayes(process, law), batch, xt, 0.8, 0.2)
    alpha_t, alpha_s = process.alpha(torch.tensor([0.8, 0.2], dtype=torch.float64)).tolist()
    prior, known = law.sum(0), law[1] / law.sum(0)
    weight = torch.cat([(alpha_s - alpha_t) * prior * known**gamma, (1 - alpha_s) * law[1].sum()[None] ** gamma])
    torch.testing.assert_close(found[0, 0], weight / weight.sum())
    assert found[1, 0].tolist() == [0, 1, 0, 0]


def classifier(process: TokenProcess, seed: int = 5) -> NoisyClassifier:
    model = ClassifierSpec(process, trunk(time_conditioning=True), labels=3).build(VOCAB)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.5, generator=generator)
    return model.double().eval()


@OF_EACH
@pytest.mark.parametrize("kind", [Exact, FirstOrder])
def test_known_tokens_stay_no_mask_is_left_and_a_ragged_batch_is_its_rows(
    process: TokenProcess, timed: bool, kind: type[ClassifierBased]
) -> None:
    model, batch, guidance = network(process, timed), labelled(), kind(classifier(process), 3.0)
    together = sampled(guidance(model), batch)
    assert torch.equal(together[~batch.target], batch.tokens[~batch.target])
    assert not bool((together[batch.target] == TINY_MASK).any())
    for row in range(4):
        alone = sampled(guidance(model), lone(batch, row))
        assert torch.equal(alone[0], together[row, : alone.shape[1]])
    assert all(parameter.grad is None for parameter in guidance.classifier.parameters())  # type: ignore[attr-defined]


@OF_EACH
def test_gamma_zero_and_rows_without_a_label_are_the_unguided_model_which_is_never_told(process: TokenProcess, timed: bool) -> None:
    model, batch = network(process, timed), labelled()
    untold = batch._replace(source_attend=torch.zeros(4, 1, dtype=torch.bool))
    free = sampled(model, untold)
    assert torch.equal(sampled(FirstOrder(classifier(process), 0.0)(model), batch), free)
    silent = sampled(FirstOrder(classifier(process), 7.0)(model), untold)
    silent_too = sampled(FirstOrder(classifier(process, seed=6), 2.0)(model), untold)
    assert torch.equal(silent, silent_too)


@EACH_PROCESS
def test_guided_samples_have_the_class_that_was_asked_for(process: TokenProcess) -> None:
    """p(x) is uniform over pairs and the class is the first token's parity: exact guidance leaves no pair of the other class."""
    law = torch.zeros(CLASSES, STATES, STATES, dtype=torch.float64)
    law[0, ::2], law[1, 1] = 1 / 9, 1 / 9
    law = (law + 1e-9) / (law + 1e-9).sum()
    batch = labels(600, 0, 1)
    found = sampled(Exact(Knows(process, law))(Bayes(process, law)), batch)
    assert bool((found[:, 0] % 2 == batch.source[:, 0]).all())
    assert torch.bincount(found[::2, 0], minlength=3)[[0, 2]].min() > 110  # of 300, evenly on 0 and 2


@EACH_PROCESS
def test_filters_cut_what_the_model_believes_and_the_classifier_weighs_what_they_keep(process: TokenProcess) -> None:
    """By hand: the guided law of a model that believes nothing but its most probable tokens, or its law at half the temperature."""
    law, xt = joint(2), torch.tensor([[reachable(process)[-1]] * 2] * CLASSES)
    batch, t, s = labels(CLASSES, 0, 1), 0.7, 0.4
    at, before = (torch.full((CLASSES,), time, dtype=torch.float64) for time in (t, s))
    everywhere = torch.ones_like(xt, dtype=torch.bool)
    denoiser, guidance = Bayes(process, law), Exact(Knows(process, law), 2.0)
    belief = Unconditional(denoiser).predictor(batch)(xt, at).logits(everywhere)
    best = torch.full_like(belief, -torch.inf).scatter(1, belief.argmax(1, keepdim=True), 0.0)
    for filters, table in ((Filters(temperature=0.0), best), (Filters(top_k=1), best), (Filters(temperature=0.5), 2 * belief)):
        guided = filters(guidance(denoiser))
        assert isinstance(guided.process, ClassifierSteps)
        pred = guided.predictor(batch)(xt, at)
        assert isinstance(pred, Asked)
        by_hand = Asked(TablePrediction(table.view(*xt.shape, -1)), pred.classes, pred.target)
        found, exact = (guided.process.log_posterior(each, xt, at, before, everywhere).exp() for each in (pred, by_hand))
        torch.testing.assert_close(found, exact)


def test_exact_classifiers_agree_with_the_law_they_are_made_from() -> None:
    """The check of the check: p(y | z) at noise 0 is p(y | x), and at noise 1 the prior of the class."""
    for process in PROCESSES:
        knows, law = Knows(process, joint(2)), joint(2)
        z, everywhere = torch.tensor([[0, 2]]), torch.ones(1, 2, dtype=torch.bool)
        clean = knows.log_prob(z, torch.zeros(1, dtype=torch.float64), everywhere).exp()[0]
        torch.testing.assert_close(clean, law[:, 0, 2] / law[:, 0, 2].sum())
        torch.testing.assert_close(noising(process, torch.tensor([0.3])).sum(2), torch.ones(1, 3, dtype=torch.float64))


def test_what_cannot_be_guided_is_refused_in_one_line() -> None:
    model, guide = network(Masked(), False), classifier(Masked())
    with pytest.raises(ValueError, match=r"^gamma is -0.5, expected 0 \(not guided\) or more$"):
        FirstOrder(guide, -0.5)
    with pytest.raises(ValueError, match=r"^the source is \(4, 0\), expected one label per row for the classifier$"):
        sampled(FirstOrder(guide)(model), labelled()._replace(source=torch.zeros(4, 0, dtype=torch.long)))
    with pytest.raises(ValueError, match=r"must be the outermost but for Filters: put other guidance inside of it$"):
        sampled(GuidedDenoiser(FirstOrder(guide)(model), MostProbable), labelled())
    asked = FirstOrder(guide)(model).predictor(labelled())(labelled().tokens, torch.ones(4))
    with pytest.raises(ValueError, match="this sampler draws clean tokens by itself: sample with Ancestral"):
        asked.draw(labelled().target, Rng(0, 0, labelled().sample_id))
    with pytest.raises(ValueError, match="FirstHitting samples a Masked process and the model's is ClassifierSteps"):
        FirstHitting().check(FirstOrder(guide)(model))
