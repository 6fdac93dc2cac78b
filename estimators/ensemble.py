r"""Ensembles of posterior estimators: members trained in one pass (`members`), mixed by how well they predict held-out rows.

.. math:: q(\theta | x) = \sum_k w_k\, q_k(\theta | x)

Ensembles of posterior estimators are more conservative than their members: Hermans et al. (2022),
https://arxiv.org/abs/2110.06581.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import UnsupportedError
from ..simulators.prior import Prior
from .base import Estimator
from .direct import DirectEstimator, DirectPosterior, log_prob
from .members import ROWS_AT_ONCE, Members


class Ensemble(Members):
    """Posterior estimators, mixed by how well they predict held-out rows.

    Args:
        members: Two or more, which differ in nothing but their weights; not to be used afterwards.

    Raises:
        ShapeError: Fewer than two, or members of different settings.
        UnsupportedError: Of a method that has no density of theta.
    """

    def __init__(self, members: Sequence[Estimator]) -> None:
        super().__init__(members)
        self.prior = _direct(self.member).prior

    def condition(self, x: dict[str, Tensor]) -> Float[Tensor, "rows context"]:
        """What the members' densities are conditioned on, one member's after the other's."""
        return self.each(lambda member: member.condition(x)).movedim(0, 1).flatten(1)

    def density(self, context: Float[Tensor, "rows context"]) -> MemberMixture:
        return MemberMixture(self, context.unflatten(1, (self.members, -1)).movedim(1, 0))

    def posterior(self, prior: Prior) -> DirectPosterior:
        self.member.posterior(prior)  # refuses the priors that a member refuses
        return DirectPosterior(self)

    def log_densities(self, batch: Batch) -> Float[Tensor, "member rows"]:
        return self.each(lambda member: log_prob(member, batch.theta, member.condition(batch.x)))


class MemberMixture:
    """The mixture of the members' densities given x, over the prior's unconstrained space.

    Args:
        ensemble: Whose members.
        context: What each is conditioned on.
    """

    def __init__(self, ensemble: Ensemble, context: Float[Tensor, "member rows context"]) -> None:
        self._ensemble, self._context = ensemble, context

    @property
    def has_rsample(self) -> bool:
        """Whether draws have gradients, which is so if a member's have."""
        return bool(self._ensemble.ask(0, lambda member: member.density(self._context[0]).has_rsample))

    def log_prob(self, z: Float[Tensor, "*sample rows parameter"]) -> Float[Tensor, "*sample rows"]:
        """log Σ_k w_k q_k(z | x)."""
        few = z.shape[:-1].numel() <= ROWS_AT_ONCE or torch.is_grad_enabled()
        parts = self._ensemble.each(lambda m, context: m.density(context).log_prob(z), self._context, at_once=few)
        return torch.logsumexp(parts + self._ensemble.log_weights.view(-1, *[1] * (parts.dim() - 1)), 0)

    def sample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*sample rows parameter"]:
        """Independent draws."""
        with torch.no_grad():
            return self._draw(self._independent(math.prod(sample_shape)), "sample", sample_shape)

    def rsample(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "*sample rows parameter"]:
        """Draws with gradients, as many of each member as its weight says: their mean varies less than that of others."""
        return self._draw(self._stratified(math.prod(sample_shape)), "rsample", sample_shape)

    def stratified(
        self, sample_shape: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "*sample rows member parameter"], Float[Tensor, "rows member"]]:
        """Draws of every member, with gradients, and the logarithms of the weights."""
        shape = torch.Size(sample_shape)
        z = self._ensemble.each(  # in turn: vmap cannot fill one tensor with several draws
            lambda member, context: member.density(context).rsample(shape), self._context, at_once=False
        )
        return z.movedim(0, -2), self._ensemble.log_weights.expand(self._context.shape[1], -1)

    def rsample_and_log_prob(
        self, sample_shape: Sequence[int] = ()
    ) -> tuple[Float[Tensor, "*sample rows parameter"], Float[Tensor, "*sample rows"]]:
        """Independent draws, with gradients where `has_rsample`, and the log density of each."""
        how = "rsample" if self.has_rsample else "sample"
        z = self._draw(self._independent(math.prod(sample_shape)), how, sample_shape)
        return z, self.log_prob(z)

    def _draw(self, members: Int[Tensor, "draw rows"], how: str, shape: Sequence[int]) -> Tensor:
        """Each draw from the member that is named for it, and from no other."""
        context, drawn, places = self._context, [], []
        for k in range(len(context)):
            place = (members == k).flatten().nonzero()[:, 0]
            given = context[k, place % context.shape[1]]
            drawn.append(self._ensemble.ask(k, lambda member, given: getattr(member.density(given), how)(), given))
            places.append(place)
        z = torch.cat(drawn)[torch.cat(places).argsort()]
        return z.reshape(*shape, context.shape[1], -1)

    def _independent(self, draws: int) -> Int[Tensor, "draw rows"]:
        weights, rows = self._ensemble.log_weights.exp(), self._context.shape[1]
        return torch.multinomial(weights, draws * rows, replacement=True).view(draws, rows)

    def _stratified(self, draws: int) -> Int[Tensor, "draw rows"]:
        """Systematic sampling of members, in a random order that is each row's own."""
        edges = self._ensemble.log_weights.exp().cumsum(0)[:-1]
        rows = self._context.shape[1]
        start, order = (torch.rand(n, rows, device=edges.device) for n in (1, draws))
        points = (torch.arange(draws, device=edges.device)[:, None] + start) / max(draws, 1)
        return torch.searchsorted(edges, points, right=True).gather(0, order.argsort(0))


def _direct(member: Estimator) -> DirectEstimator:
    """The member, if its posterior is the density it has learned: then that of the ensemble is their mixture."""
    if not isinstance(member, DirectEstimator) or not isinstance(member.posterior(member.prior), DirectPosterior):
        raise UnsupportedError(
            f"`ensemble` needs a method that learns a density of theta given x, a likelihood or a ratio; "
            f"`{member.settings.method}` learns something else: use `ensemble: 1`, or `method: npe`"
        )
    member.train()  # its posterior has put it into evaluation mode
    return member
