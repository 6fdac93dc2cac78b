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
from ..base import Estimator
from ..noise import combine, key_of_rows, normal
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


class Augmentation:
    """Learns from rows at other poses, in every step from others: a change of the data as `robust.base` has it.

    Args:
        symmetry: Of theta and x.
        prior: Of theta.
        seed: Of the poses, with the step.
    """

    def __init__(self, symmetry: Symmetry, prior: Prior, seed: int = 0) -> None:
        self._symmetry, self._prior, self._seed = symmetry, prior, seed

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Batch:
        key = combine(*(torch.tensor(number, device=batch.theta.device) for number in (self._seed, step)))
        return augmented(self._symmetry, self._prior, batch, combine(key_of_rows(batch.theta), key))
