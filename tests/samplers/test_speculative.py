import itertools
from dataclasses import dataclass, replace
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.models.tiny import EOS, PAD, TEXT, VOCAB, autoregressive, diffusion, trunk
from tests.samplers.test_autoregressive import continued
from textdiff.batch import Batch
from textdiff.guidance.base import Guidance
from textdiff.guidance.filters import Filters
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.prediction import Prediction, TablePrediction
from textdiff.processes.base import Denoiser
from textdiff.processes.block import Block
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.blockwise import Blockwise
from textdiff.samplers.confidence import Greedy, Threshold
from textdiff.samplers.drafting import AnyOrder, Drafting, LeftToRightChunks, Redrawn
from textdiff.samplers.first_hitting import FirstHitting
from textdiff.samplers.rates import Euler
from textdiff.samplers.speculative import Adaptive, DraftLength, Round, Speculative
from textdiff.vocab import Vocab

ZERO = Filters(temperature=0.0)
TARGET, DRAFTER = autoregressive(seed=3), diffusion(seed=1)


def last(sampler: Speculative, target: Denoiser, drafter: Denoiser, batch: Batch, seed: int = 0) -> Round:
    *_, step = sampler.rounds(target, drafter, batch, Rng(seed, 0, batch.sample_id))
    return step


def plain(batch: Batch, eos_id: int = -1, target: Denoiser = TARGET) -> tuple[Tensor, Tensor]:
    """Greedy decoding without a drafter, and the calls of each row."""
    *_, canvas = Autoregressive(eos_id=eos_id).trajectory(ZERO(target), batch, Rng(0, 0, batch.sample_id))
    return canvas.x, canvas.nfe


@dataclass(frozen=True)
class Echo:
    """The target as a drafter: asked for one token after the other, it believes what the target does, but errs at some positions."""

    model: AutoregressiveLM
    errs: tuple[int, ...] = ()
    process = Masked(mask_id=8)

    def predictor(self, batch: Batch) -> "EchoPredictor":
        return EchoPredictor(self, batch)

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.tokens, batch.target

    def decode(self, x0: Tensor) -> Tensor:
        return x0


@dataclass(frozen=True)
class EchoPredictor:
    echo: Echo
    batch: Batch

    def __call__(self, xt: Tensor, t: Tensor, previous: Prediction | None = None) -> TablePrediction:
        batch = Batch.of(xt, attend=self.batch.attend)
        table = self.echo.model.predictor(batch)(xt, t).logits()
        for place in self.echo.errs:
            if place < table.shape[1]:
                table[:, place] = -table[:, place]
        return TablePrediction(table.masked_fill(torch.arange(VOCAB.size) >= TEXT, -torch.inf))

    def rows(self, index: Tensor) -> "EchoPredictor":
        return replace(self, batch=self.batch.rows(index))


def prompts(rows: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 7, (rows,), generator=generator).tolist()
    return [torch.randint(0, 6, (n,), generator=generator).tolist() for n in lengths]


@pytest.mark.parametrize("eos_id", [-1, EOS])
@pytest.mark.parametrize("length", [DraftLength(1), DraftLength(3), DraftLength(5), Adaptive(8)], ids=str)
@pytest.mark.parametrize(
    ("drafting", "drafter"),
    [
        (LeftToRightChunks(), DRAFTER),
        (LeftToRightChunks(2), Echo(TARGET, errs=(4, 9, 11))),
        (LeftToRightChunks(5), Echo(TARGET, errs=(6, 10))),
        (AnyOrder(Greedy(2)), Echo(TARGET, errs=(5, 13))),
        (AnyOrder(Threshold()), DRAFTER),
        (Redrawn(Euler(steps=2)), diffusion(process=Uniform())),
        (AnyOrder(Blockwise(Greedy(steps=1))), diffusion(process=Block(Masked(), size=2))),
    ],
    ids=lambda part: str(part) if isinstance(part, Drafting) else "",
)
def test_at_temperature_0_it_writes_what_the_target_alone_does(
    drafting: Drafting, drafter: Denoiser, length: DraftLength, eos_id: int
) -> None:
    """Ragged rows, 13 new tokens: no multiple of a draft and the token after it."""
    batch = continued(prompts(12), 13)
    expected, calls = plain(batch, eos_id)
    for guided in (drafter, ZERO(drafter)):
        found = last(Speculative(drafting, length, eos_id), ZERO(TARGET), guided, batch)
        assert torch.equal(found.canvas.x, expected)
        assert bool(found.canvas.settled.all())
        assert torch.equal(found.counts.emitted, calls)
        assert torch.equal(found.counts.passes + found.counts.accepted.sum(1), calls + _cut(found, eos_id))


def _cut(found: Round, eos_id: int) -> Tensor:
    """How many accepted tokens, and the token after them, an end token cut off, (B,): what is written falls short by so many."""
    counts = found.counts
    short = counts.passes + counts.accepted.sum(1) - counts.emitted
    assert bool((short >= 0).all())
    assert eos_id >= 0 or not bool(short.any())
    return short


