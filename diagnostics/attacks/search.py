r"""Ways to find the worst perturbation of each observation, all observations at once.

``pgd``: projected gradient ascent from a uniform draw of the ball (`robust.ascent`), 200 steps. ``adam``: the same
with steps of Adam, Kingma & Ba (2015). ``random``: without gradients, a step in a random direction is kept if it leads
farther. ``noise``: one uniform draw, with which attacks are compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ...estimators.robust.ascent import STEP, ascend, gradient
from ...estimators.robust.balls import Ball
from .region import Region

Objective = Callable[[Float[Tensor, "rows entry"]], Float[Tensor, "rows"]]
Search = Callable[[Objective, Region, Ball, float, int], Float[Tensor, "rows entry"]]


def noise(region: Region, ball: Ball, radius: float) -> Tensor:
    """A uniform draw of the ball, in the entries that may change."""
    return radius * ball.uniform(*region.x.shape).to(region.x) * region.free


def pgd(objective: Objective, region: Region, ball: Ball, radius: float, steps: int) -> Tensor:
    """Projected gradient ascent."""
    return ascend(lambda u: objective(region.at(u)), noise(region, ball, radius), ball, radius, steps)


def adam(objective: Objective, region: Region, ball: Ball, radius: float, steps: int) -> Tensor:
    """Projected steps of Adam."""
    u = noise(region, ball, radius)
    mean, square = torch.zeros_like(u), torch.zeros_like(u)
    for n in range(1, steps + 1):
        slope = gradient(lambda u: objective(region.at(u)), u)
        mean, square = mean.lerp(slope, 0.1), square.lerp(slope.square(), 0.001)
        direction = (mean / (1 - 0.9**n)) / ((square / (1 - 0.999**n)).sqrt() + 1e-8)
        u = ball.project(u + STEP * radius * direction, radius)
    return u


@torch.no_grad()
def random(objective: Objective, region: Region, ball: Ball, radius: float, steps: int) -> Tensor:
    """Steps in random directions, kept where they lead farther."""
    u = noise(region, ball, radius)
    best = objective(region.at(u)).to(u.device)
    for _ in range(steps):
        there = ball.project(u + noise(region, ball, radius), radius)
        value = objective(region.at(there)).to(u.device)
        better = value > best
        u, best = torch.where(better[:, None], there, u), torch.where(better, value, best)
    return u


SEARCHES: dict[str, Search] = {
    "pgd": pgd,
    "adam": adam,
    "random": random,
    "noise": lambda objective, region, ball, radius, steps: noise(region, ball, radius),
}
