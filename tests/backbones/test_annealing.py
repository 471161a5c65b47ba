"""The leak test: which tokens a position takes anything from, by gradient, is exactly the mask in words."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.backbones.stock_models import CAUSAL, SPECIAL, tiny
from textdiff.backbones.annealing import Annealing, GrowingBlocks, RandomEntries, WholeBatch
from textdiff.backbones.base import Backbone
from textdiff.backbones.pretrained import Pretrained, PretrainedBackbone
from textdiff.backbones.transformer import TransformerConfig
from textdiff.batch import Batch
from textdiff.randomness import Rng
from textdiff.vocab import Vocab

LENGTH, WINDOW = 7, 2
ONE = {"num_hidden_layers": 1}
SLIDING = {**ONE, "sliding_window": WINDOW, "layer_types": ["sliding_attention"]}
LAYERS: dict[str, dict[str, Any]] = {  # one layer each: the gradients of several would be products of their masks
    "gpt2": {"n_layer": 1},
    "llama": ONE,
    "mistral": {**ONE, "sliding_window": WINDOW},
    "qwen2": ONE,
    "qwen2 window": {**SLIDING, "use_sliding_window": True},
    "qwen3": ONE,
    "qwen3 window": {**SLIDING, "use_sliding_window": True},
    "gemma": ONE,
    "gemma3_text": {**ONE, "layer_types": ["full_attention"]},
    "gemma3_text window": SLIDING,
    "phi": ONE,
    "opt": ONE,
    "gpt_neox": ONE,
    "gptj": {"n_layer": 1},
    "falcon": ONE,
    "olmo2": ONE,
    "smollm3": {**ONE, "layer_types": ["full_attention"], "no_rope_layers": [1]},
}
BATCHES = {
    "plain": Batch.of(torch.randint(3, 64, (1, LENGTH), generator=torch.Generator().manual_seed(0))),
    "padded": Batch.of(
        torch.randint(3, 64, (3, LENGTH), generator=torch.Generator().manual_seed(1)),
        attend=torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]).bool(),
    ),
    "packed": Batch.of(
        torch.randint(3, 64, (2, LENGTH), generator=torch.Generator().manual_seed(2)),
        attend=torch.tensor([[1, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 0, 0]]).bool(),
        document=torch.tensor([[1, 1, 1, 2, 2, 2, 2], [1, 1, 2, 2, 2, 0, 0]]),
    ),
}
STAGES: dict[str, Tensor | bool] = {
    "causal": False,
    "random": RandomEntries().between(LENGTH, 0.5, Rng(0, 0, torch.arange(LENGTH))),
    "blocks": GrowingBlocks(largest=9).between(LENGTH, 0.5, Rng(0, 0, torch.arange(LENGTH))),
    "full": True,
}


def depends(backbone: Backbone, batch: Batch, ahead: Tensor | bool) -> Tensor:
    """(B, L, L): whether anything of hidden state i depends on the embedding of token j, by gradient; a masked weight is exactly 0."""
    rows = torch.arange(len(batch.tokens)).repeat_interleave(LENGTH)  # each row once for every query
    taken: list[Tensor] = []

    def watch(module: nn.Module, args: object, output: Tensor) -> Tensor:
        taken.append(output.detach().requires_grad_())
        return taken[0]

    embedding = backbone.embedding if backbone.trunk is None else backbone.trunk.get_input_embeddings()
    handle = embedding.register_forward_hook(watch)
    try:
        hidden = backbone(batch.tokens[rows], backbone.context(batch.rows(rows), ahead))
    finally:
        handle.remove()
    queries = hidden.view(-1, LENGTH, *hidden.shape[1:]).diagonal(dim1=1, dim2=2)  # (B, H, L)
    probe = torch.arange(hidden.shape[-1]).cos()[None, :, None]
    (gradient,) = torch.autograd.grad((queries * probe).sum(), taken[0])
    return gradient.ne(0).any(-1).view(-1, LENGTH, LENGTH)


def in_words(batch: Batch, ahead: Tensor | bool, window: int | None) -> Tensor:
    """(B, L, L): a stock model's causal window of w has w keys, its two-way one reaches w to each side."""
    wanted = torch.zeros(len(batch.tokens), LENGTH, LENGTH, dtype=torch.bool)
    for b, q, k in itertools.product(range(len(batch.tokens)), range(LENGTH), range(LENGTH)):
        past = k <= q and (window is None or q - k < window)
        opened = bool(ahead[q, k]) if isinstance(ahead, Tensor) else ahead
        seen = past or (opened and (window is None or abs(q - k) <= window))
        wanted[b, q, k] = seen and bool(batch.attend[b, k]) and bool(batch.document[b, q] == batch.document[b, k])
    return wanted


