"""The contract of an embedding: standardised x of one observable in, summaries out.

A network is made as ``Network(shape, settings)``, shape being that of one row, and has ``features``, the number of its
summaries. It is called with ``(rows, *shape)`` and, where a mask says which members of a set or steps of a series are
there, with that as ``present``; entries of absent ones are 0 by then. What it is made of comes from torch.nn and zuko.nn.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Float
from torch import Tensor

from ..settings import NetworkSettings

FLAT = ("none", "mlp", "resnet")
IMAGES = ("cnn2d", "resnet2d", "circular2d")
SETS = ("deep_set", "points3d", "set_transformer")
TURNED = ("points3d",)  # whose coordinates are scaled alike, and by nothing else, so that they can be turned
SERIES = ("cnn1d", "circular1d", "transformer", "gru")


@runtime_checkable
class Network(Protocol):
    """A `torch.nn.Module` with ``features`` that can be called with x, and with x and ``present``."""

    features: int

    def __call__(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        """Summaries of every row, each of its own row alone."""


def channel_axis(shape: tuple[int, ...], settings: NetworkSettings) -> int | None:
    """Which axis holds channels: of images the first of three, of sets and series the last of two, unless told otherwise."""
    axes, image = len(shape), settings.kind in IMAGES
    if axes < 2 or (image and axes < 3):
        return None
    side = settings.channel_axis or ("first" if axes > 2 else "last")
    return 0 if side == "first" else axes - 1


def steps(shape: tuple[int, ...], settings: NetworkSettings) -> tuple[int, int]:
    """How many members or steps one row has, and how many channels each: ``(n,)`` has one channel."""
    if len(shape) == 1:
        return shape[0], 1
    first, second = shape
    return (second, first) if settings.channel_axis == "first" else (first, second)


def as_steps(x: Float[Tensor, "rows *shape"], settings: NetworkSettings) -> Float[Tensor, "rows step channel"]:
    """Members or steps first, channels last."""
    if x.ndim == 2:
        return x[..., None]
    return x.transpose(1, 2) if settings.channel_axis == "first" else x


def image(shape: tuple[int, ...], settings: NetworkSettings) -> tuple[int, int, int]:
    """Channels, rows and columns of one image: ``(rows, columns)`` has one channel."""
    if len(shape) == 2:
        return 1, shape[0], shape[1]
    first, second, third = shape
    return (third, first, second) if settings.channel_axis == "last" else (first, second, third)


def as_image(x: Float[Tensor, "rows *shape"], settings: NetworkSettings) -> Float[Tensor, "rows channel height width"]:
    """Channels first, as torch's convolutions take them."""
    if x.ndim == 3:
        return x[:, None]
    return x.movedim(-1, 1) if settings.channel_axis == "last" else x
