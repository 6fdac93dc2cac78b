"""Networks by name, and the one that sees all of x."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...data.variables import Variables
from ..settings import EmbeddingSettings, NetworkSettings
from ..structure import Scaling, members_present
from .base import FLAT, Network, channel_axis
from .circular import CircularCNN
from .cnn1d import CNN1d
from .cnn2d import CNN2d
from .deep_set import DeepSet
from .gru import GRU
from .mlp import MLP
from .none import Flat
from .own import Own
from .plan import Part, plan
from .points3d import Points3d
from .resnet import ResNet
from .resnet2d import residual_cnn
from .set_transformer import SetTransformer
from .transformer import Transformer

NETWORKS: dict[str, Callable[[tuple[int, ...], NetworkSettings], nn.Module]] = {
    "none": Flat,
    "mlp": MLP,
    "resnet": ResNet,
    "cnn1d": CNN1d,
    "cnn2d": CNN2d,
    "resnet2d": residual_cnn,
    "circular1d": CircularCNN,
    "circular2d": CircularCNN,
    "deep_set": DeepSet,
    "points3d": Points3d,
    "set_transformer": SetTransformer,
    "transformer": Transformer,
    "gru": GRU,
}


def build_network(shape: tuple[int, ...], settings: NetworkSettings) -> Network:
    """One network for x of this shape."""
    return cast(Network, NETWORKS.get(settings.name, Own)(shape, settings))


def build_embedding(settings: EmbeddingSettings, observables: Variables) -> tuple[nn.Module, int]:
    """A module from `Preprocess`'s features ``(rows, features)`` to summaries ``(rows, summaries)``, and how many.

    Raises:
        ShapeError: A network over an observable of a shape it cannot take.
        UnknownNameError: A class of the user's own that was not handed over.
    """
    parts = plan(settings, observables)
    if len(parts) == 1 and settings.kind in FLAT and not settings.observables and not settings.head:
        network = build_network(parts[0].shape, parts[0].settings)
        return cast(nn.Module, network), network.features
    fusion = Fusion(settings, observables)
    return fusion, fusion.features


class Fusion(nn.Module):
    """Several networks, each over its own part of x; their summaries are joined and, with a ``head``, mixed by another.

    Where a network has a mask, the share of members that are there is among the summaries.
    """

    def __init__(self, settings: EmbeddingSettings, observables: Variables) -> None:
        super().__init__()
        self._observables, self._parts = observables, plan(settings, observables)
        networks = [build_network(part.shape, part.settings) for part in self._parts]
        self.networks = nn.ModuleList(cast("list[nn.Module]", networks))
        joined = sum(network.features for network in networks)
        joined += sum(part.settings.mask is not None for part in self._parts)
        self.head = cast(nn.Module, build_network((joined,), settings.head)) if settings.head else nn.Identity()
        self.features = settings.head.features if settings.head else joined

    def forward(self, features: Float[Tensor, "rows feature"]) -> Float[Tensor, "rows summary"]:
        sizes = [variable.size for variable in self._observables]
        x = dict(zip(self._observables.names, features.split(sizes, 1), strict=True))
        summaries = [
            s for part, network in zip(self._parts, self.networks, strict=True) for s in self._asked(part, network, x)
        ]
        return self.head(torch.cat(summaries, 1))

    def _asked(self, part: Part, network: nn.Module, x: dict[str, Tensor]) -> list[Tensor]:
        seen = torch.cat([x[variable.name] for variable in part.variables], 1).reshape(-1, *part.shape)
        if part.settings.mask is None:
            return [network(seen)]
        members = part.shape[Scaling(channel_axis=channel_axis(part.shape, part.settings)).member_axis]
        present = members_present(x[part.settings.mask], members)
        return [network(seen, present), present.to(seen).mean(1, keepdim=True)]
