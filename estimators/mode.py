r"""The mode of a posterior, for many observations at once.

.. math:: \theta^*(x) = \arg\max_\theta \log q(\theta | x)

It is the mode in the space of theta, as usual in this field; the modes of the same density in other coordinates are others.
The climb is made in the prior's unconstrained space, where no step leaves the support, and
:math:`\log q(\theta(z) | x)` is climbed there without a Jacobian of its own, which keeps the target. From the best of
many draws, in coordinates whitened by the draws' covariance, by Adam (Kingma & Ba 2015, https://arxiv.org/abs/1412.6980)
with its step taken down to zero. A density that grows towards a bound has no mode inside; the result then lies near it.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.errors import UnsupportedError
from .base import Posterior

_DRAWS = 1000
_STEPS, _STEP = 200, 0.1  # standard deviations of the posterior


def find_modes(
    posterior: Posterior, x: dict[str, Tensor], *, starts: int, seed: int | None
) -> Float[Tensor, "observation parameter"]:
    """The best point reached from ``starts`` points, for every row of x.

    Args:
        posterior: With a `log_prob` that has gradients in theta.
        x: One row per observation.
        starts: How many points to climb from, the best of 1,000 draws.
        seed: Of the draws.

    Raises:
        UnsupportedError: The density has no gradients.
    """
    if not posterior.differentiable:
        raise UnsupportedError(
            f"`map` needs a density with gradients, which {type(posterior).__name__} has not, asked through chains: take the draw "
            "of the largest `log_prob`, or ask a network that was trained without `symmetry` or with `symmetry: {by: augmentation}`"
        )
    draws, lp = posterior.sample_with_log_prob((_DRAWS,), x, seed=seed)
    z = posterior.prior.to_unconstrained(draws)
    best = lp.topk(min(starts, _DRAWS), dim=0).indices[..., None].expand(-1, -1, z.shape[-1])
    climbed = _climb(posterior, x, z.gather(0, best), _factors(z))
    theta = torch.cat([draws.gather(0, best), climbed])
    lp = posterior.log_prob_batched(theta, x).nan_to_num(nan=-math.inf, neginf=-math.inf)
    return theta.gather(0, lp.argmax(0)[None, :, None].expand(1, -1, theta.shape[-1]))[0]


def _climb(posterior: Posterior, x: dict[str, Tensor], start: Tensor, factors: Tensor) -> Tensor:
    """Theta after the climb from z ``(start, observation, parameter)``; every one is a problem of its own."""
    moved = torch.zeros_like(start, requires_grad=True)
    optimizer = torch.optim.Adam([moved], lr=_STEP)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, _STEPS)
    for _ in range(_STEPS):
        lp = posterior.log_prob_batched(_theta(posterior, start, factors, moved), x, track_gradients=True)
        (gradient,) = torch.autograd.grad(-lp.sum(), moved)
        moved.grad = gradient.nan_to_num(0.0, 0.0, 0.0)
        optimizer.step()
        schedule.step()
    return _theta(posterior, start, factors, moved).detach()


def _theta(posterior: Posterior, start: Tensor, factors: Tensor, moved: Tensor) -> Tensor:
    return posterior.prior.from_unconstrained(start + torch.einsum("oij,soj->soi", factors, moved))


def _factors(z: Float[Tensor, "draw observation parameter"]) -> Float[Tensor, "observation parameter parameter"]:
    """Cholesky factor of the covariance of the draws of every observation."""
    centred = z - z.mean(0)
    covariance = torch.einsum("noi,noj->oij", centred, centred) / len(z)
    least = 1e-6 * covariance.diagonal(dim1=-2, dim2=-1) + 1e-20
    return torch.linalg.cholesky(covariance + torch.diag_embed(least))
