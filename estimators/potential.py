r"""The unnormalised posterior of one or many independent observations, from a learned likelihood or ratio.

.. math:: \log \tilde p(\theta | x_1, \dots, x_T) = \log p(\theta) + \sum_t \log \ell(x_t | \theta), \qquad
    \ell(x | \theta) = q(x | \theta) \text{ or } r(x, \theta) \propto p(x | \theta),

times :math:`p(\mathrm{valid} | \theta)` for each :math:`x_t` where simulations failed (see `validity`). Chains run in the
unconstrained space of the prior, where it is N(0, I) and nothing leaves the support:
:math:`\log \tilde p(z) = \log \tilde p(\theta) - \log |dz / d\theta|`. All that depends on x alone is computed once.
"""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..data.errors import ShapeError
from ..data.variables import Variables
from ..simulators.families import log_phi
from ..simulators.prior import Prior
from .base import XLike, named_rows
from .networks import ValidityLogit
from .settings import EstimatorSettings

_ROWS_AT_ONCE = 2**14  # trials × points in one pass: what is larger leaves the processor's cache


@runtime_checkable
class LikelihoodEstimator(Protocol):
    """An estimator of p(x | theta), up to a factor that does not depend on theta."""

    prior: Prior
    observables: Variables
    settings: EstimatorSettings
    validity: ValidityLogit | None
    normalised: bool  # whether exp(`log_factor`) integrates to one over x, so that rows of different x can be compared

    def encode(self, x: dict[str, Tensor]) -> Float[Tensor, "rows prepared"]:
        """All of x that `log_factor` needs, in float64."""

    def log_factor(
        self, z: Float[Tensor, "rows parameter"], prepared: Float[Tensor, "*trial rows prepared"]
    ) -> Float[Tensor, "*trial rows"]:
        """log p(x | theta) plus what does not depend on theta, in float64; z is theta in the space of `prior`."""


class Potential:
    """log p(theta) plus the log-likelihood of each observation's trials.

    Args:
        estimator: Of the likelihood.
        prior: Of theta; any over the same parameters. Where it reaches beyond the prior of the simulations nothing is
            known of the likelihood: there the potential is -inf.
        prepared: What `LikelihoodEstimator.encode` made of x.
    """

    def __init__(
        self, estimator: LikelihoodEstimator, prior: Prior, prepared: Float[Tensor, "observation trial prepared"]
    ) -> None:
        self.estimator, self.prior = estimator, prior
        self._prepared = prepared.transpose(0, 1)
        self._same = prior == estimator.prior
        self.evaluations = 0

    @property
    def observations(self) -> int:
        return self._prepared.shape[1]

    def unconstrained(
        self, z: Float[Tensor, "rows parameter"], observation: Int[Tensor, "rows"]
    ) -> Float[Tensor, "rows"]:
        """Log density in the unconstrained space of `prior`, of point i given observation ``observation[i]``.

        NaN counts as -inf.
        """
        self.evaluations += len(z)
        portions = zip(z.split(self._most), observation.split(self._most), strict=True)
        values = torch.cat([self._in_z(part, which) for part, which in portions])
        return values.nan_to_num(nan=-math.inf, posinf=math.inf, neginf=-math.inf)

    def log_prob(self, theta: Float[Tensor, "draw observation parameter"]) -> Float[Tensor, "draw observation"]:
        """log p(theta) plus the log-likelihood; -inf outside the support."""
        flat = theta.reshape(-1, theta.shape[-1])
        which = torch.arange(self.observations, device=theta.device).repeat(len(theta))
        portions = zip(flat.split(self._most), which.split(self._most), strict=True)
        return torch.cat([self._of_theta(part, part_of) for part, part_of in portions]).reshape(theta.shape[:-1])

    @property
    def _most(self) -> int:
        return max(1, _ROWS_AT_ONCE // len(self._prepared))

    def _in_z(self, z: Tensor, observation: Tensor) -> Tensor:
        if self._same and self.prior.normal:
            return log_phi(z).sum(-1) + self._likelihood(z, observation)
        theta = self.prior.from_unconstrained(z)
        prior = self.prior.log_prob(theta) - self.prior.log_abs_det(theta, z)
        return prior + (self._likelihood(z, observation) if self._same else self._elsewhere(theta, observation))

    def _of_theta(self, theta: Tensor, observation: Tensor) -> Tensor:
        return self.prior.log_prob(theta) + self._elsewhere(theta, observation)

    def _elsewhere(self, theta: Tensor, observation: Tensor) -> Tensor:
        known = self.estimator.prior
        likelihood = self._likelihood(known.to_unconstrained(theta), observation)
        return likelihood if self._same else torch.where(known.contains(theta), likelihood, -math.inf)

    def _likelihood(self, z: Tensor, observation: Tensor) -> Tensor:
        return log_likelihood(self.estimator, z, self._prepared[:, observation]).sum(0)


def log_likelihood(
    estimator: LikelihoodEstimator,
    z: Float[Tensor, "rows parameter"],
    prepared: Float[Tensor, "*trial rows prepared"],
) -> Float[Tensor, "*trial rows"]:
    """log p(x | theta), and of being valid where that was learned, of every trial, in float64."""
    factor = estimator.log_factor(z.float(), prepared)
    if estimator.validity is None:
        return factor
    return factor + logsigmoid(estimator.validity(z.float())).double()


def rowwise(
    estimator: LikelihoodEstimator, theta: Float[Tensor, "rows parameter"], x: XLike, *, iid: bool
) -> Float[Tensor, "rows"]:
    """`log_likelihood` of theta in its own units, given one x for each, one for all, or the same many for each.

    Raises:
        ShapeError: Neither one row of x, nor one per row of theta.
    """
    named = named_rows(x, estimator.observables, finite=not estimator.settings.impute)
    z, prepared = estimator.prior.to_unconstrained(torch.as_tensor(theta)), estimator.encode(named)
    if iid:
        return log_likelihood(estimator, z, prepared[:, None].expand(-1, len(z), -1)).sum(0)
    if len(prepared) not in (1, len(z)):
        raise ShapeError(
            f"`x` must have one row, or one per row of theta ({len(z)}); got {len(prepared)}: say `iid=True` for the sum"
        )
    return log_likelihood(estimator, z, prepared.expand(len(z), -1))
