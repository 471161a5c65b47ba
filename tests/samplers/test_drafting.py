"""The law of three tokens after one round of drafting and testing, by enumeration: a denoiser whose beliefs are quarters, drawn with every
combination of the uniform numbers 1/8, 3/8, 5/8, 7/8, and every outcome of the test with the chance that `verdict` gives it.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from textdiff.batch import Batch
from textdiff.guidance.filters import Filters
from textdiff.prediction import Prediction, TablePrediction
from textdiff.processes.base import Denoiser, TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.base import Canvas, Sampler
from textdiff.samplers.blockwise import Blockwise
from textdiff.samplers.confidence import Greedy, Threshold
from textdiff.samplers.drafting import AnyOrder, FromText, LeftToRightChunks, Match, Redrawn, Rule, Spec
from textdiff.samplers.speculative import verdict
from textdiff.vocab import Vocab

MASK = 3
VOCAB = Vocab(size=4, tokens=4, mask_id=MASK)
QUARTERS = torch.tensor(sorted({p for q in ((1, 1, 2), (0, 1, 3), (0, 2, 2)) for p in itertools.permutations(q)})) / 4
_generator = torch.Generator().manual_seed(9)
BELIEFS = QUARTERS[torch.randint(len(QUARTERS), (4, 4, 4, 3), generator=_generator)].double()  # of three positions given what they hold
TARGET = [torch.rand(*[3] * n, 3, dtype=torch.float64, generator=_generator) + 0.05 for n in range(4)]
TARGET = [table / table.sum(-1, keepdim=True) for table in TARGET]  # of each token given those before it


@dataclass(frozen=True)
class Tabled:
    """A denoiser of a first token, which is given, and three that are not."""

    process: TokenProcess

    def predictor(self, batch: Batch) -> "Tabled":
        return self

    def rows(self, index: Tensor) -> "Tabled":
        return self

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        belief = BELIEFS[xt[:, 1], xt[:, 2], xt[:, 3]]
        table = torch.zeros(len(xt), 4, 4, dtype=torch.float64)
        table[:, 1:, :3] = belief
        return TablePrediction(table.log())

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        return x0


MASKED = Tabled(Masked().bind(VOCAB))
UNIFORM = Tabled(Uniform().bind(VOCAB))
EIGHTHS = torch.tensor([1, 3, 5, 7], dtype=torch.float64) / 8


class Grid(Rng):
    """Numbers `free` (B, streams, 3) of the three tokens: those of `draw(k)`, whatever is drawn from it further, and last its own."""

    def __init__(self, free: Tensor, call: int = -1) -> None:
        self.free, self.call = free, call
        self.key = torch.arange(len(free))

    def rows(self, index: Tensor) -> "Grid":
        return Grid(self.free[index], self.call)

    def draw(self, k: int) -> "Grid":
        return Grid(self.free, min(k, self.free.shape[1] - 1) if self.call < 0 else self.call)

    def uniform(self, name: str, shape: tuple[int, ...]) -> Tensor:
        return torch.cat([torch.full((len(self.free), 1), 0.5, dtype=torch.float64), self.free[:, self.call]], 1)


def grid(calls: int) -> Grid:
    return Grid(torch.cartesian_prod(*[EIGHTHS] * (3 * calls)).view(-1, calls, 3))


def blank(rows: int) -> Batch:
    tokens = torch.tensor([0, MASK, MASK, MASK]).repeat(rows, 1)
    return Batch.of(tokens, target=(torch.arange(4) > 0).expand(rows, 4))


def drafted(drafting: FromText, denoiser: Denoiser, calls: int = 1) -> tuple[Tensor, Tensor | None]:
    """Every draft, equally likely: tokens (N, 3), and their laws (N, 3, 3) if they are known."""
    rng = grid(calls)
    draft = drafting(denoiser, blank(len(rng.free)), rng)
    law = None if draft.law is None else draft.law.view(-1, 3, draft.law.shape[-1])[..., :3]
    return draft.tokens[:, 1:], law


def after_a_round(rule: Rule, tokens: Tensor, q: Tensor | None) -> tuple[Tensor, float]:
    """The law of three tokens, (3, 3, 3), and how many drafted ones pass on average."""
    n = len(tokens)
    prefixes = [tokens[:, :i].unbind(1) for i in range(4)]
    p = torch.stack([TARGET[i][prefix] if i else TARGET[0].expand(n, 3) for i, prefix in enumerate(prefixes)], 1)
    everywhere = torch.ones(n, 3, dtype=torch.bool)
    law, passed = torch.zeros(3, 3, 3, dtype=torch.float64), 0.0
    for accepted in range(4):
        uniform = torch.where(torch.arange(3) < accepted, -1.0, 2.0).double().expand(n, 3)
        found = verdict(rule, p, tokens, q, everywhere, ~everywhere, uniform)
        assert bool((found.accepted == accepted).all())
        weight = found.chance[:, :accepted].prod(1) * (1 - found.chance[:, accepted] if accepted < 3 else 1) / n
        emitted = weight[:, None] * found.law / found.law.sum(1, keepdim=True).clamp_min(1e-300)
        passed += accepted * float(weight.sum())
        if accepted == 3:  # nothing is refused: the fourth is the target's
            torch.testing.assert_close(found.law, p[:, 3])
        for row in range(n):
            place: tuple[int, ...] = tuple(tokens[row, :accepted].tolist())
            if accepted == 3:
                law[place] += weight[row]
            elif accepted == 2:
                law[place] += emitted[row]
            elif accepted == 1:
                law[place] += emitted[row][:, None] * TARGET[2][place]
            else:
                law += emitted[row][:, None, None] * TARGET[1][:, :, None] * TARGET[2]
    return law, passed


def distance(rule: Rule, tokens: Tensor, q: Tensor | None) -> float:
    """Total variation between what comes out and the target's law."""
    truth = TARGET[0][:, None, None] * TARGET[1][:, :, None] * TARGET[2]
    law, _ = after_a_round(rule, tokens, q)
    assert float(law.sum()) == pytest.approx(1)
    return float((law - truth).abs().sum() / 2)


