r"""Ensembles of likelihoods and of ratios: members trained in one pass (`members`), mixed observation by observation.

.. math:: q(x | \theta) = \sum_k w_k\, q_k(x | \theta), \qquad r(x, \theta) = \frac{1}{K} \sum_k r_k(x, \theta) .

Likelihoods get the weights with which they predict held-out x best. A learned ratio times p(x) integrates to one only where
training was perfect, so that ratios cannot be compared by their values: they have equal weights, as in Hermans et al. (2022),
https://arxiv.org/abs/2110.06581. Several independent observations are a product of mixtures. The probability of being valid,
where simulations fail, is not a member's: all share one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batch import Batch
from ..simulators.prior import Prior
from .base import Estimator, XLike
from .mcmc import MCMCPosterior, mcmc_posterior
from .members import Members
from .potential import LikelihoodEstimator, rowwise


class LikelihoodEnsemble(Members):
    """Estimators of p(x | theta), up to a factor that does not depend on theta.

    Args:
        members: Two or more, which differ in nothing but their weights; not to be used afterwards.

    Raises:
        ShapeError: Fewer than two, or members of different settings.
    """

    def __init__(self, members: Sequence[Estimator]) -> None:
        first = members[0]
        assert isinstance(first, LikelihoodEstimator)
        validity = first.validity
        for member in members:
            member.validity = None  # type: ignore[assignment]
        super().__init__(members)
        self.prior, self.validity, self.normalised = first.prior, validity, first.normalised

    def finish(self, held_out: Iterable[Batch]) -> dict[str, Any]:
        """Fit the weights of the mixture to rows that no member learned from; those of ratios stay equal."""
        if self.normalised:
            return super().finish(held_out)
        return {"ensemble": {"weights": self.log_weights.exp().tolist()}}

    def log_densities(self, batch: Batch) -> Float[Tensor, "member rows"]:
        z = self.prior.to_unconstrained(batch.theta).float()
        return self.each(lambda member: member.log_factor(z, member.encode(batch.x)))

    def log_likelihood(
        self, theta: Float[Tensor, "rows parameter"], x: XLike, *, iid: bool = False
    ) -> Float[Tensor, "rows"]:
        """log q(x | theta), or log r(x, theta) of ratios; arguments as `NLE.log_likelihood`."""
        return rowwise(self, theta, x, iid=iid)

    def encode(self, x: dict[str, Tensor]) -> Float[Tensor, "rows prepared"]:
        """What the members need of x, one's after the other's."""
        return self.each(lambda member: member.encode(x)).movedim(0, 1).flatten(1)

    def log_factor(
        self, z: Float[Tensor, "rows parameter"], prepared: Float[Tensor, "*trial rows prepared"]
    ) -> Float[Tensor, "*trial rows"]:
        own = prepared.unflatten(-1, (self.members, -1)).movedim(-2, 0)
        parts = self.each(lambda member, prepared: member.log_factor(z, prepared), own)
        return torch.logsumexp(parts + self.log_weights.view(-1, *[1] * (parts.dim() - 1)), 0)

    def posterior(self, prior: Prior) -> MCMCPosterior:
        return mcmc_posterior(self, prior)
