"""Convolutions over an image: LeCun et al. (1998), https://doi.org/10.1109/5.726791."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import zuko.nn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings
from .base import as_image, image

_KEPT = 4  # rows and columns that are left for the dense layers, which thus know where things are

Layer = Callable[[int, int, int], list[nn.Module]]


class CNN2d(nn.Module):
    """Layers of ``channels``, all but the first halving the image; averages over at most 4 × 4 patches; dense layers of
    ``hidden``.

    Args:
        shape: Of one image, with or without channels.
        settings: Widths, kernel.
        layer: Makes the modules of one layer from channels before, channels after and stride; a convolution when None.
    """

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings, layer: Layer | None = None) -> None:
        super().__init__()
        self.features, self.settings = settings.features, settings
        inputs, *sides = image(shape, settings)
        widths, make = (inputs, *settings.channels), layer or _convolution(settings.kernel)
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise(widths)):
            stride = 1 if i == 0 else 2
            layers += make(before, after, stride)
            sides = [-(-side // stride) for side in sides]
        kept = min(sides[0], _KEPT), min(sides[1], _KEPT)
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(kept), nn.Flatten())
        inside = widths[-1] * kept[0] * kept[1]
        self.dense = zuko.nn.MLP(inside, settings.features, hidden_features=settings.hidden, activation=nn.SiLU)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        return self.dense(self.convolutions(as_image(x, self.settings)))


def _convolution(kernel: int) -> Layer:
    return lambda before, after, stride: [nn.Conv2d(before, after, kernel, stride, kernel // 2), nn.SiLU()]
