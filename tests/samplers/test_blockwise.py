from itertools import pairwise

import pytest
import torch
from torch import Tensor

from tests.contracts import check_reproduced
from tests.samplers.block_oracle import BlockOracle
from tests.samplers.watched import PAIR, assert_law, oracle, pair_law
from textdiff.batch import Batch, Example, collate
from textdiff.guidance.classifier_free import ClassifierFree
from textdiff.guidance.filters import Filters
from textdiff.oracle import Markov
from textdiff.processes.base import TokenProcess
from textdiff.processes.block import Block
from textdiff.processes.hybrid import Hybrid
from textdiff.processes.masked import Masked
from textdiff.processes.uniform import Uniform
from textdiff.randomness import Rng
from textdiff.samplers.ancestral import Ancestral
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.base import Canvas, Sampler
from textdiff.samplers.blockwise import Blockwise
from textdiff.samplers.confidence import EntropyBound, Greedy, RandomOrder, Threshold
from textdiff.samplers.first_hitting import FirstHitting

CHAIN = Markov(torch.tensor([0.6, 0.25, 0.1, 0.05], dtype=torch.float64), Markov.random(4, 7, seed=1).transition, length=7)
INNER = [Ancestral(steps=5), FirstHitting(), Greedy(steps=2), Threshold(tau=0.6), EntropyBound(gamma=0.5)]


def blocks(source: Markov = CHAIN, size: int = 3, inner: TokenProcess | None = None) -> BlockOracle:
    return BlockOracle.of(source, Block(Masked() if inner is None else inner, size))


def blank(rows: int, length: int, fill: int = 0) -> Batch:
    return Batch.of(torch.full((rows, length), fill))


def run(sampler: Sampler, denoiser: BlockOracle, batch: Batch, seed: int = 0) -> Canvas:
    *_, last = sampler.trajectory(denoiser, batch, Rng(seed, 0, batch.sample_id))
    return last


@pytest.mark.parametrize("size", [1, 2, 3, 7, 10])
@pytest.mark.parametrize("inner", [FirstHitting(), RandomOrder(steps=16)], ids=lambda s: type(s).__name__)
def test_exact_inner_samplers_reproduce_the_source(size: int, inner: Sampler) -> None:
    check_reproduced(run(Blockwise(inner), blocks(size=size), blank(4000, 7)).x, CHAIN)


@pytest.mark.parametrize("size", [1, 2])
def test_pairs_follow_the_exact_law(size: int) -> None:
    assert_law(run(Blockwise(FirstHitting()), blocks(PAIR, size), blank(6000, 2), seed=1).x, pair_law())


@pytest.mark.parametrize("process", [Masked(), Uniform(), Hybrid()], ids=str)
def test_ancestral_steps_reproduce_the_source_in_the_limit(process: TokenProcess) -> None:
    check_reproduced(run(Blockwise(Ancestral(steps=200)), blocks(inner=process), blank(2000, 7)).x, CHAIN, slack=5e-3)


def test_its_law_is_that_of_its_inner_sampler() -> None:
    assert [Blockwise(s).law for s in (FirstHitting(), Ancestral(), Greedy())] == ["exact", "limit", "approximate"]


@pytest.mark.parametrize("inner", INNER, ids=lambda s: type(s).__name__)
def test_trajectories_begin_in_noise_end_clean_and_go_block_by_block(inner: Sampler) -> None:
    denoiser = blocks()
    target = torch.tensor([[True] * 7, [False, True, True, False, True, False, False], [False] * 7])
    batch = Batch.of(CHAIN.sample(3, Rng(0, 0, torch.arange(3))), target=target)
    canvases = list(Blockwise(inner).trajectory(denoiser, batch, Rng(1, 0, batch.sample_id)))
    first, last = canvases[0], canvases[-1]
    assert torch.equal(first.x == 4, target)
    assert (first.t, last.t) == (1.0, 0.0)
    assert bool(last.settled.all())
    assert torch.equal(last.x[~target], batch.tokens[~target])
    assert bool((last.x < 4).all())
    for before, after in pairwise(canvases):
        assert torch.equal(before.x[before.settled], after.x[before.settled])
        assert bool((after.settled | ~before.settled).all())
        assert after.t <= before.t + 1e-12
    for canvas in canvases:
        begun = (canvas.x != 4) & target
        for start in (3, 6):
            if bool(begun[0, start:].any()):
                assert bool(canvas.settled[0, :start].all())


