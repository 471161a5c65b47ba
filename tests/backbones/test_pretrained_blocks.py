"""How stock trunks read blocks: who sees whom in [xt ; x0], and finished tokens as a cache."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.backbones.stock_models import CAUSAL, MASKED, tiny
from textdiff.backbones import attention_masks
from textdiff.backbones.base import FinishedCache
from textdiff.backbones.pretrained import PretrainedBackbone
from textdiff.batch import Batch

LENGTH = 9
DOCUMENT = torch.tensor([[1, 1, 1, 1, 1, 1, 2, 2, 2]])
SLIDING = {"num_hidden_layers": 1, "layer_types": ["sliding_attention"]}
ONE_LAYER: dict[str, tuple[dict[str, Any], int | None]] = {
    "gpt2": ({"n_layer": 1}, None),
    "llama": ({"num_hidden_layers": 1}, None),
    "mistral": ({"num_hidden_layers": 1}, 4),
    "qwen2 window": (SLIDING, 4),
    "qwen3": ({"num_hidden_layers": 1}, None),
    "gemma3_text": (SLIDING, 4),
    "phi": ({"num_hidden_layers": 1}, None),
    "opt": ({"num_hidden_layers": 1}, None),
    "gpt_neox": ({"num_hidden_layers": 1}, None),
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}


def bidirectional(name: str, **changes: Any) -> PretrainedBackbone:
    """In double precision, so that equal means equal to rounding."""
    return PretrainedBackbone(tiny(name, **changes).double(), causal=False)


def rows(length: int = LENGTH, seed: int = 0) -> Tensor:
    return torch.randint(3, 64, (1, length), generator=torch.Generator().manual_seed(seed))


def together(backbone: PretrainedBackbone, both: Tensor, document: Tensor, size: int) -> Tensor:
    """Hidden states (B, 2L, H) of rows [xt ; x0]."""
    noisy, _ = both.chunk(2, dim=1)
    batch = Batch.of(noisy, document=document.expand(len(both), -1))
    mask = attention_masks.noisy_and_clean(batch.attend, batch.document, size)
    with torch.no_grad():
        return backbone(both, backbone.context(batch).at(torch.arange(noisy.shape[1]).repeat(2), mask))


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("size", [1, 2, 6])
@pytest.mark.parametrize("name", ONE_LAYER)
def test_in_one_layer_every_token_sees_exactly_its_block_and_clean_ones_within_the_window(name: str, size: int, attention: str) -> None:
    """Every token of [xt ; x0] is replaced in turn; who notices is compared with the rule in words."""
    changes, window = ONE_LAYER[name]
    backbone = bidirectional(name, attn_implementation=attention, **changes)
    both, other = torch.cat([rows(), rows(seed=1)], dim=1).repeat(2 * LENGTH + 1, 1), torch.arange(2 * LENGTH)
    both[other, other] = (both[other, other] + 27) % 61 + 3
    states = together(backbone, both, DOCUMENT, size)
    notices = ((states[:-1] - states[-1]).abs() > 1e-12).any(-1).T  # where in the batch a row stands may change its last bit
    expected = torch.zeros(2 * LENGTH, 2 * LENGTH, dtype=torch.bool)
    for q, k in itertools.product(range(2 * LENGTH), range(2 * LENGTH)):
        (query, query_is_clean), (key, key_is_clean) = ((i % LENGTH, i >= LENGTH) for i in (q, k))
        if query // size == key // size and query_is_clean == key_is_clean:  # its own block: both ways, as far as HF's two-way window
            near = window is None or abs(query - key) <= window
        else:  # a finished block: backwards, as far as the causal window
            near = key_is_clean and key // size < query // size and (window is None or query - key < window)
        expected[q, k] = near and bool(DOCUMENT[0, query] == DOCUMENT[0, key])
    assert torch.equal(notices, expected)


@pytest.mark.parametrize("name", [*CAUSAL, "bert", "roberta", "electra"])
@pytest.mark.parametrize("attention", [None, "eager"])
def test_what_is_cached_stays_as_it_was_and_another_draft_may_follow_it(name: str, attention: str | None) -> None:
    backbone, size = bidirectional(name, attn_implementation=attention), 3
    tolerance: dict[str, Any] = {"atol": 1e-6, "rtol": 1e-6}  # GPT-J turns its queries in single precision
    assert backbone.reads_blocks
    clean, everything = rows(), Batch.of(rows())
    context, columns = backbone.context(everything), torch.arange(LENGTH)

    def read(tokens: Tensor, cache: FinishedCache) -> Tensor:
        start, stop = cache.length, cache.length + tokens.shape[1]
        mask = attention_masks.blockwise(everything.attend[:, :stop], everything.document[:, :stop], size, start)
        with torch.no_grad():
            return backbone(tokens, context.at(columns[start:stop], mask), cache=cache)

    finished = FinishedCache()
    read(clean[:, :6], finished)  # two blocks at once
    assert finished.length == 6
    kept = [(keys.clone(), values.clone()) for keys, values in finished.layers]
    for seed in (1, 2):
        draft, cache = rows(3, seed), FinishedCache(finished.layers)
        both = torch.cat([clean[:, :6], draft, clean], dim=1)
        torch.testing.assert_close(read(draft, cache), together(backbone, both, torch.zeros_like(clean), size)[:, 6:LENGTH], **tolerance)
        assert cache.length == LENGTH
    for given, before in zip(finished.layers, kept, strict=True):
        assert all(torch.equal(*pair) for pair in zip(given, before, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["gpt2", "mistral", "gemma3_text", "qwen3_moe"])
def test_half_precision_weights_pass_the_probe(name: str, dtype: torch.dtype) -> None:
    trunk: Any = tiny(name)
    backbone = PretrainedBackbone(trunk.to(dtype), causal=False)
    assert backbone.trunk.dtype == dtype
    assert backbone.reads_blocks


def test_what_does_not_read_blocks_is_measured() -> None:
    assert not PretrainedBackbone(tiny("llama"), causal=True).reads_blocks
    for name in ("distilbert", "modernbert", "bloom"):  # no cache, no cache, no mask
        assert not bidirectional(name).reads_blocks
    assert set(MASKED) == {"bert", "roberta", "electra", "distilbert", "modernbert"}


def test_positions_that_depend_on_the_length_of_the_row_are_found() -> None:
    """longrope: what is cached of a short row was turned otherwise than the same tokens in a long one."""
    assert not bidirectional("llama", rope_parameters={**LONGROPE, "original_max_position_embeddings": 32}).reads_blocks
    assert bidirectional("llama", rope_parameters={**LONGROPE, "original_max_position_embeddings": 64}).reads_blocks  # it has 64 positions


def test_a_model_that_does_not_look_into_its_cache_is_found() -> None:
    backbone = bidirectional("llama")
    attention = backbone.trunk.get_submodule("model.layers.1.self_attn")
    attention.register_forward_pre_hook(lambda module, args, kwargs: (args, {**kwargs, "past_key_values": None}), with_kwargs=True)
    assert not backbone.reads_blocks


def test_a_cache_dropped_by_gradient_checkpointing_is_no_silent_mistake() -> None:
    backbone, tokens = bidirectional("llama"), rows()
    backbone.trunk.activation_checkpointing_enable()
    backbone.train()
    with pytest.raises(ValueError, match=r"^LlamaForCausalLM kept no keys and values, as when it trains with gradient checkpointing"):
        backbone(tokens, backbone.context(Batch.of(tokens)).at(torch.arange(LENGTH), None), cache=FinishedCache())


def test_rows_that_nothing_tells_apart_share_one_mask() -> None:
    for attention in ("sdpa", "eager"):
        backbone, batch = bidirectional("gemma3_text", attn_implementation=attention), Batch.of(rows().repeat(4, 1))
        mask = attention_masks.noisy_and_clean(batch.attend, batch.document, 3)
        masks = backbone.context(batch).at(torch.arange(LENGTH).repeat(2), mask).inputs["attention_mask"]
        assert set(masks) == {"full_attention", "sliding_attention"}
        assert all(given.shape == mask.shape and given.stride(0) == 0 for given in masks.values())
