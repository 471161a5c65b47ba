import pytest
import torch

from tests.backbones.stock_models import tiny
from textdiff.backbones import leak

TOKENS = torch.tensor([[5, 9, 17]])
PADDED = torch.tensor([[1, 1, 1], [1, 1, 0]])


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neo", "lfm2"])
@pytest.mark.parametrize("attend", [None, PADDED])
def test_a_causal_model_is_one_way_in_every_layer(name: str, attend: torch.Tensor | None) -> None:
    trunk, tokens = tiny(name), TOKENS.expand(1 if attend is None else 2, -1)
    with torch.no_grad():
        assert leak.look_ahead(trunk, tokens, attend) == 0
        assert len(leak.one_way_layers(trunk, tokens, attend)) == 2


@pytest.mark.parametrize("name", ["bert", "modernbert", "roberta"])
def test_a_masked_lm_is_one_way_nowhere(name: str) -> None:
    trunk = tiny(name)
    with torch.no_grad():
        assert leak.look_ahead(trunk, TOKENS) > 0
        assert leak.one_way_layers(trunk, TOKENS) == []


def test_a_causal_layer_behind_a_bidirectional_one_is_found() -> None:
    trunk = tiny("lfm2")
    trunk.config.is_causal = False
    with torch.no_grad():
        assert leak.look_ahead(trunk, TOKENS) > 0  # the attention layer alone carries the last token to the first logits
        assert leak.one_way_layers(trunk, TOKENS) == ["model.layers.1 (Lfm2DecoderLayer)"]


def test_regrouped_experts_do_not_pass_for_a_leak() -> None:
    trunk = tiny("qwen3_moe")
    with torch.no_grad():
        assert leak.look_ahead(trunk, TOKENS) < 1e-5
        assert len(leak.one_way_layers(trunk, TOKENS)) == 2


def test_watching_leaves_no_hook_behind() -> None:
    trunk = tiny("llama")
    with torch.no_grad():
        leak.one_way_layers(trunk, TOKENS)
    assert not any(module._forward_hooks for module in trunk.modules())
