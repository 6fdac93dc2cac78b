"""Convolutions along a series: LeCun et al. (1998), https://doi.org/10.1109/5.726791, in one dimension."""

from __future__ import annotations

from itertools import pairwise

import torch
import zuko.nn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings
from .base import as_steps, steps

_KEPT = 8  # steps that are left for the dense layers, which thus know roughly where


class CNN1d(nn.Module):
    """Layers of ``channels``, all but the first halving the length; averages over eighths; dense layers of ``hidden``."""

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features, self.settings = settings.features, settings
        length, inputs = steps(shape, settings)
        widths = (inputs + (settings.mask is not None), *settings.channels)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            stride = 1 if i == 0 else 2
            layers += [nn.Conv1d(before, after, settings.kernel, stride, settings.kernel // 2), nn.SiLU()]
            length = -(-length // stride)
        kept = min(length, _KEPT)
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool1d(kept), nn.Flatten())
        self.dense = zuko.nn.MLP(
            widths[-1] * kept, settings.features, hidden_features=settings.hidden, activation=nn.SiLU
        )

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        series = as_steps(x, self.settings)
        if present is not None:
            series = torch.cat([series, present[..., None].to(series)], -1)
        return self.dense(self.convolutions(series.transpose(1, 2)))
