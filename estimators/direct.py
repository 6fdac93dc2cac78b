"""Posteriors that are a density network: exact draws, no rejection, `log_prob` normalised."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.errors import ShapeError
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Posterior, XLike, seeded
from .mixture import strata
from .settings import EstimatorSettings

_ROWS_AT_ONCE = 2**15  # draws × observations in one pass: memory that caches hold


@runtime_checkable
class DirectEstimator(Protocol):
    """An estimator of q(theta | x) itself: a density over the prior's unconstrained space z."""

    prior: Prior
    observables: Variables
    settings: EstimatorSettings

    def condition(self, x: dict[str, Tensor]) -> Float[Tensor, "rows context"]:
        """What the density is conditioned on."""

    def density(self, context: Float[Tensor, "rows context"]) -> Any:
        """q(z | x) as a torch distribution of batch shape ``(rows,)`` and event shape ``(parameter,)``."""


def log_prob(
    estimator: DirectEstimator, theta: Tensor, context: Float[Tensor, "rows context"]
) -> Float[Tensor, "*sample rows"]:
    """log q(theta | x) given the density's context, in float64; -inf outside the support."""
    z = estimator.prior.to_unconstrained(theta)
    return estimator.density(context).log_prob(z.float()).double() + estimator.prior.log_abs_det(theta.double(), z)


def with_latents(prior: Prior, rows: Batch) -> Batch:
    """The same rows with z and log |dz / dtheta|, which no weight changes, so that no step computes them again."""
    z = prior.to_unconstrained(rows.theta)
    return rows._replace(z=z.float(), log_abs_det=prior.log_abs_det(rows.theta.double(), z))


def latents(prior: Prior, batch: Batch) -> tuple[Float[Tensor, "rows parameter"], Float[Tensor, "rows"]]:
    """z as float32 and log |dz / dtheta| as float64 of a batch, computed if they were not ahead."""
    known = batch if batch.z is not None else with_latents(prior, batch)
    assert known.z is not None
    assert known.log_abs_det is not None
    return known.z, known.log_abs_det


class DirectPosterior(Posterior):
    """The trained density itself.

    Args:
        estimator: Is put into evaluation mode.
    """

    at_once = 250  # enough to keep a network busy

    def __init__(self, estimator: DirectEstimator) -> None:
        self.estimator, self.network = estimator, _network(estimator)
        self.observables = estimator.observables
        self.prior = estimator.prior
        self.imputes = estimator.settings.impute

    def sample_batched(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None, show_progress_bars: bool = False
    ) -> Float[Tensor, "*sample_shape observation parameter"]:
        with torch.no_grad(), seeded(seed):
            context = self._context(x)
            parts = [
                self._theta(self.estimator.density(context).sample((n,))) for n in _portions(sample_shape, context)
            ]
            return torch.cat(parts).reshape(*sample_shape, len(context), -1)

    def sample_with_log_prob(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        with torch.no_grad(), seeded(seed):
            context = self._context(x)
            parts = [self._with_log_prob(n, context) for n in _portions(sample_shape, context)]
            theta, lp = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            shape = (*sample_shape, len(context))
            return theta.reshape(*shape, -1), lp.reshape(shape)

    def log_prob_batched(
        self, theta: Real[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
    ) -> Float[Tensor, "*sample_shape observation"]:
        with torch.set_grad_enabled(track_gradients):
            context = self._context(x)
            theta = torch.as_tensor(theta).to(context.device)
            if theta.shape[-2:] != (len(context), self.prior.dim):
                raise ShapeError(
                    f"`theta` must have shape (*sample, {len(context)} observations, {self.prior.dim} parameters); "
                    f"got {tuple(theta.shape)}"
                )
            flat = theta.reshape(-1, *theta.shape[-2:])
            parts = [self._log_prob(part, context) for part in flat.split(_draws_at_once(context))]
            return torch.cat(parts).reshape(theta.shape[:-1])

    def rsample(self, sample_shape: Sequence[int], x: XLike) -> Float[Tensor, "*sample_shape observation parameter"]:
        return self._theta(self.estimator.density(self._context(x)).rsample(torch.Size(sample_shape)))

    def rsample_stratified(
        self, sample_shape: Sequence[int], x: XLike
    ) -> tuple[Float[Tensor, "*sample_shape component observation parameter"], Float[Tensor, "component observation"]]:
        """Draws of every component of a mixture, and the logarithms of its weights; one component where it is none.

        Both are differentiable, and so is the expectation ``(log_weights.exp() * f(draws)).sum(-2).mean(0)`` of f, to all
        orders and with less noise than that of `rsample`.
        """
        z, log_weights = strata(self.estimator.density(self._context(x)), sample_shape)
        return self._theta(z).movedim(-2, -3), log_weights.movedim(-1, -2)

    def to(self, device: str | torch.device) -> DirectPosterior:
        self.network.to(device)
        return self

    def _context(self, x: XLike) -> Tensor:
        device = next(self.network.parameters()).device
        return self.estimator.condition({name: values.to(device) for name, values in self._rows(x).items()})

    def _log_prob(self, theta: Tensor, context: Tensor) -> Tensor:
        """As `log_prob`, and no NaN, nor a gradient that is none, outside the support or beyond what numbers can hold."""
        theta = theta.double()
        middle = self.prior.from_unconstrained(theta.new_zeros(self.prior.dim))
        inside = self.prior.contains(theta)
        lp = log_prob(self.estimator, theta.where(inside[..., None], middle), context)
        lost = lp.isnan()
        if lost.any():
            inside = inside & ~lost
            lp = log_prob(self.estimator, theta.where(inside[..., None], middle), context)
        return lp.where(inside, -math.inf)

    def _theta(self, z: Tensor) -> Tensor:
        return self.prior.from_unconstrained(z)

    def _with_log_prob(self, draws: int, context: Tensor) -> tuple[Tensor, Tensor]:
        flow = self.estimator.density(context)
        if not (
            flow.has_rsample and hasattr(flow, "rsample_and_log_prob")
        ):  # weights that are a function of x; torch's
            theta = self._theta(flow.sample((draws,)))
            return theta, log_prob(self.estimator, theta, context)
        z, lp = flow.rsample_and_log_prob((draws,))
        theta = self._theta(z)
        return theta, lp.double() + self.prior.log_abs_det(theta, z.double())


def _draws_at_once(context: Tensor) -> int:
    return max(1, _ROWS_AT_ONCE // len(context))


def _portions(sample_shape: Sequence[int], context: Tensor) -> Iterator[int]:
    """How many draws to take at a time."""
    left, most = math.prod(sample_shape), _draws_at_once(context)
    while left > 0:
        yield min(left, most)
        left -= most


def _network(estimator: DirectEstimator) -> nn.Module:
    assert isinstance(estimator, nn.Module)
    return estimator.eval()
