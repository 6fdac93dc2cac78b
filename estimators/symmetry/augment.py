r"""Augmentation by group action: rows moved to other poses, which a symmetric simulator would have simulated there.

.. math:: (\theta, x) \to (h \theta, T_h x), \qquad h = g_* g_\theta^{-1}, \quad g_* \sim p(g)

The new pose is drawn from the prior; where the prior of the other parameters is moved along, rows that would leave its support
stay as they are.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ...data.batch import Batch
from ...simulators.prior import Prior
from ..noise import combine, normal
from .base import Symmetry

_STREAM = 1  # apart from the numbers that the same key gives to others


def movement(
    symmetry: Symmetry, prior: Prior, theta: Float[Tensor, "rows parameter"], key: Int[Tensor, "rows"]
) -> Float[Tensor, "rows element"]:
    """h, a function of keys."""
    drawn = prior.from_unconstrained(normal(combine(key, torch.full_like(key, _STREAM)), prior.dim))
    group = symmetry.group
    h = group.compose(symmetry.pose(drawn), group.inverse(symmetry.pose(theta)))
    inside = prior.contains(symmetry.act_theta(h, theta))
    return torch.where(inside[:, None], h, group.identity(len(h)).to(h))


def augmented(symmetry: Symmetry, prior: Prior, batch: Batch, key: Int[Tensor, "rows"]) -> Batch:
    """The rows at poses that are functions of keys."""
    h = movement(symmetry, prior, batch.theta, key)
    return Batch(symmetry.act_theta(h, batch.theta), symmetry.act_x(h, batch.x))
