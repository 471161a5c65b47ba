import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from textdiff import prediction, projection
from textdiff.prediction import HeadPrediction, MostProbable, TablePrediction, TransformedPrediction, draw_categorical
from textdiff.projection import Head
from textdiff.randomness import Rng

ROWS, LENGTH, WIDTH, VOCABULARY = 40, 10, 8, 33
BANNED = torch.tensor([3, 32])


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Makes a chunk 7 rows long, so that every test size needs many and an incomplete last one."""

    def chunk() -> None:
        for module in (prediction, projection):
            monkeypatch.setattr(module, "chunk_rows", lambda vocabulary, device: 7)

    return chunk


def problem(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias (with gradients), tokens and where."""
    generator = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((ROWS, LENGTH, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))
    )
    tokens = torch.randint(4, 32, (ROWS, LENGTH), generator=generator)
    return hidden, weight, bias, tokens, torch.rand(ROWS, LENGTH, generator=generator) < 0.6


def by_autograd(hidden: Tensor, head: Head, tokens: Tensor, where: Tensor) -> Tensor:
    """The same log-probabilities through a plain log-softmax of the whole table."""
    logits = hidden @ head.weight.T
    logits = logits if head.bias is None else logits + head.bias
    logits = logits if head.banned is None else logits.index_fill(-1, head.banned, -torch.inf)
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0][where]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("in_chunks", [False, True], ids=["whole", "chunked"])
@pytest.mark.parametrize(("biased", "banned"), [(True, BANNED), (False, None), (True, None), (False, BANNED)])
def test_log_prob_and_its_gradients_are_those_of_autograd(
    dtype: torch.dtype, in_chunks: bool, biased: bool, banned: Tensor | None, chunked: Callable[[], None]
) -> None:
    if in_chunks:
        chunked()
    hidden, weight, bias, tokens, where = problem(dtype)
    head = Head(weight, bias if biased else None, banned)
    inputs = [hidden, weight, bias] if biased else [hidden, weight]
    ours, theirs = HeadPrediction(hidden, head).log_prob(tokens, where), by_autograd(hidden, head, tokens, where)
    importance = torch.linspace(-1, 2, len(ours), dtype=dtype)
    tolerance = {"rtol": 1e-10, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 1e-4, "atol": 1e-5}
    torch.testing.assert_close(ours, theirs, **tolerance)
    pairs = zip(
        torch.autograd.grad((ours * importance).sum(), inputs), torch.autograd.grad((theirs * importance).sum(), inputs), strict=True
    )
    for mine, plain in pairs:
        torch.testing.assert_close(mine, plain, **tolerance)


def test_log_prob_passes_gradcheck(chunked: Callable[[], None]) -> None:
    """In chunks only: a kept buffer becomes its own gradient, so that one graph is differentiated once, and gradcheck does it twice."""
    chunked()
    hidden, weight, bias, tokens, where = problem()
    hidden, tokens, where = hidden[:2].detach().requires_grad_(), tokens[:2], where[:2]
    assert torch.autograd.gradcheck(lambda h, w, b: HeadPrediction(h, Head(w, b, BANNED)).log_prob(tokens, where), (hidden, weight, bias))


def test_a_second_backward_pass_through_a_used_buffer_is_an_error_and_not_a_wrong_gradient() -> None:
    hidden, weight, _, tokens, where = problem()
    total = HeadPrediction(hidden, Head(weight)).log_prob(tokens, where).sum()
    total.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        total.backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_projects_low_and_normalises_high(autocast: bool) -> None:
    """Under bfloat16 inputs or autocast the result is float32 and within bfloat16's rounding of the logits; so are the gradients."""
    hidden, weight, bias, tokens, where = problem(torch.float32 if autocast else torch.bfloat16)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        ours = HeadPrediction(hidden, Head(weight, bias, BANNED)).log_prob(tokens, where)
    exact = [value.detach().double().requires_grad_() for value in (hidden, weight, bias)]
    theirs = by_autograd(exact[0], Head(exact[1], exact[2], BANNED), tokens, where)
    assert ours.dtype == torch.float32
    assert float((ours.double() - theirs).detach().abs().max()) < 0.08  # logits up to 10 with 8 bits
    mine = torch.autograd.grad(ours.sum(), (hidden, weight, bias))
    for gradient, plain in zip(mine, torch.autograd.grad(theirs.sum(), exact), strict=True):
        assert float((gradient.double() - plain).norm() / plain.norm()) < 0.02


