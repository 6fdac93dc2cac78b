r"""Convolutions on a circle: what moves along an axis and comes in again at its other end is the same thing elsewhere.

Padding is circular and nothing is skipped, so that feature maps h move along with x by whole bins, exactly; a stride would keep every
other bin only, and be right for every other shift. Layer i looks at every (kernel to the power of i)-th neighbour in its place: what
all of them see together grows as fast as with strides. Of the maps, and of weights :math:`w_j = \operatorname{softmax}(A_j h)` over all
places, come

.. math:: \overline{h}, \quad \sum_t w_j(t)\, h(t) \qquad \text{and} \qquad \sum_t w_j(t)\, e^{2 \pi i k t / L}, \quad k = 1, 2, 4, \dots

The first two do not change when x is shifted; the last turn by :math:`2 \pi k a / L` when it is shifted by a, and are where it is: without
them an average over all places does not tell. Cohen & Welling (2016), https://arxiv.org/abs/1602.07576.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import zuko.nn
from jaxtyping import Bool, Complex, Float
from torch import Tensor, nn

from ..settings import NetworkSettings
from .base import IMAGES, as_image, as_steps, image, steps

_PLACES = 4  # weights over places, each of which may find something else
_FINEST = 4  # bins in the shortest period that tells a place


class CircularCNN(nn.Module):
    """Layers of ``channels``, all at full resolution; averages, and with ``position`` phases; dense layers of ``hidden``.

    Args:
        shape: Of one series, or of one image, with or without channels.
        settings: Widths, kernel, whether to keep where things are.
    """

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.features, self.settings = settings.features, settings
        self._flat = settings.kind in IMAGES
        inputs, sides = _sizes(shape, settings)
        convolution = nn.Conv2d if self._flat else nn.Conv1d
        layers: list[nn.Module] = []
        for i, (before, after) in enumerate(pairwise((inputs, *settings.channels))):
            apart = _apart(settings.kernel, i, min(sides))
            padding = apart * (settings.kernel // 2)
            made = convolution(before, after, settings.kernel, padding=padding, dilation=apart, padding_mode="circular")
            layers += [made, nn.SiLU()]
        self.convolutions = nn.Sequential(*layers)
        self.places = convolution(settings.channels[-1], _PLACES, 1)
        self._harmonics = [_harmonics(side) for side in sides] if settings.position else []
        inside = settings.channels[-1] * (1 + _PLACES) + 2 * _PLACES * sum(map(len, self._harmonics))
        self.dense = zuko.nn.MLP(inside, settings.features, hidden_features=settings.hidden, activation=nn.SiLU)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        invariant, phases = self.parts(x)
        return self.dense(torch.cat([invariant, torch.view_as_real(phases).flatten(1)], 1))

    def parts(
        self, x: Float[Tensor, "rows *shape"]
    ) -> tuple[Float[Tensor, "rows invariant"], Complex[Tensor, "rows phase"]]:
        """What does not change when x is shifted, and what turns: for each axis, harmonic and set of weights."""
        given = as_image(x, self.settings) if self._flat else as_steps(x, self.settings).transpose(1, 2)
        maps = self.convolutions(given)
        weights = self.places(maps).flatten(2).softmax(-1)
        seen = torch.einsum("rpt,rct->rpc", weights, maps.flatten(2)).flatten(1)
        return torch.cat([maps.flatten(2).mean(-1), seen], 1), self._phases(weights.unflatten(2, maps.shape[2:]))

    def _phases(self, weights: Float[Tensor, "rows place *sides"]) -> Complex[Tensor, "rows phase"]:
        found = [torch.view_as_complex(weights.new_zeros(len(weights), 0, 2))]
        for axis, harmonics in enumerate(self._harmonics, start=2):
            others = tuple(i for i in range(2, weights.ndim) if i != axis)
            spectrum = torch.fft.rfft(weights.sum(others) if others else weights, dim=-1)
            found.append(spectrum[..., harmonics].conj().flatten(1))
        return torch.cat(found, 1)


def _sizes(shape: tuple[int, ...], settings: NetworkSettings) -> tuple[int, tuple[int, ...]]:
    """Channels, and bins along every axis."""
    if settings.kind in IMAGES:
        channels, *sides = image(shape, settings)
        return channels, tuple(sides)
    length, channels = steps(shape, settings)
    return channels, (length,)


def _apart(kernel: int, layer: int, side: int) -> int:
    """How far apart neighbours are, at most so far that a layer goes round once."""
    return max(1, min(kernel**layer, (side - 1) // max(1, kernel - 1)))


def _harmonics(side: int) -> list[int]:
    """Powers of two, down to periods of four bins."""
    return [2**i for i in range(side.bit_length()) if 2**i <= max(1, side // _FINEST)]
