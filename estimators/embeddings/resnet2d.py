"""Residual convolutions over an image: He et al. (2016), https://arxiv.org/abs/1603.05027.

Without batch normalisation: a row's summary depends on no other row, and brightness is information.
"""

from __future__ import annotations

from torch import nn
from zuko.nn import Residual

from ..settings import NetworkSettings
from .cnn2d import CNN2d


def residual_cnn(shape: tuple[int, ...], settings: NetworkSettings) -> CNN2d:
    """A `CNN2d` with a residual block of two convolutions behind every convolution."""
    return CNN2d(shape, settings, lambda before, after, stride: _layer(before, after, stride, settings.kernel))


def _layer(before: int, after: int, stride: int, kernel: int) -> list[nn.Module]:
    padding = kernel // 2
    inside = [nn.SiLU(), nn.Conv2d(after, after, kernel, 1, padding)]
    again = [nn.SiLU(), nn.Conv2d(after, after, kernel, 1, padding)]
    return [nn.Conv2d(before, after, kernel, stride, padding), Residual(*inside, *again), nn.SiLU()]
