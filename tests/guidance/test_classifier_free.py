from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.guidance.laws import CLASSES, MASK, NAMES, PROCESSES, STATES, Bayes, joint, labels, noising
from tests.models.tiny import MASK as TINY_MASK
from tests.models.tiny import diffusion, lone, ragged, trunk
from tests.samplers.watched import Watched
from textdiff.batch import Batch
from textdiff.guidance.base import GuidedDenoiser, GuidedProcess, Unconditional
from textdiff.guidance.classifier_free import ClassifierFree, PromptMasked, Tempered
from textdiff.guidance.filters import Filters
from textdiff.models.discrete import DiscreteDiffusionLM
from textdiff.prediction import MostProbable, TablePrediction
from textdiff.processes.base import TokenProcess
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Sampler
from textdiff.samplers.confidence import Greedy
from textdiff.samplers.corrector import Gibbs
from textdiff.samplers.first_hitting import FirstHitting
from textdiff.samplers.rates import Euler
from textdiff.samplers.remasking import Psi, Rescaled

NETWORKS = [(Masked(), False), (Uniform(), True), (Hybrid(), True)]
OF_EACH = pytest.mark.parametrize(("process", "timed"), NETWORKS, ids=NAMES)
SAMPLER = Ancestral(steps=6)


def network(process: TokenProcess, timed: bool, label_dropout: float = 0.1) -> DiscreteDiffusionLM:
    return diffusion(process=process, backbone=trunk(labels=3, time_conditioning=timed), label_dropout=label_dropout)


def labelled() -> Batch:
    batch = ragged()
    return batch._replace(source=torch.tensor([[0], [2], [1], [2]]), source_attend=torch.ones(4, 1, dtype=torch.bool))


def sampled(denoiser: object, batch: Batch, sampler: Ancestral = SAMPLER) -> Tensor:
    return sampler.sample(denoiser, batch, Rng(0, 0, batch.sample_id))  # type: ignore[arg-type]


@OF_EACH
def test_gamma_zero_and_one_are_the_unconditional_and_the_conditional_model_token_by_token(process: TokenProcess, timed: bool) -> None:
    model, batch = network(process, timed), labelled()
    told, untold = sampled(model, batch), sampled(model, batch._replace(source_attend=torch.zeros(4, 1, dtype=torch.bool)))
    assert not torch.equal(told, untold)
    for gamma, expected in ((1.0, told), (0.0, untold)):
        watched = Watched(ClassifierFree(gamma)(model))
        assert torch.equal(sampled(watched, batch), expected)
        assert len(watched.calls) <= SAMPLER.steps


@OF_EACH
def test_gamma_above_one_asks_twice_and_differs_from_both(process: TokenProcess, timed: bool) -> None:
    watched, batch = Watched(network(process, timed)), labelled()
    guided = sampled(ClassifierFree(4.0)(watched), batch)
    assert len(watched.calls) == 2 * SAMPLER.steps or isinstance(process, Masked)
    assert len(watched.calls) % 2 == 0
    for gamma in (0.0, 1.0):
        assert not torch.equal(sampled(ClassifierFree(gamma)(network(process, timed)), batch), guided)


def posterior(process: TokenProcess, law: Tensor, z: Tensor, t: float, s: float) -> Tensor:
    """p(zs of each position | zt = z) for a joint law (3, 3) of two tokens by enumeration, (2, 4)."""
    at, before = (noising(process, 1 - process.alpha(torch.tensor([time], dtype=torch.float64)))[0] for time in (t, s))
    ratio = float(process.alpha(torch.tensor(t, dtype=torch.float64)) / process.alpha(torch.tensor(s, dtype=torch.float64)))
    noise_t, noise_s = (torch.tensor([*(kernel[(z + 1) % 3, z] for z in range(3)), kernel[0, MASK]]) for kernel in (at, before))
    transition = ratio * torch.eye(STATES + 1, dtype=torch.float64) + (noise_t - ratio * noise_s)  # q(zt | zs), row zs
    weight = law * at[:, z[0]][:, None] * at[:, z[1]][None]
    found = []
    for position in range(2):
        clean = weight.sum(1 - position)
        steps = before * transition[:, z[position]] / at[:, z[position]].clamp_min(1e-300)[:, None]  # q(zs | zt, x)
        found.append(clean @ steps / clean.sum())
    return torch.stack(found)


