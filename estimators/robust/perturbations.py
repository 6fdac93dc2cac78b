r"""Perturbations of a batch: uniform in a ball, or the worst in it by projected gradient ascent.

The radius is :math:`\epsilon` times the mean over the batch's rows of the standard deviation of the entries within one, as
Gloeckler, Deistler & Macke (2023), https://arxiv.org/abs/2305.14984, measure it. Ascent: Madry et al. (2018),
https://arxiv.org/abs/1706.06083, with steps of a tenth of the radius.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from .balls import Ball

STEP = 0.1  # of the radius
Named = dict[str, Tensor]


def flattened(x: Named) -> Float[Tensor, "rows entry"]:
    """All entries of each row."""
    return torch.cat([values.flatten(1) if values.dim() > 1 else values[:, None] for values in x.values()], 1)


def named(flat: Float[Tensor, "rows entry"], like: Named) -> Named:
    """Entries as the observables they belong to."""
    parts = flat.split([values[0].numel() for values in like.values()], 1)
    return {name: part.reshape(values.shape) for (name, values), part in zip(like.items(), parts, strict=True)}


def spread(x: Named) -> float:
    """What ε = 1 is: the mean standard deviation within a row, or that over rows where x is one number."""
    flat = flattened(x)
    return float(flat.std(1).mean() if flat.shape[1] > 1 else flat.std())


def uniform(x: Named, ball: Ball, radius: float) -> Named:
    """x and a uniform draw of the ball."""
    flat = flattened(x)
    return named(flat + radius * ball.uniform(*flat.shape).to(flat), x)


def worst(
    objective: Callable[[Named], Float[Tensor, "rows"]], x: Named, ball: Ball, radius: float, steps: int
) -> Named:
    """The x in the ball around each row that raises its objective most, as far as so many steps find it."""
    flat = flattened(x)
    delta = radius * ball.uniform(*flat.shape).to(flat)
    for _ in range(steps):
        delta = delta.detach().requires_grad_()
        with torch.enable_grad():
            (gradient,) = torch.autograd.grad(objective(named(flat + delta, x)).sum(), delta)
        gradient = torch.where(gradient.isfinite().all(1, keepdim=True), gradient, 0.0)
        delta = ball.project(delta.detach() + STEP * radius * ball.ascend(gradient), radius)
    return named(flat + delta.detach(), x)
