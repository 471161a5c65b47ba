"""Every way to write the text of a target: its tokens, its law, and what it counts."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.speculation.tiny_target import DRAFTER, FLASH, NEW, PROMPTS, TARGET, VOCAB, ZERO, causal, plain
from textdiff.batch import Batch
from textdiff.samplers.drafting import LeftToRightChunks
from textdiff.samplers.speculative import DraftLength
from textdiff.speculation.opening import Models
from textdiff.speculation.plan import Compare
from textdiff.speculation.ways import Drafted, Stock, StockDrafted

SETTINGS = Compare(new=NEW, lengths=(2, 5), steps=(1, 2))


def test_every_way_writes_the_likeliest_tokens_one_after_the_other() -> None:
    ways = SETTINGS.ways(Models(TARGET, DRAFTER, causal(1), FLASH), 0.0)
    assert len(ways) == 12
    for prompt in PROMPTS:
        wanted = plain(prompt)
        for name, way in ways.items():
            assert way(prompt, 0).tokens.tolist() == wanted, name


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_costs_add_up(temperature: float) -> None:
    """Each pass writes what it accepts and one token more."""
    for name, way in SETTINGS.ways(Models(TARGET, DRAFTER, causal(1), FLASH), temperature).items():
        for seed, prompt in enumerate(PROMPTS):
            found = way(prompt, seed)
            assert len(found.tokens) == NEW == found.passes + int(found.accepted.sum()), name
            assert bool((found.accepted <= found.tested).all()), name
            assert torch.equal(found.tested[1:], found.tested[1:].minimum(found.accepted[:-1])), name


def test_at_temperature_1_the_ways_of_transformers_write_by_the_targets_law() -> None:
    """Two tokens, chi-square against their exact law; those of our loop are tested in tests/samplers/test_speculative_law.py."""
    prompt, n = torch.tensor([3, 4, 5, 3, 4, 6, 5, 3, 4]), 300  # what comes after 3 4 can be looked up
    ids = [i for i in range(8) if i not in VOCAB.unemittable]

    def law(row: list[int]) -> Tensor:
        batch = Batch.of(torch.tensor([[*row, 0]]))
        where = torch.arange(len(row) + 1)[None] == len(row)
        return TARGET.predictor(batch)(batch.tokens, batch.sample_id).logits(where)[0][ids].softmax(0)

    with torch.no_grad():
        exact = law(prompt.tolist())[:, None] * torch.stack([law([*prompt.tolist(), i]) for i in ids])
    ways = replace(SETTINGS, new=2, lengths=(2,)).ways(Models(TARGET, DRAFTER, causal(1), None), 1.0)
    stock = [name for name in ways if "transformers" in name]
    assert len(stock) == 4
    for name in stock:
        found, drafted = torch.zeros_like(exact), 0
        for seed in range(n):
            written = ways[name](prompt, seed)
            drafted += int(written.tested.sum())
            found[tuple(ids.index(token) for token in written.tokens.tolist())] += 1
        likely = n * exact >= 3  # the others are counted together
        seen, wanted = (torch.cat([table[likely], table[~likely].sum()[None]]) for table in (found, n * exact))
        freedom = len(seen) - 1
        assert float(((seen - wanted) ** 2 / wanted).sum()) < freedom + 4.5 * (2 * freedom) ** 0.5, name
        assert (drafted > n / 2) == (name != "left to right (transformers)"), name


def test_the_stock_generate_is_counted_as_our_own_loop() -> None:
    """The same drafts are tested in the same passes."""
    passed = 0
    for drafting, longest in ((LeftToRightChunks(), 5), (LeftToRightChunks(2), 4)):
        ours = Drafted(TARGET, ZERO, NEW, DRAFTER, drafting, DraftLength(longest))
        theirs = StockDrafted(TARGET, ZERO, NEW, drafter=DRAFTER.backbone, denoiser=DRAFTER, drafting=drafting, longest=longest)
        for prompt in PROMPTS:
            one, other = ours(prompt, 0), theirs(prompt, 0)
            passed += int(one.accepted.sum())
            width = len(other.tested)
            assert (one.passes, one.calls) == (other.passes, other.calls)
            assert torch.equal(one.tested[:width], other.tested)
            assert torch.equal(one.accepted[:width], other.accepted)
            assert int(one.tested[width:].sum()) == 0
    assert passed > 10


def test_an_assistant_that_is_the_target_passes_every_test() -> None:
    network = TARGET.backbone.trunk
    found = Stock(TARGET, ZERO, NEW, (("assistant_model", causal(2).backbone.trunk),))(PROMPTS[0], 0)
    assert network is not None
    assert torch.equal(found.tested, found.accepted)
    assert found.passes < NEW
