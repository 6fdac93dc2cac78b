r"""Fisher-information regularisation: posteriors that small changes of x move little.

.. math:: \min_\phi \; \mathbb{E}[-\log q_\phi(\theta | x)] + \beta\, \mathbb{E}_x \mathrm{tr}\, F_\phi(x), \qquad
    F_\phi(x) = \mathbb{E}_{\theta \sim q_\phi(\cdot | x)} \left[ \nabla_x \log q_\phi\, \nabla_x \log q_\phi^T \right]

Gloeckler, Deistler & Macke (2023), https://arxiv.org/abs/2305.14984. The expectation is of reparametrised draws, whose gradient
in the weights is kept; the gradient in x is that of the density at draws that stay where they are, in x as it is given. What
it buys is paid for in accuracy: for x = aθ + N(0, σ²) and a normal q the minimum is the posterior for noise of variance
σ² + 2β, wider than the right one.

The trace may be taken of a part of each batch's rows and in every n-th step only, with n times the weight: the mean gradient
is the same. Context and masks, which have no errors, do not count among the entries of x. ``largest`` penalises
:math:`\lambda_{\max}` in place of the trace, as :math:`v^T F v` with v from a few power iterations on the same draws.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad

from ...data.batch import Batch
from ...data.errors import UnsupportedError
from ..base import Estimator
from ..direct import DirectEstimator
from ..ensemble import Ensemble
from ..mixture import strata
from ..precision import full_precision
from ..settings import FisherSettings
from .base import of_step

_POWER_ITERATIONS = 10


class FisherPenalty:
    """β tr F of an estimator of q(theta | x), estimated on rows of a batch.

    Args:
        settings: The weight and the estimate.
        estimator: What is trained.
        seed: Of the draws, with the step.

    Raises:
        UnsupportedError: An estimator that has no density of theta.
    """

    def __init__(self, settings: FisherSettings, estimator: Estimator, seed: int = 0) -> None:
        require_density(estimator, "fisher")
        self.settings, self._seed = settings, seed

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"] | None:
        """What a step adds to the objective of each member; None where it adds nothing."""
        chosen = self.settings
        if step % chosen.every:
            return None
        rows = batch.rows if chosen.rows is None else min(chosen.rows, batch.rows)
        return chosen.every * chosen.beta * self.penalty(estimator, batch.select(slice(rows)), step)

    @torch.no_grad()
    def validate(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        """What all rows of a batch add to the validation loss of each member."""
        return self.settings.beta * self.penalty(estimator, batch, step)

    @torch.no_grad()
    def finish(self, estimator: Estimator, held_out: Iterable[Batch]) -> dict[str, float]:
        """β, the mean of tr F, or of its largest eigenvalue, and the loss without it, of rows that nothing was learned from."""
        found = [(b.rows, self.penalty(estimator, b, 0).mean(), estimator.loss(b).mean()) for b in held_out]
        rows = sum(count for count, _, _ in found)
        information, loss = (float(sum(part[0] * part[k] for part in found)) / rows for k in (1, 2))
        return {"beta": self.settings.beta, self.settings.kind: information, "loss": loss}

    def penalty(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        """Mean over rows of tr F, or of its largest eigenvalue."""
        one = _largest if self.settings.kind == "largest" else _trace
        # embeddings in full precision too: gradients would be rounded on their way through them
        with of_step(self._seed, step), full_precision(batch.theta):
            if isinstance(estimator, Ensemble):
                return estimator.each(lambda member: one(member, batch.x, self.settings.draws).mean(), at_once=False)
            return one(estimator, batch.x, self.settings.draws).mean()[None]


def require_density(estimator: Estimator, what: str) -> None:
    """Refuse what has no density of theta.

    Raises:
        UnsupportedError: A likelihood or ratio, say.
    """
    if not isinstance(estimator, DirectEstimator):
        raise UnsupportedError(
            f"`{what}` needs a method that learns a density of theta given x; `{estimator.settings.method}` learns "
            "something else: use npe, or leave it out"
        )


def _scores(
    estimator: Any, x: dict[str, Tensor], draws: int
) -> tuple[Float[Tensor, "draw rows entry"], Float[Tensor, "draw rows"]]:
    """Gradients in x at draws of every component, and their weights, which sum to one over draws."""
    z, log_weights = strata(estimator.density(estimator.condition(x)), (draws,))
    flat = z.movedim(-2, 1).flatten(0, 1)
    weights = log_weights.exp().T.expand(draws, -1, -1).flatten(0, 1) / draws
    many = len(flat)
    given = {name: values.repeat(many, *[1] * (values.dim() - 1)) for name, values in x.items()}

    def total(given: dict[str, Tensor]) -> Tensor:
        return estimator.density(estimator.condition(given)).log_prob(flat.flatten(0, 1)).sum()

    parts = grad(total)(given)
    free = [part for name, part in parts.items() if name not in estimator.settings.fixed]
    return torch.cat([part.reshape(many, flat.shape[1], -1) for part in free], -1), weights


def _trace(estimator: Any, x: dict[str, Tensor], draws: int) -> Float[Tensor, "rows"]:
    scores, weights = _scores(estimator, x, draws)
    return (weights * scores.square().sum(-1)).sum(0)


def _largest(estimator: Any, x: dict[str, Tensor], draws: int) -> Float[Tensor, "rows"]:
    scores, weights = _scores(estimator, x, draws)
    fixed, heavy = scores.detach(), weights.detach()[..., None]
    v = torch.ones_like(fixed[0])
    for _ in range(_POWER_ITERATIONS):
        v = (heavy * fixed * (fixed * v).sum(-1, keepdim=True)).sum(0)
        v = v / v.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return (weights * (scores * v).sum(-1).square()).sum(0)