def test_a_drafter_that_knows_the_target_passes_every_test() -> None:
    batch = continued(prompts(20), 14)
    found = last(Speculative(LeftToRightChunks(4), DraftLength(4)), TARGET, Echo(TARGET), batch)
    assert found.counts.passes.tolist() == [3] * 20  # 5 + 5 + 4 tokens
    assert torch.equal(found.counts.accepted, found.counts.tested)
    assert found.counts.tested.sum(0).tolist() == [60, 60, 60, 40]
    assert found.counts.drafter_calls.tolist() == [4 + 4 + 3] * 20


def test_an_end_token_inside_a_draft_ends_the_row_there() -> None:
    batch = continued([[0, EOS, 3], [4, 2], [0], [5, 5, 1, 3]] * 3, 12)
    expected, calls = plain(batch, EOS)
    found = last(Speculative(LeftToRightChunks(12), DraftLength(12), EOS), ZERO(TARGET), ZERO(Echo(TARGET)), batch)
    assert torch.equal(found.canvas.x, expected)
    assert bool((calls < 12).any())
    assert found.counts.passes.tolist() == [1] * 12
    assert torch.equal(found.counts.emitted, calls)


def filtered_law(target: Denoiser, states: int, new: int) -> Tensor:
    """The law of `new` tokens after id 0, by enumeration: the chain rule over all of them, (states ** new,)."""
    rows = torch.tensor([[0, *rest] for rest in itertools.product(range(states), repeat=new)])
    batch = Batch.of(rows)
    where = torch.ones_like(rows, dtype=torch.bool)
    table = target.predictor(batch)(rows, batch.sample_id).logits(where).view(len(rows), new + 1, -1).log_softmax(-1)
    return table[:, 1:].gather(2, rows[:, 1:, None]).sum((1, 2)).exp().detach()


@pytest.mark.parametrize(
    ("drafting", "filters"),
    [
        (LeftToRightChunks(), Filters()),
        (LeftToRightChunks(2), Filters(temperature=0.6, top_k=4, top_p=0.9)),
        (AnyOrder(FirstHitting()), Filters(temperature=0.6, top_k=3)),
    ],
    ids=str,
)
def test_the_law_of_three_tokens_is_the_targets(drafting: Drafting, filters: Guidance) -> None:
    """The drafter has one more id, [MASK], and the last of the three tokens comes with a second round in most rows."""
    small = trunk(width=8, layers=1)
    target = filters(autoregressive(Vocab(size=4, tokens=4), seed=4, backbone=small))
    drafter = Filters(temperature=1.3)(diffusion(Vocab(size=5, tokens=5, mask_id=4), seed=2, backbone=small))
    n = 100_000
    batch = Batch.of(torch.zeros(n, 4, dtype=torch.long), target=(torch.arange(4) > 0).expand(n, 4))
    samples = Speculative(drafting, DraftLength(2)).sample(target, batch, Rng(0, 0, batch.sample_id), drafter)
    code = (samples[:, 1:] * torch.tensor([16, 4, 1])).sum(1)
    probability = filtered_law(target, 4, 3)
    count, expected = torch.bincount(code, minlength=64), probability * n
    possible = expected > 0
    assert bool((count[~possible] == 0).all())
    assert float(expected[possible].min()) > 5
    chi_square = float(((count - expected)[possible] ** 2 / expected[possible]).sum())
    freedom = int(possible.sum()) - 1
    assert chi_square < freedom + 3.1 * (2 * freedom) ** 0.5 + 6  # exceeded less than once in a thousand


@pytest.mark.parametrize("drafting", [AnyOrder(Greedy(2)), LeftToRightChunks(), LeftToRightChunks(3)], ids=str)
def test_a_row_alone_is_the_row_in_a_ragged_batch(drafting: Drafting) -> None:
    texts, new, sampler = prompts(6), [11, 2, 7, 1, 11, 3], Speculative(drafting, Adaptive(6), EOS)
    together = continued(texts, new)
    found = last(sampler, TARGET, DRAFTER, together, seed=5)
    for row, text in enumerate(texts):
        single = continued([text], new[row])._replace(sample_id=torch.tensor([row]))
        alone = last(sampler, TARGET, DRAFTER, single, seed=5)
        assert torch.equal(alone.canvas.x[0], found.canvas.x[row, : len(text) + new[row]])
        for one, many in zip(alone.counts, found.counts, strict=True):
            assert torch.equal(one[0], many[row])


@pytest.mark.parametrize(("sizes", "new"), [([18, 2], [1, 17]), ([12, 2], [2, 12])])
@pytest.mark.parametrize("longest", [2, 8])
def test_the_longest_prompt_and_the_longest_draft_may_be_of_different_rows(sizes: list[int], new: list[int], longest: int) -> None:
    batch = continued([[4 + i % 5 for i in range(size)] for size in sizes], new)
    found = last(Speculative(LeftToRightChunks(), DraftLength(longest)), ZERO(TARGET), DRAFTER, batch)
    assert torch.equal(found.canvas.x, plain(batch)[0])


