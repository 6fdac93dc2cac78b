r"""Coordinates of about unit size on the real line for what a density is to learn relative to a pose.

.. math:: y = \operatorname{arsinh} t, \qquad t = (v - m) / s

for a displacement v; the same of the logarithm of a factor. m and s are the median of the training rows and how far off two thirds of
them lie at most. A pose that is found far off, as in noise now and then, is thus a few units away and not hundreds. An angle, on the
circle cut open half a turn away from m, is first stretched near the cut, and nowhere else:

.. math:: t = \tfrac{u}{s} + \log(1 - e^{-(u + \pi) / s}) - \log(1 - e^{-(\pi - u) / s}), \qquad u = v - m \in (-\pi, \pi),

the inverse of a soft clipping (`SoftClip` of TensorFlow Probability), so that nothing has mass beyond the circle.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .base import wrapped

Kind = Literal["line", "factor", "circle"]
_EDGE = 1e-9  # of the circle, in units of s: nearer to the cut nothing is told apart
_LEAST = 1e-12  # of s, where all rows are alike
_MOST_ROWS = 2**20
_SHARE = 2 / 3  # of the rows within s


class Charts(nn.Module):
    """Columns of theta' ↔ coordinates; other columns stay as they are.

    Args:
        kinds: Column → what it is.
    """

    middle: Tensor
    scale: Tensor

    def __init__(self, kinds: Mapping[int, Kind]) -> None:
        super().__init__()
        self.kinds = dict(kinds)
        self.register_buffer("middle", torch.zeros(len(kinds), dtype=torch.float64))
        self.register_buffer("scale", torch.ones(len(kinds), dtype=torch.float64))

    def fit(self, parts: Iterable[Float[Tensor, "rows parameter"]]) -> None:
        """Take m and s from rows, a million at most."""
        found: list[Tensor] = []
        for rows in parts:
            found.append(torch.stack([self._line(rows, k) for k in self.kinds], 1))
            if sum(map(len, found)) >= _MOST_ROWS:
                break
        for i, (column, kind) in enumerate(zip(torch.cat(found).unbind(1), self.kinds.values(), strict=True)):
            mean = torch.atan2(column.sin().mean(), column.cos().mean()) if kind == "circle" else torch.zeros(())
            off = wrapped(column - mean) if kind == "circle" else column
            self.middle[i] = mean + off.median()
            self.scale[i] = (
                (off - off.median()).abs().kthvalue(1 + int(_SHARE * (len(off) - 1))).values.clamp(min=_LEAST)
            )

    def forward(self, relative: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows parameter"]:
        columns = list(relative.unbind(1))
        for i, (k, kind) in enumerate(self.kinds.items()):
            off = self._line(relative, k) - self.middle[i]
            t = self._opened(wrapped(off), i)[0] if kind == "circle" else off / self.scale[i]
            columns[k] = torch.asinh(t)
        return torch.stack(columns, 1)

    def inverse(self, y: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows parameter"]:
        """theta'."""
        columns = list(y.unbind(1))
        for i, (k, kind) in enumerate(self.kinds.items()):
            t = torch.sinh(y[:, k])
            off = self._closed(t, i) if kind == "circle" else t * self.scale[i]
            columns[k] = (self.middle[i] + off).exp() if kind == "factor" else self.middle[i] + off
        return torch.stack(columns, 1)

    def log_det(self, relative: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows"]:
        """log |dy / d theta'|."""
        total = -self.scale.log().sum().expand(len(relative))
        for i, (k, kind) in enumerate(self.kinds.items()):
            off = self._line(relative, k) - self.middle[i]
            t, stretched = self._opened(wrapped(off), i) if kind == "circle" else (off / self.scale[i], 0.0)
            total = total + stretched - 0.5 * torch.log1p(t.square())
            if kind == "factor":
                total = total - relative[:, k].log()
        return total

    def _line(self, relative: Tensor, column: int) -> Tensor:
        return relative[:, column].log() if self.kinds[column] == "factor" else relative[:, column]

    def _opened(self, u: Tensor, i: int) -> tuple[Tensor, Tensor]:
        """t, and log of s dt / du."""
        first, second = ((math.pi + sign * u) / self.scale[i] for sign in (1, -1))
        first, second = first.clamp(min=_EDGE), second.clamp(min=_EDGE)
        t = u / self.scale[i] + torch.log(-torch.expm1(-first)) - torch.log(-torch.expm1(-second))
        return t, torch.log1p(torch.exp(-first) / -torch.expm1(-first) + torch.exp(-second) / -torch.expm1(-second))

    def _closed(self, t: Tensor, i: int) -> Tensor:
        end, far = math.pi / self.scale[i], t.abs()
        inside = torch.minimum(far, end) + torch.log1p((-end - far).exp()) - torch.log1p((-(far - end).abs()).exp())
        return self.scale[i] * t.sign() * inside
