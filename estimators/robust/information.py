r"""The Fisher information of a posterior in its data: how far small changes of x move it.

.. math:: F(x) = \mathbb{E}_{\theta \sim q(\cdot | x)} \left[ s s^T \right], \quad s = \nabla_x \log q(\theta | x), \qquad
    \mathrm{KL}(q(\cdot | x) \| q(\cdot | x + \delta)) = \tfrac12 \delta^T F(x)\, \delta + O(|\delta|^3)

so that :math:`\frac12 r^2 \lambda_{\max}(F)` is the most that a perturbation of length r can do while it is small, and the trace
bounds :math:`\lambda_{\max}`. Gradients are in x as it is given, before any transform or normalisation. Gloeckler, Deistler &
Macke (2023), https://arxiv.org/abs/2305.14984.

For normal densities, :math:`q = N(m(x), \Sigma(x))`, F is known from their Jacobians:
:math:`F = J_m^T \Sigma^{-1} J_m + \frac12 \mathrm{tr}(\Sigma^{-1} \partial\Sigma\, \Sigma^{-1} \partial\Sigma)`.
"""

from __future__ import annotations

import warnings

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.errors import UnsupportedError
from ...data.ranges import OutsideTrainingWarning
from ..base import Posterior, XLike, named_rows, seeded

_AT_ONCE = 2**16  # draws × observations with their graph: what memory holds


def scores(
    posterior: Posterior, x: XLike, *, draws: int = 256, seed: int | None = 0
) -> Float[Tensor, "draw observation entry"]:
    """Gradients of log q(theta | x) in all entries of x, at draws of q.

    Raises:
        UnsupportedError: A posterior that is known up to a constant, which depends on x.
        ShapeError: Names or shapes do not fit.
    """
    if not posterior.normalised:
        raise UnsupportedError(
            f"the Fisher information needs a normalised density of theta; that of {type(posterior).__name__} is known up to a "
            "constant that depends on x: use npe or fmpe"
        )
    rows = named_rows(x, posterior.observables)
    with warnings.catch_warnings(), seeded(seed):
        warnings.simplefilter("ignore", OutsideTrainingWarning)
        theta = posterior.sample_batched((draws,), rows)
        portions = torch.arange(theta.shape[1]).split(max(1, _AT_ONCE // draws))
        parts = [_scores(posterior, theta[:, p], {name: values[p] for name, values in rows.items()}) for p in portions]
    return torch.cat(parts, 1)


def _scores(posterior: Posterior, theta: Tensor, x: dict[str, Tensor]) -> Tensor:
    draws, rows = theta.shape[:2]
    many = {name: values.repeat(draws, *[1] * (values.dim() - 1)).requires_grad_() for name, values in x.items()}
    log_q = posterior.log_prob_batched(theta.flatten(0, 1)[None], many, track_gradients=True)
    gradients = torch.autograd.grad(log_q.sum(), list(many.values()))
    return torch.cat([part.reshape(draws, rows, -1) for part in gradients], -1).double()


def fisher_trace(
    posterior: Posterior, x: XLike, *, draws: int = 256, seed: int | None = 0
) -> Float[Tensor, "observation"]:
    """tr F of every observation, the mean of so many draws."""
    return scores(posterior, x, draws=draws, seed=seed).square().sum(-1).mean(0)


def fisher_eigenvalue(
    posterior: Posterior, x: XLike, *, draws: int = 2000, seed: int | None = 0
) -> Float[Tensor, "observation"]:
    """The largest eigenvalue of F of every observation.

    Half of the draws find the direction, the other half say how much there is in it, and the other way round: the largest
    eigenvalue of so many scores alone would be too large.
    """
    halves = scores(posterior, x, draws=2 * (draws // 2), seed=seed).transpose(0, 1).split(draws // 2, 1)
    directions = [torch.linalg.svd(half, full_matrices=False).Vh[:, 0] for half in halves]
    crossed = zip(halves, reversed(directions), strict=True)
    return torch.stack([(half @ v[..., None]).square().mean((1, 2)) for half, v in crossed]).mean(0)


def local_bound(
    posterior: Posterior, x: XLike, radius: float, *, draws: int = 2000, seed: int | None = 0
) -> Float[Tensor, "observation"]:
    r"""The most that a perturbation of Euclidean length r can move the posterior, in nats, while it is small: ½ r² λ_max(F)."""
    return 0.5 * radius**2 * fisher_eigenvalue(posterior, x, draws=draws, seed=seed)
