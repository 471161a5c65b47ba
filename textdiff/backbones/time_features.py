"""What a network is told of the noise level."""

import math

import torch
from torch import Tensor

TIME_FEATURES = 256  # numbers that stand for one level
_GAMMA = 15.0  # gamma is told within +- this


def level_of(gamma: Tensor) -> Tensor:
    """The level in [0, 1] that stands for gamma = -log SNR, of any shape: linear within +-15, constant beyond."""
    return (gamma.clamp(-_GAMMA, _GAMMA) + _GAMMA) / (2 * _GAMMA)


def time_features(noise: Tensor, scale: float) -> Tensor:
    """cos | sin features (B, 1, 256), or (B, L, 256), of noise levels (B,) or (B, L) in [0, 1], at angles of up to `scale` radians."""
    half = TIME_FEATURES // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=noise.device, dtype=torch.float32) / half)
    angle = scale * (noise if noise.dim() == 2 else noise[:, None]).float()[..., None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1)
