r"""The Fisher information of a posterior in its data: how far small changes of x move it.

.. math:: F(x) = \mathbb{E}_{\theta \sim q(\cdot | x)} \left[ s s^T \right], \quad s = \nabla_x \log q(\theta | x), \qquad
    \mathrm{KL}(q(\cdot | x) \| q(\cdot | x + \delta)) = \tfrac12 \delta^T F(x)\, \delta + O(|\delta|^3)

so that :math:`\frac12 r^2 \lambda_{\max}(F)` is the most that a perturbation of length r can do while it is small, and the trace
bounds :math:`\lambda_{\max}`. Gradients are in x as it is given, before any transform or normalisation. Gloeckler, Deistler &
Macke (2023), https://arxiv.org/abs/2305.14984.

For normal densities, :math:`q = N(m(x), \Sigma(x))`, F is known from their Jacobians:
:math:`F = J_m^T \Sigma^{-1} J_m + \frac12 \mathrm{tr}(\Sigma^{-1} \partial\Sigma\, \Sigma^{-1} \partial\Sigma)`. Where m is affine and
:math:`\Sigma` constant nothing is left out, and the bound is what the worst perturbation does, however large it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.errors import ShapeError, UnsupportedError
from ...data.ranges import OutsideTrainingWarning
from ..base import Posterior, XLike, named_rows, seeded

_AT_ONCE = 2**16  # draws × observations with their graph: what memory holds
_ENTRIES_AT_ONCE = 2**22  # of these observations, which embeddings make many more of

Coordinates = Callable[[Float[Tensor, "draw rows entry"]], Float[Tensor, "draw rows _"]]


def scores(
    posterior: Posterior, x: XLike, *, draws: int = 256, seed: int | None = 0
) -> Float[Tensor, "draw observation entry"]:
    """Gradients of log q(theta | x) in all entries of x, at draws of q.

    Raises:
        UnsupportedError: A posterior that is known up to a constant, which depends on x.
        ShapeError: Names or shapes do not fit.
    """
    return torch.cat(_in_portions(posterior, x, draws, seed, lambda found: found), 1)


def _in_portions(
    posterior: Posterior, x: XLike, draws: int, seed: int | None, then: Callable[[Tensor], Tensor]
) -> list[Tensor]:
    """What is made of the scores of so many observations as memory holds, one portion after another."""
    _require_normalised(posterior)
    rows = named_rows(x, posterior.observables)
    with warnings.catch_warnings(), seeded(seed):
        warnings.simplefilter("ignore", OutsideTrainingWarning)
        theta = posterior.sample_batched((draws,), rows)
        most = min(_AT_ONCE, max(1, _ENTRIES_AT_ONCE // posterior.observables.size))
        portions = torch.arange(theta.shape[1]).split(max(1, most // draws))
        given = ({name: values[p] for name, values in rows.items()} for p in portions)
        return [
            then(torch.cat([_scores(posterior, part, some) for part in theta[:, p].split(most)]))
            for p, some in zip(portions, given, strict=True)
        ]


def _require_normalised(posterior: Posterior) -> None:
    if not posterior.normalised:
        raise UnsupportedError(
            f"the Fisher information needs a normalised density of theta; that of {type(posterior).__name__} is known up to a "
            "constant that depends on x: use npe or fmpe"
        )


def _scores(posterior: Posterior, theta: Tensor, x: dict[str, Tensor]) -> Tensor:
    """0 where there is no number, as at the edge of the support, and in what the density does not look at."""
    draws, rows = theta.shape[:2]
    many = {name: values.repeat(draws, *[1] * (values.dim() - 1)).requires_grad_() for name, values in x.items()}
    log_q = posterior.log_prob_batched(theta.flatten(0, 1)[None], many, track_gradients=True)
    gradients = torch.autograd.grad(log_q.sum(), list(many.values()), allow_unused=True, materialize_grads=True)
    found = torch.cat([part.reshape(draws, rows, -1) for part in gradients], -1).double()
    return torch.where(found.isfinite(), found, 0.0)


def fisher_trace(
    posterior: Posterior, x: XLike, *, draws: int = 256, seed: int | None = 0
) -> Float[Tensor, "observation"]:
    """tr F of every observation, the mean of so many draws."""
    return torch.cat(_in_portions(posterior, x, draws, seed, lambda found: found.square().sum(-1).mean(0)))


def fisher_eigenvalue(
    posterior: Posterior,
    x: XLike,
    *,
    draws: int = 2000,
    seed: int | None = 0,
    coordinates: Coordinates = lambda found: found,
) -> Float[Tensor, "observation"]:
    """The largest eigenvalue of F of every observation.

    Half of the draws find the direction, the other half say how much there is in it, and the other way round: the largest
    eigenvalue of so many scores alone would be too large.

    Args:
        posterior: With a normalised density.
        x: One row per observation.
        draws: Of theta, for every observation.
        seed: Of the draws.
        coordinates: From gradients in x to those in what F is wanted of, such as the units of a ball.

    Raises:
        UnsupportedError: A posterior that is known up to a constant, which depends on x.
        ShapeError: Names or shapes do not fit.
    """
    return torch.cat(
        _in_portions(posterior, x, 2 * (draws // 2), seed, lambda found: _largest(coordinates(found).transpose(0, 1)))
    )


def _largest(found: Float[Tensor, "rows draw entry"]) -> Float[Tensor, "rows"]:
    halves = found.split(found.shape[1] // 2, 1)
    crossed = zip(halves, reversed([_direction(half) for half in halves]), strict=True)
    return torch.stack([(half @ v).square().mean((1, 2)) for half, v in crossed]).mean(0)


def _direction(found: Float[Tensor, "rows draw entry"]) -> Float[Tensor, "rows entry 1"]:
    """In which scores are largest, by the smaller of both Gram matrices."""
    if found.shape[2] <= found.shape[1]:
        return torch.linalg.eigh(found.mT @ found).eigenvectors[..., -1:]
    weights = torch.linalg.eigh(found @ found.mT).eigenvectors[..., -1:]
    return torch.nn.functional.normalize(found.mT @ weights, dim=1)


def local_bound(
    posterior: Posterior, x: XLike, radius: float, *, draws: int = 2000, seed: int | None = 0
) -> Float[Tensor, "observation"]:
    r"""The most that a perturbation of Euclidean length r can move the posterior, in nats, while it is small: ½ r² λ_max(F)."""
    return 0.5 * radius**2 * fisher_eigenvalue(posterior, x, draws=draws, seed=seed)


def linear_gaussian_bound(mean_jacobian: Any, covariance: Any, radius: float) -> tuple[float, Float[Tensor, "entry"]]:
    r"""The worst that a perturbation of Euclidean length r does to N(J x + m, Σ): exactly ½ r² λ_max(Jᵀ Σ⁻¹ J) nats, of any size.

    Args:
        mean_jacobian: J, ``(parameter, entry)``; in units of a ball, :math:`\tilde x = x + L u`, it is J L.
        covariance: Σ, the same for every x.
        radius: r.

    Returns:
        Nats, and the direction of the perturbation, of length 1; the opposite one does the same.

    Raises:
        ShapeError: Σ is no covariance of as many parameters as J has rows.
    """
    jacobian, covariance = (torch.as_tensor(part).double() for part in (mean_jacobian, covariance))
    factor, failed = torch.linalg.cholesky_ex(covariance) if _square(covariance, jacobian) else (covariance, True)
    if failed:
        raise ShapeError(
            f"`covariance` must be positive definite, one row for each of the {len(jacobian)} rows of `mean_jacobian`; "
            f"got shape {tuple(covariance.shape)}"
        )
    scaled = torch.linalg.solve_triangular(factor, jacobian, upper=False)
    _, lengths, directions = torch.linalg.svd(scaled, full_matrices=False)
    return 0.5 * (radius * float(lengths[0])) ** 2, directions[0]


def _square(covariance: Tensor, jacobian: Tensor) -> bool:
    return covariance.shape == (len(jacobian), len(jacobian))