@pytest.mark.parametrize("process", PROCESSES[1:], ids=NAMES[1:])
@pytest.mark.parametrize("gamma", [0.4, 1.0, 2.5])
def test_posteriors_are_tempered_as_enumeration_says(process: TokenProcess, gamma: float) -> None:
    law, t, s = joint(2), 0.7, 0.45
    states = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    states = states if isinstance(process, Hybrid) else states[(states < 3).all(1)]
    batch = Batch.of(torch.zeros_like(states), source=torch.arange(len(states))[:, None] % CLASSES)
    times, before = (torch.full((len(states),), time, dtype=torch.float64) for time in (t, s))
    denoiser = ClassifierFree(gamma)(Bayes(process, law))
    found = torch.zeros(len(states), 2, 4, dtype=torch.float64)
    if gamma == 1:  # the model itself, whose posterior must be the enumerated one too
        pred = denoiser.predictor(batch)(states, times)
        found = process.log_posterior(pred, states, times, before, torch.ones_like(states, dtype=torch.bool)).exp().view(-1, 2, 4)
    else:
        guided = denoiser.process
        assert isinstance(guided, GuidedProcess)
        pred = denoiser.predictor(batch)(states, times)
        found = guided.log_posterior(pred, states, times, before, torch.ones_like(states, dtype=torch.bool)).exp().view(-1, 2, 4)
    for row, z in enumerate(states):
        conditional = posterior(process, law[row % CLASSES], z, t, s)
        without = posterior(process, law.sum(0), z, t, s)
        weight = conditional**gamma * torch.where(without > 0, without ** (1 - gamma), 0.0)
        torch.testing.assert_close(found[row], weight / weight.sum(1, keepdim=True), rtol=1e-9, atol=1e-12)


def test_under_masks_the_beliefs_are_tempered_and_the_rate_of_reveals_is_kept() -> None:
    process, law = PROCESSES[0], joint(2)
    xt = torch.tensor([[MASK, 1], [MASK, MASK]])
    batch = Batch.of(torch.zeros_like(xt), source=torch.tensor([[1], [0]]))
    denoiser = ClassifierFree(3.0)(Bayes(process, law))
    assert denoiser.process is process
    pred = denoiser.predictor(batch)(xt, torch.full((2,), 0.5))
    for row, conditional, without in ((0, law[1, :, 1], law[:, :, 1].sum(0)), (1, law[0].sum(1), law.sum(0).sum(1))):
        weight = (conditional / conditional.sum()) ** 3 * (without / without.sum()) ** -2
        where = torch.zeros_like(xt, dtype=torch.bool)
        where[row, 0] = True
        torch.testing.assert_close(pred.logits(where).softmax(-1)[0, :3], weight / weight.sum())
        torch.testing.assert_close(pred.log_prob(torch.zeros_like(xt), where), (weight / weight.sum()).log()[:1])


def test_draws_of_a_step_follow_the_guided_law() -> None:
    """Chi-square over 5,000 rows at one position; 16.3 is exceeded once in a thousand on 3 degrees of freedom."""
    rows, process = 5_000, PROCESSES[2]
    batch = labels(rows, 1)
    xt = torch.tensor([[MASK, 2]]).expand(rows, -1)
    denoiser = ClassifierFree(2.0)(Bayes(process, joint(2)))
    guided = denoiser.process
    assert isinstance(guided, GuidedProcess)
    t, s = torch.full((rows,), 0.8, dtype=torch.float64), torch.full((rows,), 0.5, dtype=torch.float64)
    pred = denoiser.predictor(batch)(xt, t)
    xs = guided.step(pred, xt, t, s, Rng(3, 0, batch.sample_id))
    where = torch.zeros_like(xt, dtype=torch.bool)
    for position in range(2):
        where.zero_()
        where[0, position] = True
        exact = guided.log_posterior(pred, xt, t, s, where).exp()[0]
        count = torch.bincount(xs[:, position], minlength=4)
        assert float(((count - rows * exact) ** 2 / (rows * exact)).sum()) < 16.3


@OF_EACH
def test_known_tokens_stay_no_mask_is_left_and_a_ragged_batch_is_its_rows(process: TokenProcess, timed: bool) -> None:
    model, batch = network(process, timed), labelled()
    together = sampled(ClassifierFree(3.0)(model), batch)
    assert torch.equal(together[~batch.target], batch.tokens[~batch.target])
    assert not bool((together[batch.target] == TINY_MASK).any())
    for row in range(4):
        single = lone(batch, row)
        alone = sampled(ClassifierFree(3.0)(model), single)
        assert torch.equal(alone[0], together[row, : alone.shape[1]])


