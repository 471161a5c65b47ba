"""Which tokens a stock model lets a position see, found by changing a token and looking who notices."""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def without_cache(trunk: PreTrainedModel) -> dict[str, bool]:
    """The argument that keeps a causal LM from filling a cache; masked LMs do not know it."""
    return {"use_cache": False} if "use_cache" in inspect.signature(trunk.forward).parameters else {}


def sees_ahead(trunk: PreTrainedModel, tokens: Tensor) -> bool:
    """Whether the logits before the last of `tokens` (1, L), L >= 2, notice that the last one is replaced by the first.

    A mixture of experts groups its tokens, so a change far away moves its rounding: a difference counts from 1 % of the largest logit.
    """
    changed = tokens.clone()
    changed[:, -1] = tokens[:, 0]
    before, after = (trunk(input_ids=ids, **without_cache(trunk)).logits[:, :-1].float() for ids in (tokens, changed))
    return bool((before - after).abs().max() > 0.01 * before.abs().max())


def one_way_layers(trunk: PreTrainedModel, tokens: Tensor) -> list[str]:
    """Names of the layers in which the first of `tokens` (1, L) takes nothing from the last one.

    Each layer is run a second time on its own input with the last row reversed: a causal layer behind a bidirectional one is found too
    (linear attention, convolution and recurrence are causal by construction).
    """
    found: list[str] = []

    def watch(name: str) -> Any:
        def again(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            inside = "hidden_states" in kwargs
            hidden = kwargs["hidden_states"] if inside else args[0]
            changed = torch.cat([hidden[:, :-1], hidden[:, -1:].flip(-1)], dim=1)
            second = module.forward(*args, **{**kwargs, "hidden_states": changed}) if inside else module.forward(changed, *args[1:], **kwargs)
            if torch.equal(_hidden(output)[:, 0], _hidden(second)[:, 0]):
                found.append(f"{name} ({type(module).__name__})")

        return again

    layers = [(name, module) for name, module in trunk.named_modules() if isinstance(module, GradientCheckpointingLayer)]
    handles = [module.register_forward_hook(watch(name), with_kwargs=True) for name, module in layers]
    try:
        trunk(input_ids=tokens, **without_cache(trunk))
    finally:
        for handle in handles:
            handle.remove()
    return found


def _hidden(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden
