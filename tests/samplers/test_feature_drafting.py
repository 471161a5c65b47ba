from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models.tiny import EOS, VOCAB, autoregressive, diffusion, trunk
from tests.models.tiny_drafters import drafter_of, stock, taught
from tests.samplers.test_autoregressive import continued
from tests.samplers.test_speculative import ZERO, filtered_law, last, plain, prompts
from textdiff.batch import Batch
from textdiff.guidance.base import Guidance
from textdiff.guidance.filters import Filters
from textdiff.models.anchors import Anchors
from textdiff.models.autoregressive import AutoregressiveLM
from textdiff.models.feature_drafter import FeatureDrafter
from textdiff.randomness import Rng
from textdiff.samplers.autoregressive import Autoregressive
from textdiff.samplers.drafting import Draft, LeftToRightChunks, Place
from textdiff.samplers.feature_drafting import FromFeatures
from textdiff.samplers.speculative import Adaptive, DraftLength, Speculative
from textdiff.vocab import Vocab

TARGET = autoregressive(seed=3)
LEARNT = Autoregressive().sample(ZERO(TARGET), continued(prompts(64, seed=1000), 20), Rng(0, 0, torch.arange(64)))[:, :20]
DRAFTER = taught(drafter_of(TARGET), LEARNT, 60)