def test_asking_nowhere_costs_and_changes_nothing() -> None:
    hidden, weight, bias, tokens, where = problem()
    nowhere = torch.zeros_like(where)
    pred = HeadPrediction(hidden, Head(weight, bias))
    assert pred.log_prob(tokens, nowhere).shape == (0,)
    gradients = torch.autograd.grad(pred.log_prob(tokens, nowhere).sum(), (hidden, weight, bias))
    assert all(bool((gradient == 0).all()) for gradient in gradients)
    assert pred.draw(nowhere, Rng(0, 0, torch.arange(ROWS)))[0].shape == (0,)
    assert pred.statistics(nowhere).entropy.shape == (0,)


def test_a_table_and_a_head_with_the_same_logits_agree_everywhere(chunked: Callable[[], None]) -> None:
    chunked()
    hidden, weight, bias, tokens, where = problem()
    head = HeadPrediction(hidden.detach(), Head(weight.detach(), bias.detach(), BANNED))
    table, rng = TablePrediction(head.logits()), Rng(0, 0, torch.arange(ROWS))
    torch.testing.assert_close(head.logits(where), table.logits(where))
    torch.testing.assert_close(head.log_prob(tokens, where), table.log_prob(tokens, where))
    assert torch.equal(head.draw(where, rng)[0], table.draw(where, rng)[0])
    for ours, theirs in zip(head.statistics(where), table.statistics(where), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_statistics_are_those_of_the_probabilities() -> None:
    hidden, weight, bias, _, where = problem()
    pred = HeadPrediction(hidden.detach(), Head(weight.detach(), bias.detach(), BANNED))
    probability = pred.logits(where).softmax(-1)
    ordered = probability.sort(-1, descending=True)
    statistics = pred.statistics(where)
    assert torch.equal(statistics.argmax, ordered.indices[:, 0])
    torch.testing.assert_close(statistics.top1, ordered.values[:, 0])
    torch.testing.assert_close(statistics.top2, ordered.values[:, 1])
    torch.testing.assert_close(statistics.entropy, torch.special.entr(probability).sum(-1))


def test_statistics_of_a_certain_belief_and_of_a_single_id() -> None:
    certain = TablePrediction(torch.tensor([[[-torch.inf, 2.0, -torch.inf]], [[0.0, 0.0, -torch.inf]]]))
    statistics = certain.statistics(torch.ones(2, 1, dtype=torch.bool))
    assert statistics.top1.tolist() == [1, 0.5]
    assert statistics.top2.tolist() == [0, 0.5]
    assert statistics.entropy.tolist() == pytest.approx([0, math.log(2)])
    single = TablePrediction(torch.zeros(1, 1, 1)).statistics(torch.ones(1, 1, dtype=torch.bool))
    assert [float(column) for column in single] == [0, 1, 0, 0]


def test_a_transform_changes_what_is_drawn_and_not_how_sure_the_network_is() -> None:
    hidden, weight, bias, tokens, where = problem()
    inner = HeadPrediction(hidden.detach(), Head(weight.detach(), bias.detach()))
    cold = TransformedPrediction(inner, lambda logits: logits / 1e-6)
    rng = Rng(0, 0, torch.arange(ROWS))
    assert torch.equal(cold.draw(where, rng)[0], inner.statistics(where).argmax)
    assert torch.equal(cold.statistics(where).entropy, inner.statistics(where).entropy)
    torch.testing.assert_close(
        cold.log_prob(tokens, where), (inner.logits(where) / 1e-6).log_softmax(-1).gather(1, tokens[where][:, None])[:, 0]
    )


def test_draws_do_not_depend_on_what_else_is_asked() -> None:
    """Position l of a row draws with its own number, whichever other positions and rows are asked with it."""
    hidden, weight, bias, _, where = problem()
    pred, rng = HeadPrediction(hidden.detach(), Head(weight.detach(), bias.detach())), Rng(0, 0, torch.arange(ROWS))
    everywhere = torch.ones_like(where)
    all_tokens = pred.draw(everywhere, rng)[0].view(ROWS, LENGTH)
    assert torch.equal(pred.draw(where, rng)[0], all_tokens[where])
    index = torch.tensor([30, 2])
    part = HeadPrediction(hidden.detach()[index, :6], Head(weight.detach(), bias.detach()))
    assert torch.equal(part.draw(everywhere[:2, :6], rng.rows(index))[0].view(2, 6), all_tokens[index, :6])


def zipf(size: int) -> Tensor:
    weight = 1 / torch.arange(1, size + 1, dtype=torch.float64)
    return (weight / weight.sum())[torch.randperm(size, generator=torch.Generator().manual_seed(0))]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_draws_follow_a_zipf_law(dtype: torch.dtype) -> None:
    """Chi-square over 1,000 ids and 100,000 draws, and the log-probabilities that come with them."""
    law, draws = zipf(1000), 100_000
    uniform = Rng(0, 0, torch.arange(draws)).uniform("draw", ())
    counts = torch.zeros(1000)
    for part in uniform.split(2000):
        token, log_prob = draw_categorical(law.log().to(dtype).expand(len(part), -1), part)
        counts += torch.bincount(token, minlength=1000)
        torch.testing.assert_close(log_prob.double(), law.log()[token], rtol=0, atol=1e-5)
    chi_square = float(((counts - law * draws) ** 2 / (law * draws)).sum())
    assert abs(chi_square - 999) < 4.5 * math.sqrt(2 * 999)


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 600, 1000])
def test_every_id_is_drawn_on_exactly_its_interval_of_the_cumulative_law(size: int) -> None:
    """Inversion against a plain float64 cumulative sum, at the middle of each id's interval."""
    law = zipf(size)
    cumulative = law.cumsum(0)
    assert torch.equal(draw_categorical(law.log().expand(size, -1), cumulative - law / 2)[0], torch.arange(size))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_probability_of_1e_12_is_drawn_when_the_number_falls_into_it(dtype: torch.dtype) -> None:
    """The rare id sits at the start, between frequent ones and at the end: a float32 cumulative sum would never reach the last two."""
    for place in (0, 299, 599):
        logits = torch.zeros(600, dtype=dtype)
        logits[place] = math.log(1e-12 * 599)
        rare = float(logits.double().exp()[place]) / (599 + float(logits.double().exp()[place]))
        middle = torch.tensor([place / 599 * (1 - rare) + rare / 2], dtype=torch.float64)
        token, log_prob = draw_categorical(logits[None], middle)
        assert token.item() == place
        assert log_prob.item() == pytest.approx(math.log(1e-12), abs=1e-5)


