r"""Poses that columns of theta carry: as the coordinates of a group, or as a factor.

Where theta holds the coordinates v, :math:`\log |\det J_g| = \mathrm{log\_haar}(v) - \mathrm{log\_haar}(v')`, for left
multiplication keeps the Haar measure.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from .base import LieGroup, wrapped


@dataclass(frozen=True, slots=True)
class CoordinatePose:
    """Columns of theta that are coordinates of the pose, counted from an origin.

    Args:
        group: Of the pose.
        parameters: Their names.
        columns: Where in theta they are.
        origin: Their values at the identity.
        centres: The middle of the prior: angles are given within half a turn of it.
        others: Columns that are displaced along with the only coordinate.
        turned: The middles of their priors, where they are angles: they are given within half a turn of it.
    """

    group: LieGroup
    parameters: tuple[str, ...]
    columns: tuple[int, ...]
    origin: tuple[float, ...]
    centres: tuple[float, ...]
    others: tuple[int, ...] = ()
    turned: tuple[float, ...] = ()

    def of(self, theta: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows element"]:
        return self.group.element(self._coordinates(theta))

    def place(
        self, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        values = self.group.coordinates(g).to(theta) + theta.new_tensor(self.origin)
        centres = theta.new_tensor(self.centres)
        circular = torch.tensor(self.group.circular, device=theta.device)
        return _put(theta, self.columns, torch.where(circular, centres + wrapped(values - centres), values))

    def act(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows parameter"]:
        placed = self.place(theta, self.group.compose(g, self.of(theta)))
        if not self.others:
            return placed
        along = theta[:, list(self.others)] + self.group.coordinates(g).to(theta)
        if self.turned:
            centres = theta.new_tensor(self.turned)
            along = centres + wrapped(along - centres)
        return _put(placed, self.others, along)

    def log_det(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows"]:
        after = self.group.coordinates(self.group.compose(g, self.of(theta)))
        return self.group.log_haar(self._coordinates(theta)) - self.group.log_haar(after)

    def _coordinates(self, theta: Tensor) -> Tensor:
        return theta[:, list(self.columns)] - theta.new_tensor(self.origin)


@dataclass(frozen=True, slots=True)
class FactorPose:
    """A column of theta that is a positive factor, and others that are scaled along.

    Args:
        parameters: The name of the factor.
        column: Where in theta it is.
        origin: Its value at the identity.
        others: Columns that are scaled along.
    """

    parameters: tuple[str, ...]
    column: int
    origin: float = 1.0
    others: tuple[int, ...] = ()

    def of(self, theta: Float[Tensor, "rows parameter"]) -> Float[Tensor, "rows element"]:
        return theta[:, [self.column]] / self.origin

    def place(
        self, theta: Float[Tensor, "rows parameter"], g: Float[Tensor, "rows element"]
    ) -> Float[Tensor, "rows parameter"]:
        return _put(theta, (self.column,), g.to(theta) * self.origin)

    def act(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows parameter"]:
        scaled = (self.column, *self.others)
        return _put(theta, scaled, theta[:, list(scaled)] * g.to(theta))

    def log_det(
        self, g: Float[Tensor, "rows element"], theta: Float[Tensor, "rows parameter"]
    ) -> Float[Tensor, "rows"]:
        return (1 + len(self.others)) * g[:, 0].log()


def _put(theta: Tensor, columns: tuple[int, ...], values: Tensor) -> Tensor:
    return theta.index_copy(1, torch.tensor(columns, device=theta.device), values)