@OF_EACH
def test_rows_that_hide_their_label_are_not_guided(process: TokenProcess, timed: bool) -> None:
    model, batch = network(process, timed), labelled()
    batch = batch._replace(source_attend=torch.tensor([[True], [False], [True], [False]]))
    strong, weak = sampled(ClassifierFree(5.0)(model), batch), sampled(ClassifierFree(0.2)(model), batch)
    assert torch.equal(strong[1::2], weak[1::2])
    assert not torch.equal(strong[::2], weak[::2])
    if isinstance(process, Masked):  # where the guided steps are drawn from the same numbers as the free ones
        assert torch.equal(strong[1::2], sampled(Unconditional(model), batch)[1::2])


FILTERS = [Filters(temperature=0.0), Filters(top_k=1), Filters(top_k=2), Filters(top_p=0.3), Filters(0.5, 3, 0.8)]


@OF_EACH
@pytest.mark.parametrize("filters", FILTERS, ids=lambda filters: f"{filters.temperature}-{filters.top_k}-{filters.top_p}")
def test_filters_keep_the_best_of_the_guided_belief(process: TokenProcess, timed: bool, filters: Filters) -> None:
    """The weighed belief about x0 behind filters is the filtered weighed belief, and a last step, to t = 0, draws from it."""
    batch, guidance = labelled(), ClassifierFree(3.0)
    denoiser = network(process, timed)
    xt = batch.tokens.masked_fill(batch.target, TINY_MASK) if isinstance(process, Masked) else batch.tokens
    t, s = torch.full((4,), 0.8, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    exact = filters.applied(guidance(denoiser).predictor(batch)(xt, t)).logits(batch.target).softmax(-1)
    guided = filters(guidance(denoiser))
    pred = guided.predictor(batch)(xt, t)
    torch.testing.assert_close(pred.logits(batch.target).softmax(-1), exact)
    assert isinstance(guided.process, TokenProcess)
    last = guided.process.log_posterior(pred, xt, t, s, batch.target).exp()
    assert bool((last[exact == 0] == 0).all())
    assert bool((last[exact > 0] > 0).all())


@OF_EACH
@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"top_k": 1}, {"top_k": 3}, {"top_p": 0.2}], ids=str)
def test_generate_takes_filters_and_guidance_together(process: TokenProcess, timed: bool, options: dict[str, Any]) -> None:
    """Tokens are written whatever is kept of either belief; no strength is no guidance, and another gives another text."""
    model, source = network(process, timed), torch.tensor([[0], [2]]).repeat(20, 1)

    def text(guidance: ClassifierFree | None) -> Tensor:
        words: dict[str, Any] = {"max_new_tokens": 8, "seed": 0, "source": source, "sampler": SAMPLER, **options}
        sequences = model.generate(torch.tensor([[3, 1]] * 40), guidance=guidance, **words).sequences
        assert isinstance(sequences, Tensor)
        return sequences

    guided = text(ClassifierFree(4.0))
    assert bool((guided != TINY_MASK).all())
    assert not torch.equal(guided, text(None))
    assert torch.equal(text(ClassifierFree(1.0)), text(None))


def test_temperature_zero_writes_the_best_token_of_the_guided_belief() -> None:
    """By hand: one mask at a time, each token is the argmax of gamma log p(x | y) + (1 - gamma) log p(x)."""
    process, law, gamma = PROCESSES[0], joint(2, seed=3), 4.0
    batch = labels(50, 0, 1)
    denoiser = Filters(temperature=0.0)(ClassifierFree(gamma)(Bayes(process, law)))
    for before, after in pairwise(FirstHitting().trajectory(denoiser, batch, Rng(0, 0, batch.sample_id))):
        for row, (x, y) in enumerate(zip(before.x.tolist(), after.x.tolist(), strict=True)):
            place = 0 if x[0] != y[0] else 1
            other, tables = x[1 - place], (law[row % CLASSES], law.sum(0))
            first, second = (table.sum(1 - place) if other == MASK else table.select(1 - place, other) for table in tables)
            assert y[place] == int((gamma * (first / first.sum()).log() + (1 - gamma) * (second / second.sum()).log()).argmax())


COUNTED: list[tuple[TokenProcess, Sampler]] = [
    *((Masked(), sampler) for sampler in (SAMPLER, FirstHitting(), Greedy(steps=3), Rescaled(steps=4), Psi(steps=4), Euler(steps=4))),
    *((Uniform(), sampler) for sampler in (SAMPLER, Psi(steps=4), Gibbs(steps=3))),
]


