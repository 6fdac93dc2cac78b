"""Transformer over a series: attention among steps that know their place. Vaswani et al. (2017),
https://arxiv.org/abs/1706.03762, pooled as in `set_transformer`.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings
from .base import as_steps, steps
from .set_transformer import Attention


class Transformer(nn.Module):
    """``layers`` of attention with ``heads`` heads over steps as wide as ``width``."""

    positions: Tensor

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features, self.settings = settings.features, settings
        length, channels = steps(shape, settings)
        self.enter = nn.Linear(channels, settings.width)
        self.attention = Attention(settings)
        self.register_buffer("positions", _positions(length, settings.width), persistent=False)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        return self.attention(self.enter(as_steps(x, self.settings)) + self.positions, present)


def _positions(length: int, width: int) -> Float[Tensor, "step width"]:
    """Sines and cosines of geometrically spaced periods, from 2π to 20,000π steps."""
    frequencies = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)
    angles = torch.arange(length)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)