@pytest.mark.parametrize("size", [3, 256, 300, 1000])
def test_impossible_ids_are_never_drawn(size: int) -> None:
    """-inf logits at both ends, around and across whole blocks, with numbers next to 0 and 1 and at every interval's edge."""
    generator = torch.Generator().manual_seed(size)
    edges = torch.tensor([2.0**-53, 1 - 2.0**-53, 0.5], dtype=torch.float64)
    for share in (0.0, 0.5, 0.99):
        for dtype in (torch.float32, torch.float64, torch.bfloat16):
            logits = torch.randn(size, generator=generator).masked_fill(torch.rand(size, generator=generator) < share, -torch.inf).to(dtype)
            logits[[0, -1]] = -torch.inf
            logits[1] = 0.0
            uniform = torch.cat([edges, logits.double().softmax(0).cumsum(0).clamp(2.0**-53, 1 - 2.0**-53)])
            token, log_prob = draw_categorical(logits.expand(len(uniform), -1), uniform)
            assert bool(logits[token].isfinite().all())
            assert bool(log_prob.isfinite().all())


@pytest.mark.parametrize("in_chunks", [False, True], ids=["whole", "chunked"])
def test_the_best_token_is_the_argmax_whatever_was_asked_before(in_chunks: bool, chunked: Callable[[], None]) -> None:
    hidden, weight, bias, _, where = problem()
    if in_chunks:
        chunked()
    head = Head(weight, bias, BANNED)
    expected = HeadPrediction(hidden, head).logits(where).argmax(-1)
    pred = HeadPrediction(hidden, head)
    assert torch.equal(pred.best(where), expected)
    assert torch.equal(pred.statistics(where).argmax, expected)
    assert torch.equal(pred.best(where), expected)
    assert torch.equal(MostProbable(pred).draw(where, Rng(0, 0, torch.arange(ROWS)))[0], expected)