@pytest.mark.parametrize("eos_id", [-1, EOS])
@pytest.mark.parametrize("length", [DraftLength(1), DraftLength(4), DraftLength(9), Adaptive(8)], ids=str)
def test_at_temperature_0_it_writes_what_the_target_alone_does(length: DraftLength, eos_id: int) -> None:
    """200 prompts in all, 25 ragged ones at a time."""
    for number in range(200 // 25):
        batch = continued(prompts(25, seed=number), 13)
        expected, calls = plain(batch, eos_id)
        found = last(Speculative(FromFeatures(), length, eos_id), ZERO(TARGET), ZERO(DRAFTER) if number % 2 else DRAFTER, batch)
        assert torch.equal(found.canvas.x, expected)
        assert torch.equal(found.counts.emitted, calls)
        assert bool((found.counts.tested.sum(0)[length.longest :] == 0).all())
        assert int(found.counts.accepted.sum()) > 0


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2 window"])
def test_so_it_does_with_a_stock_target(name: str) -> None:
    target = stock(name)
    texts = [[1, 9, 4], [1, 33, 5, 60, 7, 8], [1], [1, 12]]
    batch = continued(texts, [12, 9, 14, 1])
    *_, canvas = Autoregressive().trajectory(ZERO(target), batch, Rng(0, 0, batch.sample_id))
    found = last(Speculative(FromFeatures(), DraftLength(3)), ZERO(target), drafter_of(target), batch)
    assert torch.equal(found.canvas.x, canvas.x)


def told(drafter: FeatureDrafter, row: Tensor, settled: int) -> Tensor:
    """The laws of the tokens behind `settled` ones, computed as in training: from one pass of the target over the whole row."""
    batch = Batch.of(row[None])
    with torch.no_grad(), drafter.listening() as heard:
        drafter.target.backbone(batch.tokens, drafter.target.backbone.context(batch))
        assert heard.features is not None
        anchors = Anchors(torch.tensor([[settled - 1]]), torch.ones(1, 1, drafter.most, dtype=torch.bool))
        return drafter.head(drafter._drafted(batch, anchors, heard.features)[0, 0, 1:]).softmax(-1)


@pytest.mark.parametrize("target", [TARGET, stock("llama"), stock("mistral")], ids=["own", "llama", "mistral"])
def test_drafts_are_drawn_from_what_training_computes_however_rows_were_cropped(
    target: AutoregressiveLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafter = drafter_of(target, seed=4)
    drafted: list[tuple[Place, Tensor]] = []
    drafts = FromFeatures().begin(target, drafter, continued([[1]], 1))
    call = type(drafts).__call__

    def spied(self: Any, place: Place, rng: Rng) -> Draft:
        draft = call(self, place, rng)
        assert draft.law is not None
        drafted.append((place, draft.law))
        return draft

    monkeypatch.setattr(type(drafts), "__call__", spied)
    last(Speculative(FromFeatures(), DraftLength(4)), target, drafter, continued([[1, 3], [1, 2, 4, 5, 3], [1]], [11, 8, 13]), seed=2)
    compared = 0
    for place, law in drafted:
        wanted = place.targets()
        for row in range(3):
            n, at = int(wanted[row].sum()), int(wanted[:row].sum())
            expected = told(drafter, place.x[row], int(place.settled[row]))[:n]
            torch.testing.assert_close(law[at : at + n], expected, atol=1e-9, rtol=1e-7)
            compared += n
    assert compared > 40


@pytest.mark.parametrize(("filters", "n"), [(Filters(), 100_000), (Filters(temperature=0.6, top_k=3), 20_000)], ids=str)
def test_the_law_of_four_tokens_is_the_targets(filters: Guidance, n: int) -> None:
    """The first comes with the prompt's pass, the others are drafted; the drafter draws at another temperature."""
    bare = autoregressive(Vocab(size=4, tokens=4), seed=4, backbone=trunk(width=8, layers=2))
    target, drafter = filters(bare), Filters(temperature=1.3)(drafter_of(bare, block=3))
    batch = Batch.of(torch.zeros(n, 5, dtype=torch.long), target=(torch.arange(5) > 0).expand(n, 5))
    found = last(Speculative(FromFeatures(), DraftLength(2)), target, drafter, batch)
    assert int(found.counts.tested[:, 1].sum()) > n / 4
    code = (found.canvas.x[:, 1:] * torch.tensor([64, 16, 4, 1])).sum(1)
    probability = filtered_law(target, 4, 4)
    count, expected = torch.bincount(code, minlength=256), probability * n
    possible = expected > 0
    assert bool((count[~possible] == 0).all())
    frequent = expected > 5
    chi_square = float(((count - expected)[frequent] ** 2 / expected[frequent]).sum())
    freedom = int(frequent.sum()) - 1
    assert freedom > 30
    assert chi_square < freedom + 3.1 * (2 * freedom) ** 0.5 + 6  # exceeded less than once in a thousand


def test_the_rule_is_told_the_law_that_the_tokens_are_drawn_from() -> None:
    n = 20_000
    batch = Batch.of(torch.tensor([[0, 3, 1, 0, 0, 0]]).repeat(n, 1), target=(torch.arange(6) > 2).expand(n, 6))
    drafts = FromFeatures().begin(TARGET, DRAFTER, batch)
    with torch.no_grad():
        predictor, seen = TARGET.predictor(batch), torch.full((n,), 2)
        with drafts.listening():
            predictor.read_each(batch.tokens[:, :2])
        draft = drafts(Place(batch.tokens, seen + 1, batch.target, seen), Rng(0, 0, batch.sample_id))
    assert draft.law is not None
    for place in range(2):
        expected = draft.law.view(n, 2, -1)[0, place] * n
        count = torch.bincount(draft.tokens[:, 3 + place], minlength=VOCAB.size)
        assert bool((count[expected == 0] == 0).all())
        frequent = expected > 5
        assert float(((count - expected)[frequent] ** 2 / expected[frequent]).sum()) < 24.3  # 7 degrees of freedom at most


def test_a_row_alone_is_the_row_in_a_ragged_batch() -> None:
    texts, new, sampler = prompts(6), [11, 2, 7, 1, 11, 3], Speculative(FromFeatures(), Adaptive(6), EOS)
    found = last(sampler, TARGET, DRAFTER, continued(texts, new), seed=5)
    for row, text in enumerate(texts):
        single = continued([text], new[row])._replace(sample_id=torch.tensor([row]))
        alone = last(sampler, TARGET, DRAFTER, single, seed=5)
        assert torch.equal(alone.canvas.x[0], found.canvas.x[row, : len(text) + new[row]])
        for one, many in zip(alone.counts, found.counts, strict=True):
            assert torch.equal(one[0], many[row])


def test_what_stands_between_targets_is_read_and_stays() -> None:
    batch = continued(prompts(8), 12)
    given = torch.zeros_like(batch.target)
    given[:, [7, 8, 11]] = True
    batch = batch._replace(tokens=batch.tokens.masked_fill(given & batch.target, 2), target=batch.target & ~given)
    found = last(Speculative(FromFeatures(), DraftLength(4)), ZERO(TARGET), DRAFTER, batch)
    assert torch.equal(found.canvas.x, plain(batch)[0])
    assert torch.equal(found.counts.emitted, batch.target.sum(1))


def test_features_cost_no_pass_of_the_target() -> None:
    """Of one row: a pass for the prompt, one for each draft; each pass reads the draft and the token before it, and nothing again."""
    sizes: list[int] = []
    handle = TARGET.backbone.register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[1]))
    try:
        found = last(Speculative(FromFeatures(), DraftLength(4)), TARGET, DRAFTER, continued([[0, 3, 1]], 20))
    finally:
        handle.remove()
    assert len(sizes) == int(found.counts.passes) == int(found.counts.drafter_calls) + 1 or sizes[-1] == 2
    assert sizes[0] == 4
    assert set(sizes[1:-1]) <= {2, 3, 4, 5}


def test_what_does_not_fit_is_refused() -> None:
    batch = continued([[0]], 4)
    with pytest.raises(ValueError, match="FromFeatures drafts from a target's features and the drafter's process is Masked"):
        last(Speculative(FromFeatures()), TARGET, diffusion(), batch)
    with pytest.raises(ValueError, match=r"LeftToRightChunks drafts with noise .* the drafter's is NextBlock: use FromFeatures\(\)"):
        last(Speculative(LeftToRightChunks()), TARGET, DRAFTER, batch)
    with pytest.raises(ValueError, match="the target is another object than the model that the drafter is attached to"):
        last(Speculative(FromFeatures()), autoregressive(seed=3), DRAFTER, batch)
