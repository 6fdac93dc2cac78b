"""Small networks that several estimators share."""

from __future__ import annotations

from collections.abc import Sequence

import zuko.nn
from jaxtyping import Float
from torch import Tensor, nn


class ValidityLogit(nn.Module):
    """z → logit of p(valid | theta).

    Args:
        parameters: How many.
    """

    def __init__(self, parameters: int) -> None:
        super().__init__()
        self.network = zuko.nn.MLP(parameters, 1, (64, 64), activation=nn.SiLU)

    def forward(self, z: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch"]:
        return self.network(z)[..., 0]


class ResidualNetwork(nn.Sequential):
    """A linear layer, residual blocks of two layers with layer normalisation, and one number out.

    He et al. (2016), https://arxiv.org/abs/1603.05027, with the normalisation before each block.

    Args:
        features: Numbers in.
        widths: Of each block; a linear layer lies between blocks of different widths.
    """

    def __init__(self, features: int, widths: Sequence[int]) -> None:
        layers: list[nn.Module] = []
        for before, width in zip((features, *widths), widths, strict=False):
            layers += [nn.Linear(before, width)] if before != width or not layers else []
            layers.append(_Block(width))
        super().__init__(*layers, nn.SiLU(), nn.Linear(widths[-1], 1), nn.Flatten(-2))


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.change = nn.Sequential(
            nn.LayerNorm(width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width)
        )

    def forward(self, h: Tensor) -> Tensor:
        return h + self.change(h)
