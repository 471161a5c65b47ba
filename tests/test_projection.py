import pytest
import torch
from torch import Tensor

from textdiff import prediction, projection
from textdiff.prediction import HeadPrediction, TablePrediction
from textdiff.projection import Head, Terms, Tilt, linear_terms, pieces, terms_of

ROWS, LENGTH, WIDTH, VOCABULARY = 6, 5, 4, 17
BANNED = torch.tensor([3, 16])
EXACT = {"rtol": 1e-10, "atol": 1e-12}


@pytest.fixture(params=["whole", "chunked", "in pieces"])
def cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rows at once; seven at a time, projected again in the backward pass; three at a time inside one buffer."""
    if request.param == "chunked":
        for module in (prediction, projection):
            monkeypatch.setattr(module, "chunk_rows", lambda vocabulary, device: 7)
    if request.param == "in pieces":
        monkeypatch.setitem(projection._SCRATCH_BYTES, "cpu", 3 * 4 * VOCABULARY)


class Problem:
    """Random hidden states, head, tokens with repetitions and banned ones, tilts and odds; float64 with gradients."""

    def __init__(self, banned: Tensor | None, tilted: bool) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.inputs = [normal(*shape).requires_grad_() for shape in ((ROWS, LENGTH, WIDTH), (VOCABULARY, WIDTH), (VOCABULARY,))]
        self.hidden, self.weight, self.bias = self.inputs
        self.banned = banned
        self.tokens = torch.randint(4, 16, (ROWS, LENGTH, 2), generator=generator)
        self.tokens[0] = self.tokens[0, :, :1]  # the clean and the noisy token may be the same
        self.tilt = Tilt(self.tokens[..., 1], normal(ROWS, LENGTH)) if tilted else None
        self.odds = 3 * normal(ROWS, LENGTH)
        self.where = torch.rand(ROWS, LENGTH, generator=generator) < 0.7

    def ours(self, odds: Tensor | None, ids: Tensor | None) -> Terms:
        return HeadPrediction(self.hidden, Head(self.weight, self.bias, self.banned), self.tilt).terms(self.tokens, self.where, odds, ids)

    def table(self) -> Tensor:
        """The logits (N, V) that autograd sees, step by step."""
        logits = (self.hidden @ self.weight.T + self.bias)[self.where]
        if self.banned is not None:
            logits = logits.index_fill(-1, self.banned, -torch.inf)
        if self.tilt is None:
            return logits
        one_hot = torch.nn.functional.one_hot(self.tilt.tokens[self.where], VOCABULARY)
        return logits + one_hot * self.tilt.amount[self.where][:, None]

    def plain(self, odds: Tensor | None, ids: Tensor | None) -> tuple[Tensor, Tensor]:
        """Log-probabilities (N, 2) and the sum of log(1 + exp(odds) p) over `ids`, by the formula."""
        log_prob = self.table().log_softmax(-1)
        chosen = log_prob.exp() if ids is None else log_prob.exp()[:, ids]
        blended = torch.zeros(len(chosen)) if odds is None else (1 + odds[self.where][:, None].exp() * chosen).log().sum(-1)
        return log_prob.gather(-1, self.tokens[self.where]), blended.double()


def compare(problem: Problem, odds: Tensor | None, ids: Tensor | None) -> None:
    terms, (log_prob, blended) = problem.ours(odds, ids), problem.plain(odds, ids)
    torch.testing.assert_close(terms.log_prob, log_prob, **EXACT)
    torch.testing.assert_close(terms.blended, blended, **EXACT)
    generator = torch.Generator().manual_seed(1)
    first, second = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in (log_prob.shape, blended.shape))
    ours = torch.autograd.grad((terms.log_prob * first).sum() + (terms.blended * second).sum(), problem.inputs)
    theirs = torch.autograd.grad((log_prob * first).sum() + (blended * second).sum(), problem.inputs)
    for mine, plain in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, plain, **EXACT)


@pytest.mark.usefixtures("cut")
@pytest.mark.parametrize("tilted", [False, True], ids=["", "tilted"])
@pytest.mark.parametrize("banned", [None, BANNED], ids=["", "banned"])
@pytest.mark.parametrize("ids", [None, torch.tensor([0, 2, 3, 9, 15])], ids=["all", "chosen"])
def test_terms_and_their_gradients_are_those_of_autograd(banned: Tensor | None, tilted: bool, ids: Tensor | None) -> None:
    problem = Problem(banned, tilted)
    compare(problem, problem.odds, ids)
    compare(problem, None, None)


@pytest.mark.usefixtures("cut")
def test_each_term_has_its_own_gradient() -> None:
    """The logits asked for, the normaliser and the blend, one at a time."""
    problem = Problem(BANNED, tilted=True)
    ours = problem.ours(problem.odds, None)
    table = problem.table()
    theirs = terms_of(table, problem.tokens[problem.where], projection.Blend(problem.odds[problem.where]))
    for i in range(len(Terms._fields)):
        mine = torch.autograd.grad(problem.ours(problem.odds, None)[i].sum(), problem.inputs, allow_unused=True)
        plain = torch.autograd.grad(theirs[i].sum(), problem.inputs, retain_graph=True)
        torch.testing.assert_close(ours[i], theirs[i], **EXACT)
        for gradient, exact in zip(mine, plain, strict=True):
            torch.testing.assert_close(gradient, exact, **EXACT)


@pytest.mark.usefixtures("cut")
def test_without_gradients_the_terms_are_the_same() -> None:
    problem = Problem(BANNED, tilted=True)
    with torch.no_grad():
        without = problem.ours(problem.odds, None)
    for mine, plain in zip(without, problem.ours(problem.odds, None), strict=True):
        torch.testing.assert_close(mine, plain, **EXACT)


def test_a_table_gives_the_terms_of_its_logits() -> None:
    problem = Problem(None, tilted=False)
    logits = (problem.hidden @ problem.weight.T + problem.bias).detach()
    table = TablePrediction(logits).terms(problem.tokens, problem.where, problem.odds, torch.tensor([0, 9]))
    for mine, plain in zip(table, problem.ours(problem.odds, torch.tensor([0, 9])), strict=True):
        torch.testing.assert_close(mine, plain.detach(), **EXACT)


def test_a_token_that_cannot_be_predicted_has_no_gradient_and_makes_no_nan() -> None:
    """A noisy [MASK] is read too: its log-probability is -inf, and a softplus of it passes nothing back."""
    problem = Problem(BANNED, tilted=False)
    tokens = problem.tokens[problem.where].clone()
    tokens[:, 1] = 16
    terms = linear_terms(problem.hidden[problem.where], Head(problem.weight, problem.bias, BANNED), tokens)
    assert bool((terms.log_prob[:, 1] == -torch.inf).all())
    loss = torch.nn.functional.softplus(terms.log_prob[:, 1]).sum() - terms.log_prob[:, 0].sum()
    exact = -problem.table().log_softmax(-1).gather(-1, tokens[:, :1]).sum()
    for mine, plain in zip(torch.autograd.grad(loss, problem.inputs), torch.autograd.grad(exact, problem.inputs), strict=True):
        torch.testing.assert_close(mine, plain, **EXACT)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_low_precision_stays_near_float64(dtype: torch.dtype) -> None:
    exact, problem = Problem(BANNED, tilted=True), Problem(BANNED, tilted=True)
    problem.inputs = [value.detach().to(dtype).requires_grad_() for value in problem.inputs]
    problem.hidden, problem.weight, problem.bias = problem.inputs
    low, high = problem.ours(problem.odds, None), exact.ours(exact.odds, None)
    assert low.blended.dtype == torch.float32
    slack = 1e-4 if dtype == torch.float32 else 0.1
    assert float((low.blended.double() - high.blended).detach().abs().max()) < slack
    mine, plain = torch.autograd.grad(low.blended.sum(), problem.inputs), torch.autograd.grad(high.blended.sum(), exact.inputs)
    for ours, theirs in zip(mine, plain, strict=True):
        assert float((ours.double() - theirs).norm() / theirs.norm()) < slack


def test_pieces_cover_every_row_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(projection._SCRATCH_BYTES, "cpu", 3 * 4 * VOCABULARY)
    logits = torch.arange(8.0)[:, None].expand(8, VOCABULARY)
    found = [(rows.start, rows.stop, piece[:, 0].tolist()) for rows, piece in pieces(logits, first=10)]
    assert found == [(10, 13, [0.0, 1.0, 2.0]), (13, 16, [3.0, 4.0, 5.0]), (16, 18, [6.0, 7.0])]
