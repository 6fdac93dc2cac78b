r"""Balls of the norms L1, L2 and L∞: projection, steepest ascent and uniform draws, row by row.

Steepest ascent of a linear function over the unit ball of a norm is the unit vector that its dual norm attains:
:math:`g / \|g\|_2`, :math:`\mathrm{sign}(g)`, and for L1 the one entry with the largest :math:`|g_i|`. Projection onto the L1
ball: Duchi et al. (2008), https://doi.org/10.1145/1390156.1390191.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.errors import UnknownNameError, did_you_mean


@dataclass(frozen=True, slots=True)
class Ball:
    """One norm.

    Attributes:
        norm: ``(rows, entry) → (rows, 1)``.
        project: ``(rows, entry), radius → `` the nearest point of the ball.
        ascend: From a gradient to the unit step that raises most.
        uniform: ``(rows, entries) → `` draws of the unit ball.
    """

    norm: Callable[[Tensor], Tensor]
    project: Callable[[Tensor, float], Tensor]
    ascend: Callable[[Tensor], Tensor]
    uniform: Callable[[int, int], Tensor]


def ball(name: str) -> Ball:
    """By name: ``l1``, ``l2`` or ``linf``.

    Raises:
        UnknownNameError: No such norm.
    """
    if name not in BALLS:
        raise UnknownNameError(f"unknown `norm` `{name}`; {did_you_mean(name, BALLS)}")
    return BALLS[name]


def _l2(delta: Tensor) -> Tensor:
    return delta.norm(dim=1, keepdim=True)


def _to_l2(delta: Float[Tensor, "rows entry"], radius: float) -> Tensor:
    return delta * (radius / _l2(delta).clamp(min=radius))


def _in_l2(rows: int, entries: int) -> Tensor:
    direction = torch.randn(rows, entries)
    return direction / _l2(direction) * torch.rand(rows, 1) ** (1 / entries)


def _to_l1(delta: Float[Tensor, "rows entry"], radius: float) -> Tensor:
    sizes = delta.abs().sort(dim=1, descending=True).values
    excess = sizes.cumsum(1) - radius
    counts = torch.arange(1, delta.shape[1] + 1, device=delta.device)
    last = (sizes * counts > excess).sum(1, keepdim=True)
    threshold = (excess.gather(1, last - 1) / last).clamp(min=0)
    return delta.sign() * (delta.abs() - threshold).clamp(min=0)


def _along_l1(gradient: Tensor) -> Tensor:
    best = gradient.abs().argmax(1, keepdim=True)
    return torch.zeros_like(gradient).scatter(1, best, gradient.gather(1, best).sign())


def _in_l1(rows: int, entries: int) -> Tensor:
    spacings = torch.empty(rows, entries + 1).exponential_()
    signs = torch.randint(2, (rows, entries)) * 2 - 1
    return signs * spacings[:, :-1] / spacings.sum(1, keepdim=True)


BALLS = {
    "l1": Ball(lambda d: d.abs().sum(1, keepdim=True), _to_l1, _along_l1, _in_l1),
    "l2": Ball(_l2, _to_l2, lambda g: g / _l2(g).clamp(min=torch.finfo(g.dtype).tiny), _in_l2),
    "linf": Ball(
        lambda d: d.abs().amax(1, keepdim=True),
        lambda d, radius: d.clamp(-radius, radius),
        torch.sign,
        lambda rows, entries: 2 * torch.rand(rows, entries) - 1,
    ),
}
