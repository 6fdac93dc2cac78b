"""Symmetries put together: a pose with actions on observables, and several symmetries that commute."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .base import Action, LieGroup, Pose, Symmetry
from .product import Product


@dataclass(frozen=True, slots=True)
class PosedSymmetry:
    """One group, by the pose that theta carries and what it does to each observable.

    Args:
        group: Of the poses.
        on_theta: The pose.
        on_x: Observable → action; others stay as they are.
    """

    group: LieGroup
    on_theta: Pose
    on_x: Mapping[str, Action]

    @property
    def parameters(self) -> tuple[str, ...]:
        return self.on_theta.parameters

    def pose(self, theta: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows element"]:
        return self.on_theta.of(theta)

    def place(
        self, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        return self.on_theta.place(theta, g)

    def act_theta(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows parameter"]:
        return self.on_theta.act(g, theta)

    def log_det_theta(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows"]:
        return self.on_theta.log_det(g, theta)

    def act_x(self, g: Float[Tensor, "rows element"], x: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**x, **{name: action(g, x[name]) for name, action in self.on_x.items()}}

    def log_det_x(self, g: Float[Tensor, "rows element"], x: dict[str, Tensor]) -> Float[Tensor, "rows"]:
        return torch.stack([action.log_det(g, x[name]) for name, action in self.on_x.items()]).sum(0)


class ProductSymmetry:
    """Several symmetries that commute, each with parameters of its own.

    Args:
        components: Name → symmetry; they act in this order.
    """

    def __init__(self, components: Mapping[str, Symmetry]) -> None:
        self.components = dict(components)
        self.group = Product({name: component.group for name, component in self.components.items()})

    @property
    def parameters(self) -> tuple[str, ...]:
        return tuple(name for component in self.components.values() for name in component.parameters)

    def pose(self, theta: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows element"]:
        return self.group.join({name: component.pose(theta) for name, component in self.components.items()})

    def place(
        self, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        for component, part in self._parts(g):
            theta = component.place(theta, part)
        return theta

    def act_theta(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows parameter"]:
        for component, part in self._parts(g):
            theta = component.act_theta(part, theta)
        return theta

    def log_det_theta(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows"]:
        total = torch.zeros_like(g[:, 0])
        for component, part in self._parts(g):
            total = total + component.log_det_theta(part, theta)
            theta = component.act_theta(part, theta)
        return total

    def act_x(self, g: Float[Tensor, "rows element"], x: dict[str, Tensor]) -> dict[str, Tensor]:
        for component, part in self._parts(g):
            x = component.act_x(part, x)
        return x

    def log_det_x(self, g: Float[Tensor, "rows element"], x: dict[str, Tensor]) -> Float[Tensor, "rows"]:
        total = torch.zeros_like(g[:, 0])
        for component, part in self._parts(g):
            total = total + component.log_det_x(part, x)
            x = component.act_x(part, x)
        return total

    def _parts(self, g: Tensor) -> list[tuple[Symmetry, Tensor]]:
        split = self.group.split(g)
        return [(component, split[name]) for name, component in self.components.items()]
