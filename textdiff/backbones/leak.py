"""Which tokens a stock model lets a position see, found by changing a token and looking who notices."""

import inspect
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel


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
