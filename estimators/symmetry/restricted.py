r"""A density over all of a group, restricted to the support of the prior.

.. math:: p(\theta | x) = \frac{q(\theta | x)\, 1[\theta \in S]}{Z(x)}, \qquad Z(x) = \int_S q(\theta | x)\, d\theta .

Under a symmetry that is what the posterior is where the prior is cut: flat inside, nothing outside. Draws outside S are drawn again;
Z is the share of draws that lie inside, 1 where q does not reach an edge, and has no gradient here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Real
from torch import Tensor

from ...data.errors import UnsupportedError
from ..base import Posterior, XLike, seeded
from ..direct import DirectPosterior
from .canonical import Canonical

_FOR_SHARE = 500  # draws for each observation
_KEPT = 4
_REDRAWS = 200  # each of all draws of the observations that lack some


class RestrictedPosterior(Posterior):
    """Draws of q inside the prior's support, and its density, normalised there.

    Args:
        estimator: Is put into evaluation mode.
    """

    def __init__(self, estimator: Canonical) -> None:
        self.estimator = estimator
        self._whole = DirectPosterior(estimator)
        self.network = self._whole.network
        self.observables, self.prior = estimator.observables, estimator.given
        self.imputes = estimator.settings.impute
        self._known: dict[tuple[bytes, ...], Tensor] = {}

    def sample_batched(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None, show_progress_bars: bool = False
    ) -> Float[Tensor, "*sample_shape observation parameter"]:
        with torch.no_grad(), seeded(seed):
            theta, _ = self._inside(math.prod(sample_shape), self._rows(x))
        return theta.reshape(*sample_shape, *theta.shape[1:])

    def sample_with_log_prob(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        rows = self._rows(x)
        with torch.no_grad(), seeded(seed):
            theta, log_share = self._inside(math.prod(sample_shape), rows)
            lp = self._whole.log_prob_batched(theta, rows) - log_share
        shape = (*sample_shape, theta.shape[1])
        return theta.reshape(*shape, -1), lp.reshape(shape)

    def log_prob_batched(
        self, theta: Real[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
    ) -> Float[Tensor, "*sample_shape observation"]:
        rows = self._rows(x)
        theta = torch.as_tensor(theta).to(next(self.network.parameters()).device)
        lp = self._whole.log_prob_batched(theta, rows, track_gradients) - self._log_share(rows)
        return lp.where(self.prior.contains(theta), -math.inf)

    def rsample(self, sample_shape: Sequence[int], x: XLike) -> Float[Tensor, "*sample_shape observation parameter"]:
        """Draws with gradients; those outside the support are put at its edge, where they have none."""
        return self._at_edge(self._whole.rsample(sample_shape, self._rows(x)))

    def rsample_stratified(
        self, sample_shape: Sequence[int], x: XLike
    ) -> tuple[Float[Tensor, "*sample_shape component observation parameter"], Float[Tensor, "component observation"]]:
        """As `DirectPosterior.rsample_stratified`, with draws outside the support at its edge."""
        theta, log_weights = self._whole.rsample_stratified(sample_shape, self._rows(x))
        return self._at_edge(theta), log_weights

    def to(self, device: str | torch.device) -> RestrictedPosterior:
        self.network.to(device)
        self._known.clear()
        return self

    def _at_edge(self, theta: Tensor) -> Tensor:
        inside = self.prior.contains(theta)
        edge = self.prior.from_unconstrained(self.prior.to_unconstrained(theta.detach()))
        return theta.where(inside[..., None], edge)

    def _inside(
        self, draws: int, x: dict[str, Tensor]
    ) -> tuple[Float[Tensor, "draw observation parameter"], Float[Tensor, "observation"]]:
        """Draws in the support, and the log share of those that were.

        Raises:
            UnsupportedError: Observations of which next to nothing lies inside.
        """
        theta = self._whole.sample_batched((draws,), x)
        inside = self.prior.contains(theta)
        made = torch.full(theta.shape[1:2], float(draws), dtype=torch.float64, device=theta.device)
        for _ in range(_REDRAWS):
            lacking = (~inside).any(0).nonzero()[:, 0]
            if not len(lacking):
                return theta, (draws / made).log()
            again = self._whole.sample_batched((draws,), {name: rows[lacking.cpu()] for name, rows in x.items()})
            made[lacking] += (~inside[:, lacking]).sum(0)
            theta[:, lacking] = theta[:, lacking].where(inside[:, lacking][..., None], again)
            inside = self.prior.contains(theta)
        raise UnsupportedError(
            f"observation {int(lacking[0])}: hardly any draw of the density lies in the prior's support, whose poses end where "
            "this observation has its own: look at `posterior.outside(x)`, or widen the prior"
        )

    def _log_share(self, x: dict[str, Tensor]) -> Float[Tensor, "observation"]:
        """log Z, kept for the observations that were asked for last: attacks go back and forth between two."""
        key = tuple(values.detach().cpu().numpy().tobytes() for values in x.values())
        if key not in self._known:
            with torch.no_grad(), seeded(0):
                theta = self._whole.sample_batched((_FOR_SHARE,), {name: rows.detach() for name, rows in x.items()})
            share = self.prior.contains(theta).double().mean(0)
            self._known[key] = share.clamp(min=1 / _FOR_SHARE).log()
            if len(self._known) > _KEPT:
                self._known.pop(next(iter(self._known)))
        return self._known[key]