@pytest.mark.parametrize("inner", INNER, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("process", [Masked(), Uniform()], ids=str)
def test_a_row_alone_has_the_tokens_and_calls_it_has_in_a_ragged_batch(inner: Sampler, process: TokenProcess) -> None:
    if not isinstance(process, inner.requires):
        pytest.skip("not a sampler of this process")
    prompts, lengths = (0, 4, 1, 6, 3), (7, 7, 2, 7, 4)
    tokens = CHAIN.sample(5, Rng(0, 0, torch.arange(5))).tolist()
    examples = [Example(row[:n], [i >= p for i in range(n)]) for row, p, n in zip(tokens, prompts, lengths, strict=True)]
    batch = collate(examples, pad_id=0)
    together = run(Blockwise(inner), blocks(inner=process), batch, seed=6)
    for i, example in enumerate(examples):
        alone = run(Blockwise(inner), blocks(inner=process), collate([example], pad_id=0, sample_id=[i]), seed=6)
        assert torch.equal(alone.x[0], together.x[i, : lengths[i]])
        assert int(alone.nfe) == int(together.nfe[i])
        assert bool((together.x[i, lengths[i] :] == 0).all())


def test_a_row_counts_its_tokens_and_one_call_for_each_block_it_goes_on_from() -> None:
    """First hitting takes a call per target; prompts that fill blocks are read in one call, whatever the neighbours do."""
    denoiser = blocks(size=2)
    target = torch.ones(4, 7, dtype=torch.bool)
    target[1, :4] = False  # two blocks of prompt
    target[2, 2:] = False  # ends in its first block
    target[3] = torch.tensor([False, True, False, False, False, False, True])  # nothing to do in between
    batch = Batch.of(CHAIN.sample(4, Rng(0, 0, torch.arange(4))), target=target)
    assert run(Blockwise(FirstHitting()), denoiser, batch).nfe.tolist() == [7 + 3, 3 + 2, 2, 2 + 1]
    read = [(-tokens, rows) for tokens, rows in denoiser.calls if tokens < 0]
    assert read == [(2, 3), (2, 3), (2, 3)]  # row 2 has left the batch


def test_rows_without_targets_in_a_block_are_not_asked_about_it() -> None:
    denoiser, target = blocks(size=2), torch.zeros(2, 7, dtype=torch.bool)
    target[0, 2:4], target[1, 6:] = True, True
    batch = Batch.of(CHAIN.sample(2, Rng(0, 0, torch.arange(2))), target=target)
    run(Blockwise(FirstHitting()), denoiser, batch)
    assert denoiser.calls == [(-2, 2), (2, 1), (2, 1), (-4, 1), (6, 1)]


def test_nothing_to_generate_costs_nothing() -> None:
    batch = Batch.of(CHAIN.sample(2, Rng(0, 0, torch.arange(2))), target=torch.zeros(2, 7, dtype=torch.bool))
    denoiser = blocks()
    last = run(Blockwise(), denoiser, batch)
    assert torch.equal(last.x, batch.tokens)
    assert last.nfe.tolist() == [0, 0]
    assert not denoiser.calls


@pytest.mark.parametrize("process", [Masked(), Uniform()], ids=str)
def test_an_end_token_ends_its_row_with_its_block(process: TokenProcess) -> None:
    end, rows = 2, 60
    batch = blank(rows, 7, fill=1)._replace(target=torch.arange(7).expand(rows, -1) > 0)
    batch.tokens[:, 0] = end  # a prompt that holds the end token ends nothing
    plain = run(Blockwise(Ancestral(8)), blocks(inner=process), batch)
    ended = run(Blockwise(Ancestral(8), eos_id=end), blocks(inner=process), batch)
    stops = 0
    for row in range(rows):
        drawn = [i for i in range(1, 7) if int(plain.x[row, i]) == end]
        stop = 7 if not drawn else (drawn[0] // 3 + 1) * 3
        stops += stop < 7
        assert torch.equal(ended.x[row, :stop], plain.x[row, :stop])
        assert bool((ended.x[row, stop:] == 1).all())  # as it was given
        assert (int(ended.nfe[row]) < int(plain.nfe[row])) == (stop < 7)
    assert 5 < stops < rows
    assert ended.t == 0
    assert bool(ended.settled.all())


@pytest.mark.parametrize("inner", INNER, ids=lambda s: type(s).__name__)
def test_blocks_that_only_ended_rows_asked_for_are_passed_over(inner: Sampler) -> None:
    target = torch.ones(2, 7, dtype=torch.bool)
    target[1, :6] = False
    batch = Batch.of(CHAIN.sample(2, Rng(0, 0, torch.arange(2))), target=target)
    end = int(run(Blockwise(inner), blocks(size=2), batch).x[0, 0])
    denoiser = blocks(size=2)
    last = run(Blockwise(inner, eos_id=end), denoiser, batch)
    assert torch.equal(last.x[0, 2:], batch.tokens[0, 2:])
    assert {call for call in denoiser.calls if call[0] != 0} == {(-6, 1), (6, 1)}
    assert torch.equal(last.x[1], run(Blockwise(inner), blocks(size=2), batch).x[1])


def test_guidance_wraps_it() -> None:
    """At temperature 0 each token is the most probable one, in every block."""
    denoiser = Filters(temperature=0.0)(blocks(size=1))
    batch = blank(3, 7)
    drawn = Blockwise(FirstHitting()).sample(denoiser, batch, Rng(0, 0, batch.sample_id))
    best = [int(CHAIN.initial.argmax())]
    for _ in range(6):
        best.append(int(CHAIN.transition[best[-1]].argmax()))
    assert drawn.tolist() == [best] * 3


def test_guidance_of_steps_is_refused() -> None:
    """Its process hides that blocks are asked for, and whole rows with blanks would be taken for finished blocks."""
    with pytest.raises(ValueError, match=r"^this guidance steers noise over tokens of whole rows and the model's process is Block$"):
        ClassifierFree(gamma=2.0)(blocks())


@pytest.mark.parametrize("sampler", [Ancestral(steps=2), *INNER[1:], Autoregressive()], ids=lambda s: type(s).__name__)
def test_samplers_of_whole_rows_refuse_block_diffusion(sampler: Sampler) -> None:
    name = type(sampler).__name__
    with pytest.raises(ValueError, match=rf"^{name} samples a whole row at once and the model's process is Block: wrap it"):
        run(sampler, blocks(), blank(1, 3))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^Blockwise samples a Block process and the model's is Masked"):
        Blockwise().sample(oracle(CHAIN), blank(1, 3), Rng(0, 0, torch.arange(1)))
    with pytest.raises(ValueError, match=r"^Greedy samples a Masked process and the model's is Uniform"):
        run(Blockwise(Greedy()), blocks(inner=Uniform()), blank(1, 3))
    with pytest.raises(ValueError, match=r"^Autoregressive samples a LeftToRight process and the model's is Masked"):
        run(Blockwise(Autoregressive()), blocks(), blank(1, 3))


class Deaf:
    """A predictor that no finished block can be put before."""

    def __init__(self, denoiser: BlockOracle) -> None:
        self.process = denoiser.process

    def predictor(self, batch: Batch) -> "Deaf":
        return self

    def canvas(self, batch: Batch) -> tuple[Tensor, Tensor]:
        return batch.tokens, batch.target


def test_predictors_that_cannot_follow_blocks_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^Deaf cannot follow finished blocks"):
        run(Blockwise(), Deaf(blocks()), blank(1, 3))
