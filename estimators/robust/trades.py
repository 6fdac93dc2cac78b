r"""TRADES: the posterior of the worst perturbation is kept near that of the data.

.. math:: \min_\phi \; \mathbb{E}[-\log q_\phi(\theta | x)] + \lambda\, \mathbb{E}_x \mathrm{KL}(q(\cdot | \tilde x) \| q(\cdot | x)), \qquad
    \tilde x = \arg\max_{\|x' - x\| \le r} \mathrm{KL}(q(\cdot | x') \| q(\cdot | x))

Zhang et al. (2019), https://arxiv.org/abs/1901.08573, in the form of Gloeckler, Deistler & Macke (2023),
https://arxiv.org/abs/2305.14984: one reparametrised draw for each divergence.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.batch import Batch
from ..base import Estimator
from ..ensemble import Ensemble
from ..mixture import strata
from ..precision import full_precision
from ..settings import TradesSettings
from .balls import ball
from .base import of_step
from .fisher import require_density
from .perturbations import Named, Space


class Trades:
    """λ times the divergence that the worst perturbation causes.

    Args:
        settings: Weight, size and search.
        estimator: What is trained.
        space: Where x may go.
        seed: Of starts and draws, with the step.

    Raises:
        UnsupportedError: An estimator that has no density of theta.
    """

    def __init__(self, settings: TradesSettings, estimator: Estimator, space: Space, seed: int = 0) -> None:
        require_density(estimator, "trades")
        self.settings, self._space, self._seed = settings, space, seed

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        with of_step(self._seed, step), full_precision(batch.theta):
            if isinstance(estimator, Ensemble):
                return estimator.each(lambda member: self._term(member, batch.x), at_once=False)
            return self._term(estimator, batch.x)[None]

    @torch.no_grad()
    def validate(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        return self(estimator, batch, step)

    def _term(self, estimator: Any, x: Named) -> Tensor:
        chosen = self.settings
        moved = self._space.worst(
            lambda there: _divergence(estimator, there, x), x, ball(chosen.norm), chosen.eps, chosen.steps
        )
        return chosen.weight * _divergence(estimator, moved, x).mean()


def _divergence(estimator: Any, moved: Named, x: Named) -> Float[Tensor, "rows"]:
    """KL(q(.|x~) || q(.|x)) by one draw of every component."""
    there, here = (estimator.density(estimator.condition(given)) for given in (moved, x))
    z, log_weights = strata(there, ())
    parts = torch.stack([there.log_prob(draw) - here.log_prob(draw) for draw in z.unbind(-2)], -1)
    return (log_weights.exp() * parts).sum(-1)