def check(backbone: Backbone, window: int | None = None) -> None:
    for (kind, batch), (stage, ahead) in itertools.product(BATCHES.items(), STAGES.items()):
        found, wanted = depends(backbone, batch, ahead), in_words(batch, ahead, window)
        assert torch.equal(found[batch.attend], wanted[batch.attend]), (kind, stage)


def strong(module: Any) -> Any:
    for parameter in module.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(0))
    return module


@pytest.mark.parametrize("attention", [None, "eager"])  # None: sdpa, where the architecture has it
@pytest.mark.parametrize("name", LAYERS)
def test_a_stock_position_depends_on_exactly_what_the_annealed_mask_shows_it(name: str, attention: str | None) -> None:
    trunk = strong(tiny(name.split()[0], **LAYERS[name], attn_implementation=attention))
    window = WINDOW if name == "mistral" or "window" in name else None
    check(PretrainedBackbone(trunk, causal=False), window)
    causal = depends(PretrainedBackbone(trunk, causal=True), BATCHES["plain"], True)
    assert torch.equal(causal, in_words(BATCHES["plain"], False, window))  # whatever is asked of a trunk that stays causal


def test_a_position_of_our_own_trunk_depends_on_exactly_what_the_annealed_mask_shows_it() -> None:
    check(strong(TransformerConfig(width=16, layers=1, heads=2).build(Vocab(size=64, tokens=64), causal=False)))


