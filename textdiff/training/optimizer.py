"""AdamW with decay on matrices only, and the learning rate as a function of the step."""

import math
from collections.abc import Mapping

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


def build_optimizer(parameters: Mapping[str, Tensor], weight_decay: float, betas: tuple[float, float]) -> torch.optim.AdamW:
    """Fused AdamW (Loshchilov and Hutter 2019); weight decay acts on matrices, not on biases, gains and other vectors.

    Raises ValueError when a weight is not float32: updates of 1e-4 vanish in bfloat16 weights.
    """
    narrow = [name for name, parameter in parameters.items() if parameter.dtype != torch.float32]
    if narrow:
        raise ValueError(
            f"weight {narrow[0]!r} is {parameters[narrow[0]].dtype}, training needs float32 weights: "
            "load the model in float32 and turn on bf16 for the arithmetic"
        )
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    vectors = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=0.0, betas=betas, fused=True)
