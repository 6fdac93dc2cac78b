r"""Deep set: a function of members that does not know their order,

.. math:: s(x) = \rho\Big(\frac{1}{|P|} \sum_{i \in P} \phi(x_i)\Big)

with P the members that are present. Zaheer et al. (2017), https://arxiv.org/abs/1703.06114.
"""

from __future__ import annotations

import zuko.nn
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings
from .base import as_steps, steps


class DeepSet(nn.Module):
    """Both networks have hidden layers of widths ``hidden``; a member's code is as wide as the last of them."""

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features, self.settings = settings.features, settings
        width = settings.hidden[-1] if settings.hidden else settings.features
        self.member = zuko.nn.MLP(steps(shape, settings)[1], width, hidden_features=settings.hidden, activation=nn.SiLU)
        self.whole = zuko.nn.MLP(width, settings.features, hidden_features=settings.hidden, activation=nn.SiLU)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        codes = self.member(as_steps(x, self.settings))
        return self.whole(codes.mean(1) if present is None else _mean(codes, present))


def _mean(codes: Float[Tensor, "rows member code"], present: Bool[Tensor, "rows member"]) -> Tensor:
    """Over present members; 0 where there are none."""
    weights = present.to(codes)
    return (codes * weights[..., None]).sum(1) / weights.sum(1, keepdim=True).clamp(min=1)