@pytest.mark.parametrize(("process", "sampler"), COUNTED, ids=lambda value: type(value).__name__)
def test_nfe_counts_the_calls_with_and_without_the_condition(process: TokenProcess, sampler: Sampler) -> None:
    batch, watched = lone(labelled(), 0), Watched(network(process, not isinstance(process, Masked)))
    denoiser = Filters(top_k=4)(ClassifierFree(2.0)(watched))
    *_, last = sampler.trajectory(denoiser, batch, Rng(0, 0, batch.sample_id))
    assert last.nfe.tolist() == [len(watched.calls)]
    assert len(watched.calls) > 2


def test_what_one_law_rules_out_stays_ruled_out() -> None:
    conditional, without = torch.tensor([[[0.0, 1.0, -torch.inf, -torch.inf]]]), torch.tensor([[[0.0, -torch.inf, 2.0, -torch.inf]]])
    for gamma in (0.5, 3.0):
        logits = Tempered(TablePrediction(conditional), TablePrediction(without), gamma, torch.ones(1, 1, dtype=torch.bool)).logits()
        assert logits.tolist() == [[[0.0, -torch.inf, -torch.inf, -torch.inf]]]


@pytest.mark.parametrize("process", [Masked(), Hybrid()], ids=["Masked", "Hybrid"])
def test_the_prompt_counts_gamma_times(process: TokenProcess) -> None:
    """Gamma 1 is the model; at 0 no prompt changes anything; above, LLaDA's un + (w + 1) (cond - un) at masks."""
    model, batch = network(process, isinstance(process, Hybrid)), ragged()
    assert PromptMasked(1.0)(model) is model
    other = batch._replace(tokens=torch.where(batch.target, batch.tokens, (batch.tokens + 1) % 6))
    blind, blind_too = (sampled(PromptMasked(0.0)(model), each) for each in (batch, other))
    assert torch.equal(blind[batch.target], blind_too[batch.target])
    assert not torch.equal(sampled(model, batch)[batch.target], sampled(model, other)[batch.target])
    xt, t, w = batch.tokens.masked_fill(batch.target, TINY_MASK), torch.full((4,), 0.9), 1.5
    pred = PromptMasked(w + 1)(model).predictor(batch)(xt, t)
    conditional = model.predictor(batch)(xt, t).logits(batch.target)
    hidden = xt.masked_fill(batch.attend, TINY_MASK)
    without = model.predictor(batch)(hidden, t).logits(batch.target)
    published = without + (w + 1) * (conditional - without)
    torch.testing.assert_close(pred.logits(batch.target).log_softmax(-1), published.nan_to_num(nan=-torch.inf).log_softmax(-1))
    together = sampled(PromptMasked(2.0)(model), batch)
    assert torch.equal(together[~batch.target], batch.tokens[~batch.target])
    for row in range(4):
        alone = sampled(PromptMasked(2.0)(model), lone(batch, row))
        assert torch.equal(alone[0], together[row, : alone.shape[1]])


def test_what_cannot_be_guided_is_refused_in_one_line() -> None:
    with pytest.raises(ValueError, match=r"^gamma is -1.0, expected 0"):
        ClassifierFree(-1.0)
    with pytest.raises(ValueError, match=r"^gamma is nan, expected 0"):
        PromptMasked(float("nan"))
    with pytest.raises(ValueError, match=r"^PromptMasked hides the prompt behind \[MASK\], which Uniform noise lacks"):
        PromptMasked(2.0)(network(Uniform(), True))
    model = network(Uniform(), True)
    with pytest.raises(ValueError, match=r"^guidance with gamma 2.0 needs a condition and the batch has no source"):
        sampled(ClassifierFree(2.0)(model), ragged())
    with pytest.raises(ValueError, match=r"must be the outermost but for Filters: put other guidance inside of it$"):
        sampled(GuidedDenoiser(ClassifierFree(2.0)(model), MostProbable), labelled())
    with pytest.raises(ValueError, match=r"have no token in common: apply filters to the guided denoiser$"):
        sampled(ClassifierFree(2.0)(Filters(top_k=1)(network(Masked(), False))), labelled())


@pytest.mark.parametrize("gamma", [0.0, 3.0])
def test_a_model_that_encodes_text_is_refused_in_one_line(gamma: float) -> None:
    model = diffusion(backbone=trunk(encoder_layers=1))
    batch = ragged()._replace(source=torch.ones(4, 2, dtype=torch.long), source_attend=torch.ones(4, 2, dtype=torch.bool))
    with pytest.raises(ValueError, match=r"^the source is \(4, 2\), expected one label per row: guidance takes no text to encode$"):
        sampled(ClassifierFree(gamma)(model), batch)