@dataclass(frozen=True)
class Hint(Sampler):
    """Any text: three tokens drawn from what the denoiser believes of [MASK]s, each from what is there by then."""

    requires = TokenProcess

    def trajectory(self, denoiser: Denoiser, batch: Batch, rng: Rng) -> Iterator[Canvas]:
        draft = AnyOrder(Greedy(steps=3))(MASKED, batch, rng)
        yield Canvas(draft.tokens, 0.0, draft.calls, torch.ones_like(batch.target))


@pytest.mark.parametrize(
    ("drafting", "denoiser", "calls"),
    [
        (LeftToRightChunks(), MASKED, 1),
        (LeftToRightChunks(steps=2), MASKED, 1),
        (LeftToRightChunks(steps=3), MASKED, 1),
        (LeftToRightChunks(steps=2), UNIFORM, 2),
        (Redrawn(Hint()), UNIFORM, 2),
        (AnyOrder(Greedy(steps=3)), MASKED, 1),
        (AnyOrder(Threshold(tau=0.6)), MASKED, 1),
        (AnyOrder(Ancestral(steps=2)), MASKED, 1),
    ],
    ids=str,
)
def test_what_a_drafting_is_tested_by_leaves_the_law_alone(drafting: FromText, denoiser: Denoiser, calls: int) -> None:
    tokens, q = drafted(drafting, denoiser, calls)
    assert (q is None) == (drafting.rule == Match())
    assert distance(drafting.rule, tokens, q) < 1e-12
    assert distance(Match(), tokens, None) < 1e-12


def test_the_rule_of_known_laws_accepts_more() -> None:
    tokens, q = drafted(LeftToRightChunks(), MASKED)
    assert after_a_round(Spec(), tokens, q)[1] > 1.2 * after_a_round(Match(), tokens, None)[1]


@pytest.mark.parametrize("drafting", [LeftToRightChunks(), LeftToRightChunks(steps=2)], ids=str)
def test_a_draft_of_likeliest_tokens_has_no_law_to_write_down(drafting: FromText) -> None:
    """It is tested as by the law that has all on its tokens, and that leaves the target's law alone."""
    tokens, q = drafted(drafting, Filters(0.0)(MASKED))
    assert q is None
    assert distance(Spec(), tokens, None) < 1e-12
    written, passed = after_a_round(Spec(), tokens, F.one_hot(tokens, 3).double())
    torch.testing.assert_close(after_a_round(Spec(), tokens, None)[0], written)
    assert after_a_round(Spec(), tokens, None)[1] == pytest.approx(passed)


