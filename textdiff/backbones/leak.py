"""Which tokens a stock model lets a position see, found by changing a token and looking who notices, and how to turn it."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel

from textdiff.backbones import hub

_ROUNDING = 0.01  # of the largest logit: what regrouping experts may do to a causal model in half precision


def without_cache(trunk: PreTrainedModel) -> dict[str, bool]:
    """The argument that keeps a causal LM from filling a cache; masked LMs do not know it."""
    return {"use_cache": False} if "use_cache" in inspect.signature(trunk.forward).parameters else {}


def look_ahead(trunk: PreTrainedModel, tokens: Tensor, attend: Tensor | None = None) -> float:
    """How far the first row's logits move when the last of its `tokens` (B, L), L >= 2, is replaced, relative to the largest logit.

    Exactly 0 for a causal model, but for a mixture of experts, whose rounding depends on which tokens share an expert.
    """
    changed = tokens.clone()
    changed[0, -1] = tokens[0, 0]
    before, after = (_run(trunk, ids, attend)[0, :-1].float() for ids in (tokens, changed))
    return float((before - after).abs().max() / before.abs().max())


def one_way_layers(trunk: PreTrainedModel, tokens: Tensor, attend: Tensor | None = None) -> list[str]:
    """Names of the layers in which the first of the first row's `tokens` (B, L) takes nothing from the last one.

    Each layer is run once more on its own input and differentiated: a causal layer behind a bidirectional one is found too (linear
    attention, convolution and recurrence are causal by construction). A masked weight is exactly 0, so the gradient is too.
    """
    found: list[str] = []
    layers = [
        (name, module)
        for name, module in trunk.named_modules()
        if isinstance(module, transformers.modeling_layers.GradientCheckpointingLayer)
    ]
    handles = [module.register_forward_hook(_watch(name, found), with_kwargs=True) for name, module in layers]
    try:
        _run(trunk, tokens, attend)
    finally:
        for handle in handles:
            handle.remove()
    return found


def turn(trunk: PreTrainedModel, causal: bool, tokens: Tensor) -> None:
    """Make the trunk look the asked way, tried on `tokens` (1, 3); raises ValueError when it does not."""
    title, masked = type(trunk).__name__, hub.is_masked_lm(trunk)
    if causal and masked:
        raise ValueError(f"{title} is a masked LM, bidirectional by construction: ask for causal=False or take a causal LM")
    config = trunk.config.get_text_config(decoder=True)
    if not masked and getattr(config, "is_causal", True) != causal:  # stock configurations lack the field until it is set
        config.is_causal = causal
    for ids, attend in _unpadded_and_padded(tokens):
        ahead = look_ahead(trunk, ids, attend)
        if causal and ahead > _ROUNDING:
            raise ValueError(f"{title} lets a position see later tokens: it cannot serve as a causal model")
        one_way = [] if causal else one_way_layers(trunk, ids, attend)
        if not causal and (one_way or ahead == 0):
            where = f"in {len(one_way)} layers, the first {one_way[0]}" if one_way else "throughout"
            raise ValueError(f"{title} stays causal {where}, also with is_causal=False: choose another model for diffusion")


@contextmanager
def turned_causal(trunk: PreTrainedModel) -> Iterator[None]:
    """A bidirectional trunk that looks back only while this lasts."""
    config = trunk.config.get_text_config(decoder=True)
    before = config.is_causal
    config.is_causal = True
    try:
        yield
    finally:
        config.is_causal = before


def turns_causal(trunk: PreTrainedModel, tokens: Tensor) -> bool:
    """Whether `turned_causal` keeps a bidirectional trunk from looking ahead, tried on `tokens` (1, 3)."""
    if hub.is_masked_lm(trunk):
        return False
    with turned_causal(trunk):
        return all(look_ahead(trunk, ids, attend) <= _ROUNDING for ids, attend in _unpadded_and_padded(tokens))


def _unpadded_and_padded(tokens: Tensor) -> list[tuple[Tensor, Tensor | None]]:
    """Padding makes a model write its mask out: another path."""
    return [(tokens, None), (tokens.expand(2, -1), torch.tensor([[1, 1, 1], [1, 1, 0]], device=tokens.device))]


def _run(trunk: PreTrainedModel, tokens: Tensor, attend: Tensor | None) -> Tensor:
    logits: Tensor = trunk(input_ids=tokens, attention_mask=attend, **without_cache(trunk)).logits
    return logits


def _watch(name: str, found: list[str]) -> Any:
    def again(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        named = "hidden_states" in kwargs
        hidden = (kwargs["hidden_states"] if named else args[0]).detach().requires_grad_()
        with torch.enable_grad():
            second = module.forward(*args, **{**kwargs, "hidden_states": hidden}) if named else module.forward(hidden, *args[1:], **kwargs)
            first_row = (second[0] if isinstance(second, tuple) else second)[0, 0]
            probe = torch.arange(len(first_row), device=first_row.device).cos()  # a constant one would not see through a layer norm
            (gradient,) = torch.autograd.grad((first_row * probe).sum(), hidden)
        if not bool(gradient[0, -1].any()):
            found.append(f"{name} ({type(module).__name__})")

    return again
