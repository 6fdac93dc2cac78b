r"""Set transformer: self-attention among members without positions, then pooling by attention.

.. math:: s(x) = \mathrm{Attention}(q, H, H), \qquad H = \mathrm{Encoder}(\{t\} \cup \{W x_i\}_{i \in P})

with a learned query q, and a learned member t that is always present, so that an empty set has a summary too. Lee et al.
(2019), https://arxiv.org/abs/1810.00825.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..settings import NetworkSettings
from .base import as_steps, steps


class SetTransformer(nn.Module):
    """``layers`` of attention with ``heads`` heads over members as wide as ``width``."""

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features, self.settings = settings.features, settings
        self.enter = nn.Linear(steps(shape, settings)[1], settings.width)
        self.attention = Attention(settings)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        return self.attention(self.enter(as_steps(x, self.settings)), present)


class Attention(nn.Module):
    """Encoder and pooling, for members as wide as ``width``."""

    def __init__(self, settings: NetworkSettings) -> None:
        super().__init__()
        width = settings.width
        layer = nn.TransformerEncoderLayer(
            width, settings.heads, 2 * width, dropout=0.0, activation=nn.SiLU(), batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        self.first = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.query = nn.Parameter(0.1 * torch.randn(1, 1, width))
        self.pool = nn.MultiheadAttention(width, settings.heads, batch_first=True)
        self.leave = nn.Linear(width, settings.features)

    def forward(
        self, members: Float[Tensor, "rows member width"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        rows = len(members)
        absent = None if present is None else nn.functional.pad(~present, (1, 0), value=False)
        tokens = torch.cat([self.first.expand(rows, -1, -1), members], 1)
        encoded = self.encoder(tokens, src_key_padding_mask=absent)
        pooled, _ = self.pool(
            self.query.expand(rows, -1, -1), encoded, encoded, key_padding_mask=absent, need_weights=False
        )
        return self.leave(pooled[:, 0])