def one_by_one(choose: Callable[[Tensor, Tensor], Tensor], chance: float = 1.0) -> tuple[Tensor, Tensor]:
    """Drafts written one token at a time where `choose(belief (3, 3), tokens drawn (3,))` is greatest, and the beliefs reported as their
    laws; `chance` is a power that sharpens the law drawn from without being told."""
    tokens, laws = [], []
    for free in grid(1).free[:, 0]:
        x, law = torch.full((3,), MASK), torch.zeros(3, 3, dtype=torch.float64)
        while bool((x == MASK).any()):
            belief = BELIEFS[tuple(x.tolist())]
            sharp = belief**chance / (belief**chance).sum(-1, keepdim=True)
            drawn = (sharp.cumsum(-1) <= free[:, None]).sum(-1)
            place = int(choose(belief, drawn).masked_fill(x != MASK, -1.0).argmax())
            x[place], law[place] = drawn[place], belief[place]
        tokens.append(x)
        laws.append(law)
    return torch.stack(tokens), torch.stack(laws)


IN_ORDER = torch.tensor([3.0, 2.0, 1.0])
BIASED: dict[str, Callable[[], tuple[Tensor, Tensor]]] = {
    "right to left": lambda: one_by_one(lambda belief, drawn: IN_ORDER.flip(0)),
    "middle first": lambda: one_by_one(lambda belief, drawn: IN_ORDER[[1, 0, 2]]),
    "most certain first": lambda: one_by_one(lambda belief, drawn: belief.amax(1)),
    "most probable draw first": lambda: one_by_one(lambda belief, drawn: belief.gather(1, drawn[:, None])[:, 0]),
    "most probable tokens, said to be drawn": lambda: one_by_one(lambda belief, drawn: IN_ORDER, chance=60.0),
    "sharpened in secret": lambda: one_by_one(lambda belief, drawn: IN_ORDER, chance=2.0),
}


@pytest.mark.parametrize("name", BIASED)
def test_laws_that_are_not_those_of_the_draft_bias_the_rule_that_reads_them(name: str) -> None:
    tokens, q = BIASED[name]()
    assert distance(Spec(), tokens, q) > 1e-3
    assert distance(Match(), tokens, None) < 1e-12


def test_one_by_one_in_order_is_three_chunks() -> None:
    tokens, q = one_by_one(lambda belief, drawn: IN_ORDER)
    assert distance(Spec(), tokens, q) < 1e-12


def test_the_rule_follows_from_how_tokens_are_written() -> None:
    for steps in (1, 4):
        assert LeftToRightChunks(steps).rule == Spec()
    assert Redrawn(Hint()).rule == Spec()
    for sampler in (Greedy(steps=4), Threshold(), Ancestral(steps=3)):
        assert AnyOrder(sampler).rule == Match()
        assert type(sampler).__name__ in AnyOrder(sampler).reason
    assert "at once" in LeftToRightChunks().reason
    assert "left to right" in LeftToRightChunks(2).reason


def test_a_point_mass_is_matched_by_either_rule() -> None:
    tokens = torch.tensor([[2, 0, 1]])
    p = torch.stack([TARGET[i][tuple(tokens[0, :i])] for i in range(4)])[None]
    q = torch.nn.functional.one_hot(tokens, 3).double()
    everywhere, uniform = torch.ones(1, 3, dtype=torch.bool), torch.tensor([[-1.0, 2.0, 2.0]], dtype=torch.float64)
    one, other = (verdict(rule, p, tokens, q, everywhere, ~everywhere, uniform) for rule in (Spec(), Match()))
    torch.testing.assert_close(one.chance, other.chance)
    torch.testing.assert_close(one.law, other.law)


def test_rows_of_fewer_targets_than_chunks_are_drafted_whole() -> None:
    batch = blank(3)
    batch = batch._replace(target=batch.target & (torch.arange(4) <= torch.tensor([[1], [2], [3]])))
    draft = LeftToRightChunks(steps=3)(MASKED, batch, Grid(torch.full((3, 1, 3), 0.4, dtype=torch.float64)))
    assert draft.calls.tolist() == [1, 2, 3]
    assert torch.equal(draft.tokens == MASK, ~batch.target & (torch.arange(4) > 0))
    assert draft.law is not None
    torch.testing.assert_close(draft.law.sum(1), torch.ones(6, dtype=torch.float64))


def test_drafters_that_cannot_draft_so_are_refused() -> None:
    block = Tabled(Block(inner=Masked(), size=2).bind(VOCAB))
    with pytest.raises(ValueError, match=r"whole rows and the drafter's is Block: use AnyOrder\(sampler\)"):
        LeftToRightChunks().check(block)
    AnyOrder(Blockwise()).check(block)
    with pytest.raises(ValueError, match="about which a masked drafter says nothing"):
        Redrawn(Ancestral()).check(MASKED)
    with pytest.raises(ValueError, match="Threshold samples a Masked process and the model's is Uniform"):
        AnyOrder(Threshold()).check(UNIFORM)
    with pytest.raises(ValueError, match="steps is 0"):
        LeftToRightChunks(0)
