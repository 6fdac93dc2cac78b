r"""Projected gradient ascent: the worst perturbation in a ball, row by row.

.. math:: u \leftarrow \Pi\left(u + \tfrac{r}{10}\, s(g)\right), \qquad g = \nabla_u D(u),

with s the steepest unit step of the norm and Π the projection onto the ball. Madry et al. (2018),
https://arxiv.org/abs/1706.06083; steps of a tenth of the radius as Gloeckler, Deistler & Macke (2023),
https://arxiv.org/abs/2305.14984, take them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .balls import Ball

STEP = 0.1  # of the radius
OfPerturbations = Callable[[Float[Tensor, "rows entry"]], Float[Tensor, "rows"]]


def ascend(
    objective: OfPerturbations, start: Float[Tensor, "rows entry"], ball: Ball, radius: float, steps: int
) -> Float[Tensor, "rows entry"]:
    """Where so many steps lead from a start."""
    u = start
    for _ in range(steps):
        u = ball.project(u + STEP * radius * ball.ascend(gradient(objective, u)), radius)
    return u


def gradient(objective: OfPerturbations, u: Float[Tensor, "rows entry"]) -> Float[Tensor, "rows entry"]:
    """Of each row's own objective; an entry for which it is no number is left where it is."""
    u = u.detach().requires_grad_()
    with torch.enable_grad():
        (found,) = torch.autograd.grad(objective(u).sum(), u)
    return torch.where(found.isfinite(), found, 0.0)
