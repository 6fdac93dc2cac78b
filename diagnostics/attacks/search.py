r"""Ways to find the worst perturbation of each observation, all observations at once.

``pgd``: projected gradient ascent, Madry et al. (2018), https://arxiv.org/abs/1706.06083, from a uniform draw of the ball, as
Gloeckler, Deistler & Macke (2023) run it: :math:`u \leftarrow \Pi(u + \frac{r}{10} g / \|g\|)`, 200 times. ``adam``: the same
with steps of Adam, Kingma & Ba (2015). ``random``: without gradients, a step in a random direction is kept if it leads
farther. ``noise``: one uniform draw, with which attacks are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...estimators.robust.balls import Ball
from .region import Region

STEP = 0.1  # of the radius
Objective = Callable[[Float[Tensor, "rows entry"]], Float[Tensor, "rows"]]
Search = Callable[[Objective, Region, Ball, float, int], Float[Tensor, "rows entry"]]


def pgd(objective: Objective, region: Region, ball: Ball, radius: float, steps: int) -> Tensor:
    """Projected gradient ascent."""
    u = noise(objective, region, ball, radius, 0)
    for _ in range(steps):
        u = ball.project(u + STEP * radius * ball.ascend(_gradient(objective, region, u)), radius)
    return u


def adam(objective: Objective, region: Region, ball: Ball, radius: float, steps: int) -> Tensor:
    """Projected steps of Adam."""
    u = noise(objective, region, ball, radius, 0)
    mean, square = torch.zeros_like(u), torch.zeros_like(u)
    for n in range(1, steps + 1):
        gradient = _gradient(objective, region, u)
        mean, square = mean.lerp(gradient, 0.1), square.lerp(gradient.square(), 0.001)
        direction = (mean / (1 - 0.9**n)) / ((square / (1 - 0.999**n)).sqrt() + 1e-8)
        u = ball.project(u + STEP * radius * direction, radius)
    return u


@torch.no_grad()
def random(objective: Objective, region: Region, ball: Ball, radius: float, steps: int) -> Tensor:
    """Steps in random directions, kept where they lead farther."""
    u = noise(objective, region, ball, radius, 0)
    best = objective(region.at(u)).to(u.device)
    for _ in range(steps):
        there = ball.project(u + radius * ball.uniform(*u.shape).to(u), radius)
        value = objective(region.at(there)).to(u.device)
        better = value > best
        u, best = torch.where(better[:, None], there, u), torch.where(better, value, best)
    return u


def noise(objective: Objective, region: Region, ball: Ball, radius: float, steps: int) -> Tensor:
    """A uniform draw of the ball."""
    return radius * ball.uniform(*region.x.shape).to(region.x) * region.free


SEARCHES: dict[str, Search] = {"pgd": pgd, "adam": adam, "random": random, "noise": noise}


def _gradient(objective: Objective, region: Region, u: Tensor) -> Tensor:
    """Of each row's own objective; an entry for which it is no number is left where it is."""
    u = u.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(objective(region.at(u)).sum(), u)
    return torch.where(gradient.isfinite(), gradient, 0.0)