@pytest.mark.parametrize("name", [*CAUSAL, "ours"])
def test_annealing_begins_with_the_logits_of_the_causal_model(name: str) -> None:
    """To 1e-5 of the largest, with an explicit mask of nothing ahead and without one."""
    config, vocab = TransformerConfig(width=16, layers=2, heads=2), Vocab(size=64, tokens=64)
    ours = name == "ours"
    causal, both = (strong(config.build(vocab, way)) if ours else PretrainedBackbone(tiny(name), way) for way in (True, False))
    both.load_state_dict(causal.state_dict())
    for batch, ahead in itertools.product(BATCHES.values(), (False, torch.zeros(LENGTH, LENGTH, dtype=torch.bool))):
        with torch.no_grad():
            expected = causal.head()(causal(batch.tokens, causal.context(batch))[batch.attend])
            found = both.head()(both(batch.tokens, both.context(batch, ahead))[batch.attend])
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("name", ["gpt2", "opt", "bert", "roberta"])
def test_padding_on_the_left_changes_no_real_row(name: str) -> None:
    backbone, tokens = PretrainedBackbone(tiny(name), causal=False), BATCHES["plain"].tokens
    padded = torch.cat([torch.zeros(1, 3, dtype=torch.long), tokens], dim=1)
    batch = Batch.of(padded, attend=torch.arange(LENGTH + 3)[None] >= 3)
    with torch.no_grad():
        alone = backbone(tokens, backbone.context(Batch.of(tokens)))
        together = backbone(padded, backbone.context(batch))
    torch.testing.assert_close(together[:, 3:], alone, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("ahead", STAGES.values(), ids=STAGES)
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "gptj", "falcon"])
def test_gradient_checkpointing_computes_again_what_was_computed(name: str, ahead: Tensor | bool) -> None:
    """The layers are run a second time after the trunk looks both ways again."""
    gradients = []
    for checkpointed in (False, True):
        trunk = tiny(name)
        backbone = Pretrained("unused", gradient_checkpointing=checkpointed).wrap(trunk, Vocab(size=64, tokens=64), causal=False)
        for module in trunk.train().modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        batch = BATCHES["plain"]
        backbone(batch.tokens, backbone.context(batch, ahead)).square().sum().backward()
        gradients.append([p.grad for p in trunk.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


def test_a_turned_trunk_looks_both_ways_again_also_after_an_error() -> None:
    backbone = PretrainedBackbone(tiny("llama"), causal=False)
    with pytest.raises(IndexError):
        backbone(torch.tensor([[999]]), backbone.context(Batch.of(torch.tensor([[999]])), ahead=False))
    assert backbone.trunk.config.is_causal is False


@pytest.mark.parametrize("name", CAUSAL)
def test_every_causal_model_that_isolates_documents_can_be_annealed(name: str) -> None:
    backbone = PretrainedBackbone(tiny(name), causal=False)
    for annealing in (RandomEntries(), WholeBatch(), GrowingBlocks()):
        annealing.check(backbone)


@pytest.mark.parametrize("annealing", [RandomEntries(), GrowingBlocks()])
def test_a_model_that_takes_no_mask_is_refused_with_the_way_out(annealing: Annealing) -> None:
    assert "bloom" in SPECIAL
    backbone = PretrainedBackbone(tiny("bloom"), causal=False)
    with pytest.raises(ValueError, match=r"BloomForCausalLM takes no explicit attention mask.*set annealing to WholeBatch, or to None"):
        annealing.check(backbone)
    WholeBatch().check(backbone)
    assert torch.equal(depends(backbone, BATCHES["plain"], False), in_words(BATCHES["plain"], False, None))


def test_a_masked_lm_is_refused() -> None:
    with pytest.raises(ValueError, match="BertForMaskedLM cannot look back only, as annealing begins: set annealing to None"):
        WholeBatch().check(PretrainedBackbone(tiny("bert"), causal=False))


def rng(length: int, seed: int = 0, step: int = 0) -> Rng:
    return Rng(seed, step, torch.arange(length))


@pytest.mark.parametrize("annealing", [RandomEntries(0.2), WholeBatch(0.2), GrowingBlocks(0.2)])
def test_nothing_is_seen_at_the_start_and_everything_after_its_part(annealing: Annealing) -> None:
    assert annealing.ahead(9, 0.0, rng(9)) is False
    assert annealing.ahead(9, 0.2, rng(9)) is True
    assert annealing.ahead(9, 1.0, rng(9)) is True


def test_random_entries_are_opened_at_the_rate_of_the_ratio_and_anew_in_each_step() -> None:
    annealing, length = RandomEntries(0.5), 400
    masks = [annealing.ahead(length, 0.15, rng(length, step=step)) for step in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1])
    for mask in masks:
        assert abs(float(mask.double().mean()) - 0.3) < 4 * (0.21 / length**2) ** 0.5
    together = float((masks[0] & masks[2]).double().mean())
    assert abs(together - 0.09) < 4 * (0.09 * 0.91 / length**2) ** 0.5  # independent of the step before


def test_what_a_short_row_sees_is_what_the_beginning_of_a_long_one_sees() -> None:
    """Otherwise a loss would depend on the longest row of its micro-batch."""
    for annealing in (RandomEntries(0.5), GrowingBlocks(0.5, largest=32)):
        short, long = (annealing.ahead(length, 0.3, rng(length)) for length in (5, 12))
        assert torch.equal(short, long[:5, :5])
    draws = [[WholeBatch(0.5).ahead(length, 0.25, rng(length, step=step)) for step in range(30)] for length in (5, 12)]
    assert draws[0] == draws[1]


def test_whole_batches_are_full_at_the_rate_of_the_ratio() -> None:
    draws = [WholeBatch(0.5).ahead(4, 0.15, rng(4, step=step)) for step in range(2000)]
    assert {type(draw) for draw in draws} == {bool}
    assert abs(sum(draws) / 2000 - 0.3) < 4 * (0.21 / 2000) ** 0.5


def test_blocks_grow_from_one_token_and_double_at_an_even_pace() -> None:
    annealing, index = GrowingBlocks(1.0, largest=16), torch.arange(20)
    for progress, size in ((0.25, 2), (0.5, 4), (0.75, 8), (0.999, 15)):
        assert torch.equal(annealing.ahead(20, progress, rng(20)), index[:, None] // size == index[None] // size)
    assert annealing.ahead(20, 0.2, rng(20)) is False  # one token: causal, and without a mask


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: RandomEntries(0.0), "part is 0.0, expected a part of training"),
        (lambda: WholeBatch(1.5), "part is 1.5"),
        (lambda: GrowingBlocks(largest=1), "largest is 1, expected a block of 2"),
        (lambda: Annealing(), "does not say how: choose RandomEntries"),
    ],
)
def test_an_annealing_that_makes_no_sense_is_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()
