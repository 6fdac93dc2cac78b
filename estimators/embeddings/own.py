"""A network of the user's own: any `torch.nn.Module` class, called with the shape of its observable and `arguments`.

A configuration names it, ``module:Class`` or ``file.py:Class``, and it is imported where the configuration is the user's:
in training and in a run. A model file only keeps the name. Whoever loads one hands over the class, because nothing that a
model file names is ever imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ...data import registry
from ...data.errors import ConfigError, ShapeError, UnknownNameError
from ...simulators.entries import absolute
from ..settings import EmbeddingSettings, NamedModule, NetworkSettings
from ..structure import Scaling
from .base import channel_axis


class Own(nn.Module):
    """The user's network, checked: it gives ``(rows, features)``, which is found by asking it about two rows of zeros.

    Raises:
        UnknownNameError: Only its name is known.
        ConfigError: It cannot be made of the arguments, or is no `torch.nn.Module`.
        ShapeError: It gives something else.
    """

    def __init__(self, shape: tuple[int, ...], settings: NetworkSettings) -> None:
        super().__init__()
        self.network = _made(shape, settings)
        self.features = self._probed(shape, settings)

    def forward(
        self, x: Float[Tensor, "rows *shape"], present: Bool[Tensor, "rows member"] | None = None
    ) -> Float[Tensor, "rows feature"]:
        return self.network(x) if present is None else self.network(x, present)

    def _probed(self, shape: tuple[int, ...], settings: NetworkSettings) -> int:
        self.eval()
        member_axis = Scaling(channel_axis=channel_axis(shape, settings)).member_axis
        present = [torch.ones(2, shape[member_axis], dtype=torch.bool)] if settings.mask else []
        with torch.no_grad():
            given = self.network(torch.zeros(2, *shape), *present)
        self.train()
        if not isinstance(given, Tensor) or given.ndim != 2 or len(given) != 2:
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ShapeError(
                f"`{settings.name}` must give (rows, features) for x of shape {('rows', *shape)}; got {got} for 2 rows"
            )
        return given.shape[1]


def imported(settings: EmbeddingSettings, folder: Path | None = None) -> dict[str, Any]:
    """Name → class, for every class that the settings name: imports them, so only of settings that the user wrote.

    Args:
        settings: As written.
        folder: What files and modules are relative to; the working directory when None.

    Raises:
        UnknownNameError: No such module or class.
        MissingFileError: No such file.
    """
    return {part.name: _class(part, folder) for part in settings.networks() if ":" in part.name}


def with_classes(settings: EmbeddingSettings, classes: Mapping[str, Any]) -> EmbeddingSettings:
    """The settings with classes in place of their names; ``classes`` has them by full name or by what follows the colon."""

    def found(network: NetworkSettings) -> str | NamedModule:
        build = handed_over(network.name, classes)
        return network.kind if build is None else NamedModule(network.name, build)

    return settings.replaced(found)


def handed_over(name: str, objects: Mapping[str, Any]) -> Any:
    """What the user gave for a name, by all of it or by what follows the colon; None where there is nothing."""
    return objects.get(name, objects.get(name.rpartition(":")[2]))


def absolute_names(settings: EmbeddingSettings, folder: Path) -> EmbeddingSettings:
    """The same with names of files that hold from anywhere."""
    return settings.replaced(
        lambda network: absolute(network.name, folder) if isinstance(network.kind, str) else network.kind
    )


def _class(settings: NetworkSettings, folder: Path | None) -> Any:
    kind = settings.kind
    return kind.build if isinstance(kind, NamedModule) else registry.resolve("estimators", kind, folder)


def _made(shape: tuple[int, ...], settings: NetworkSettings) -> nn.Module:
    if not isinstance(settings.kind, NamedModule):
        raise UnknownNameError(
            f"the embedding `{settings.name}` is a class of your own, and a model imports nothing: hand it over, "
            f"load(folder, modules={{{settings.name!r}: {settings.name.rpartition(':')[2]}}})"
        )
    try:
        network = settings.kind.build(shape, **settings.arguments)
    except TypeError as error:
        raise ConfigError(
            f"`{settings.name}` cannot be made of shape {shape} and {settings.arguments}: {error}"
        ) from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"`{settings.name}` must make a torch.nn.Module; got {type(network).__name__}")
    return network