def test_padding_on_the_left_is_refused() -> None:
    batch = continued([[0, 3], [1, 2]], 3)
    batch.attend[0, 0] = False
    with pytest.raises(ValueError, match="rows are padded on the left, which a key-value cache would read as text: pad them on the right"):
        last(Speculative(), TARGET, DRAFTER, batch)


def test_what_stands_between_targets_is_read_and_stays() -> None:
    batch = continued(prompts(8), 12)
    given = torch.zeros_like(batch.target)
    given[:, [7, 8, 11]] = True
    batch = batch._replace(tokens=batch.tokens.masked_fill(given & batch.target, 2), target=batch.target & ~given)
    expected, _ = plain(batch)
    for drafting in (LeftToRightChunks(), LeftToRightChunks(3), AnyOrder(Greedy(2))):
        found = last(Speculative(drafting, DraftLength(4)), ZERO(TARGET), Echo(TARGET), batch)
        assert torch.equal(found.canvas.x, expected)
        assert torch.equal(found.counts.emitted, batch.target.sum(1))


def test_rows_without_targets_cost_nothing() -> None:
    batch = continued([[0, 3], [1, 2, 4]], 5)
    batch.target[1] = False
    found = last(Speculative(), TARGET, DRAFTER, batch)
    assert torch.equal(found.canvas.x[1], batch.tokens[1])
    assert (int(found.counts.passes[1]), int(found.counts.drafter_calls[1]), int(found.counts.emitted[1])) == (0, 0, 0)


def test_settled_tokens_never_change_and_a_canvas_is_never_written_to() -> None:
    batch = continued(prompts(5), 9)
    steps = list(Speculative(length=DraftLength(3)).rounds(TARGET, DRAFTER, batch, Rng(0, 0, batch.sample_id)))
    final, written = steps[-1].canvas.x, [int(step.counts.emitted.sum()) for step in steps]
    for step in steps:
        assert torch.equal(step.canvas.x[step.canvas.settled], final[step.canvas.settled])
        assert torch.equal(step.canvas.x[~step.canvas.settled], batch.tokens[~step.canvas.settled])
    assert written == sorted(written)
    assert int(steps[0].counts.passes.sum()) == 0


def test_the_draft_is_as_long_as_its_whole_is_worth() -> None:
    adaptive = Adaptive(longest=16, worth=0.3)
    accepted, tested = torch.tensor([[0.0, 0.0], [10.0, 10.0], [0.0, 10.0], [5.0, 10.0]], dtype=torch.float64).unbind(1)
    rates = ((accepted + 4) / (tested + 5)).tolist()
    for rate, size in zip(rates, adaptive(accepted, tested).tolist(), strict=True):
        assert 1 <= size <= 16
        assert size == 1 or rate**size >= 0.3
        assert size == 16 or rate ** (size + 1) < 0.3


def test_drafts_grow_with_a_drafter_that_passes_and_shrink_with_one_that_does_not() -> None:
    """Of one chunk per token, as many calls as tokens are drafted."""

    def drafted(drafter: Denoiser) -> list[int]:
        batch = continued([[0, 3]], 29)
        steps = Speculative(LeftToRightChunks(16), Adaptive(16)).rounds(TARGET, drafter, batch, Rng(0, 0, batch.sample_id))
        calls = [int(step.counts.drafter_calls) for step in steps]
        return [after - before for before, after in pairwise(calls)]

    knows, errs = drafted(Echo(TARGET)), drafted(Echo(TARGET, errs=tuple(range(32))))
    assert knows[0] == errs[0]
    assert knows[1] > knows[0]
    assert errs[4] < errs[0]


def test_ids_that_are_not_text_are_never_written() -> None:
    batch = continued([[0]] * 200, 10)
    samples = Speculative().sample(TARGET, batch, Rng(0, 0, batch.sample_id), DRAFTER)
    assert int(samples[batch.target].max()) < TEXT
    assert bool((samples[~batch.attend] == PAD).all())


def test_what_does_not_fit_is_refused() -> None:
    batch = continued([[0]], 4)
    rng = Rng(0, 0, batch.sample_id)
    with pytest.raises(ValueError, match="needs a second model that drafts: give it as drafter"):
        Speculative().sample(TARGET, batch, rng)
    with pytest.raises(ValueError, match="Speculative samples a LeftToRight process and the model's is Masked"):
        Speculative().sample(DRAFTER, batch, rng, DRAFTER)
    with pytest.raises(ValueError, match="drafts with noise over the tokens of whole rows and the drafter's is LeftToRight"):
        Speculative().sample(TARGET, batch, rng, TARGET)
    with pytest.raises(ValueError, match="begin each row with a prompt or a BOS token"):
        Speculative().sample(TARGET, batch._replace(target=torch.ones_like(batch.target)), rng, DRAFTER)
    with pytest.raises(ValueError, match="draft length is 0, expected 1 or more"):
        DraftLength(0)
    with pytest.raises(ValueError, match="worth is 1, expected a chance"):
        Adaptive(worth=1)
