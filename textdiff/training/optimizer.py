"""AdamW with decay on matrices only, and the learning rate as a function of the step."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor


def learning_rate_at(step: int, steps: int, peak: float, warmup: int, final_fraction: float) -> float:
    """The learning rate of step `step`, from 0: linear warm-up over `warmup` steps, then a cosine down to `peak * final_fraction`.

    `final_fraction = 1` keeps the rate constant after the warm-up.
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    done = min(1.0, (step - warmup) / max(1, steps - warmup))
    return peak * (final_fraction + (1 - final_fraction) * (1 + math.cos(math.pi * done)) / 2)


def build_optimizer(
    parameters: Mapping[str, Tensor],
    weight_decay: float,
    betas: tuple[float, float],
    rates: Mapping[str, float] | None = None,
    vectors: Collection[Tensor] = (),
) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019); weight decay acts on matrices, not on biases, gains and other vectors.

    `rates` are multipliers of the learning rate by name (default 1), kept as `rate` in the optimizer's groups; `vectors` are tables of
    which one row is trained. Raises ValueError when a weight is not float32: updates of 1e-4 vanish in bfloat16 weights.
    """
    narrow = [name for name, parameter in parameters.items() if parameter.dtype != torch.float32]
    if narrow:
        raise ValueError(
            f"weight {narrow[0]!r} is {parameters[narrow[0]].dtype}, training needs float32 weights: "
            "load the model in float32 and turn on bf16 for the arithmetic"
        )
    alone = {id(vector) for vector in vectors}
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in parameters.items():
        decays, rate = parameter.ndim >= 2 and id(parameter) not in alone, (rates or {}).get(name, 1.0)
        group = {"params": [], "weight_decay": weight_decay if decays else 0.0, "rate": rate}
        groups.setdefault((decays, rate), group)["params"].append(parameter)
    return torch.optim.AdamW(list(groups.values()), lr=0.0, betas=betas, fused=True)
