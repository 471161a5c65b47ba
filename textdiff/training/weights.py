"""Weights, average and optimizer state as plain named tensors, whole on the CPU whatever the sharding, and back again."""

from collections.abc import Mapping

import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

_MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW holds for each parameter


def whole(tensor: Tensor) -> Tensor:
    """The full tensor of a shard (a collective call), or the tensor itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and persistent buffers of `model` by name; tied ones once, under their first name."""
    kept = model.state_dict().keys()
    return {name: tensor for name, tensor in (*model.named_parameters(), *model.named_buffers()) if name in kept}


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that the optimizer changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gather(tensors: Mapping[str, Tensor], keep: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, or nothing when this process does not `keep` them; a collective call when they are sharded."""
    gathered = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            gathered[name] = full.cpu()
    return gathered


@torch.no_grad()
def restore(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    """Copy `saved` into `tensors` in place; raises ValueError unless names and shapes agree."""
    if tensors.keys() != saved.keys():
        missing, unknown = sorted(tensors.keys() - saved.keys()), sorted(saved.keys() - tensors.keys())
        raise ValueError(f"the checkpoint is of another model: it lacks {missing[:3]} and has unknown {unknown[:3]}")
    for name, tensor in tensors.items():
        if tensor.shape != saved[name].shape:
            raise ValueError(f"the checkpoint is of another model: {name} is {tuple(saved[name].shape)}, expected {tuple(tensor.shape)}")
        tensor.copy_(_like(saved[name], tensor))


def _like(value: Tensor, tensor: Tensor) -> Tensor:
    value = value.to(device=tensor.device, dtype=tensor.dtype)
    return distribute_tensor(value, tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else value


def optimizer_tensors(optimizer: AcceleratedOptimizer, parameters: Mapping[str, nn.Parameter]) -> dict[str, Tensor]:
    """The moments of each parameter as `exp_avg/<name>` and so on; empty before the first step."""
    states = {name: optimizer.state[parameter] for name, parameter in parameters.items() if parameter in optimizer.state}
    return {f"{moment}/{name}": state[moment] for name, state in states.items() for moment in _MOMENTS}


def restore_optimizer(optimizer: AcceleratedOptimizer, parameters: Mapping[str, nn.Parameter], saved: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_tensors`; raises ValueError when a parameter's moments are not there."""
    if saved.keys() != {f"{moment}/{name}" for name in parameters for moment in _MOMENTS}:
        raise ValueError("the checkpoint's optimizer state is of another set of trainable parameters: train the same ones or start anew")
    for name, parameter in parameters.items():
        step = saved[f"step/{name}"].to(parameter.device)
        moments = {moment: _like(saved[f"{moment}/{name}"], parameter) for moment in _MOMENTS[1:]}
        optimizer.state[parameter] = {"step": step, **moments}
