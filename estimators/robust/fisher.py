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

For a normal density :math:`N(m(x), L(x) L(x)^T)` the trace is known: with :math:`L_0 = L(x)` held still,
:math:`F = J^T J`, J the Jacobian in x of :math:`L_0^{-1} m`, of the entries of :math:`W = L_0^{-1} L` below the diagonal, and of
:math:`\sqrt 2` times those on it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.func import grad, vjp

from ...data.batch import Batch
from ...data.errors import ConfigError, UnsupportedError
from ..base import Estimator
from ..direct import DirectEstimator
from ..ensemble import Ensemble
from ..mixture import strata
from ..precision import full_precision
from ..settings import FisherSettings
from ..sharing import rank_and_world
from .base import of_step
from .smoothing import GradientAverage

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
        if settings.draws == "exact":
            _require_normal(estimator)
        self.settings, self.beta, self._seed = settings, _weight(settings), seed
        self.average = GradientAverage(settings.ema) if settings.ema else None

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"] | None:
        """What a step adds to the objective of each member; None where it adds nothing."""
        if self.average:
            return self._averaged(self.average, estimator, batch, step)
        if step % self.settings.every:
            return None
        return self.settings.every * self.beta * self._of_some(estimator, batch, step)

    def _averaged(
        self, average: GradientAverage, estimator: Estimator, batch: Batch, step: int
    ) -> Float[Tensor, "member"]:
        weights = [p for p in estimator.parameters() if p.requires_grad]
        added = torch.zeros(estimator.members, device=batch.theta.device)
        if not step % self.settings.every:
            penalty = self.beta * self._of_some(estimator, batch, step)
            average.add(penalty.sum(), weights)
            added = self.settings.every * penalty.detach()  # as it is without the average
        return added + average.term(weights) / estimator.members

    def _of_some(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        _, world = rank_and_world()
        rows = batch.rows if self.settings.rows is None else min(max(self.settings.rows // world, 1), batch.rows)
        return self.penalty(estimator, batch.select(slice(rows)), step)

    @torch.no_grad()
    def validate(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        """What all rows of a batch add to the validation loss of each member."""
        return self.beta * self.penalty(estimator, batch, step)

    @torch.no_grad()
    def finish(self, estimator: Estimator, held_out: Iterable[Batch]) -> dict[str, float]:
        """β, the mean of tr F, or of its largest eigenvalue, and the loss without it, of rows that nothing was learned from."""
        found = [(b.rows, self.penalty(estimator, b, 0).mean(), estimator.loss(b).mean()) for b in held_out]
        rows = sum(count for count, _, _ in found)
        information, loss = (float(sum(part[0] * part[k] for part in found)) / rows for k in (1, 2))
        return {"beta": self.beta, self.settings.kind: information, "loss": loss}

    def penalty(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        """Mean over rows of tr F, or of its largest eigenvalue."""
        # embeddings in full precision too: gradients would be rounded on their way through them
        with of_step(self._seed, step), full_precision(batch.theta):
            if isinstance(estimator, Ensemble):
                return estimator.each(lambda member: self._of_rows(member, batch.x).mean(), at_once=False)
            return self._of_rows(estimator, batch.x).mean()[None]

    def _of_rows(self, estimator: Any, x: dict[str, Tensor]) -> Float[Tensor, "rows"]:
        draws = self.settings.draws
        if draws == "exact":
            return _exact_trace(estimator, x)
        return (_largest if self.settings.kind == "largest" else _trace)(estimator, x, draws)


def _weight(settings: FisherSettings) -> float:
    if settings.beta == "auto":
        raise ConfigError("`fisher.beta` must be a number here: `simfer.train` is what finds one for `auto`")
    return settings.beta


def _require_normal(estimator: Estimator) -> None:
    flow = estimator.settings.flow
    if estimator.settings.method != "npe" or flow.kind != "gmm" or flow.components != 1:
        raise UnsupportedError(
            "`draws: exact` needs a normal density, `flow: {kind: gmm, components: 1}`: give a number of draws"
        )


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
    return torch.cat([part.reshape(many, flat.shape[1], -1) for part in _free(parts, estimator)], -1), weights


def _free(parts: dict[str, Tensor], estimator: Any) -> list[Tensor]:
    return [part for name, part in parts.items() if name not in estimator.settings.fixed]


def _trace(estimator: Any, x: dict[str, Tensor], draws: int) -> Float[Tensor, "rows"]:
    scores, weights = _scores(estimator, x, draws)
    return (weights * scores.square().sum(-1)).sum(0)


def _exact_trace(estimator: Any, x: dict[str, Tensor]) -> Float[Tensor, "rows"]:
    still = estimator.density(estimator.condition(x)).base.scale_tril[:, 0]
    below = torch.ones_like(still[0], dtype=torch.bool).tril(-1)

    def outputs(given: dict[str, Tensor]) -> Tensor:
        normal = estimator.density(estimator.condition(given)).base
        mean = torch.linalg.solve_triangular(still, normal.loc[:, 0, :, None], upper=False)[..., 0]
        ratio = torch.linalg.solve_triangular(still, normal.scale_tril[:, 0], upper=False)
        return torch.cat([mean, 2**0.5 * ratio.diagonal(dim1=-2, dim2=-1), ratio[:, below]], 1).sum(0)

    found, pull, *_ = vjp(outputs, x)
    rows = [_free(pull(unit)[0], estimator) for unit in torch.eye(len(found)).to(found)]
    return torch.stack([part.reshape(len(part), -1).square().sum(1) for row in rows for part in row]).sum(0)


def _largest(estimator: Any, x: dict[str, Tensor], draws: int) -> Float[Tensor, "rows"]:
    scores, weights = _scores(estimator, x, draws)
    fixed, heavy = scores.detach(), weights.detach()[..., None]
    v = torch.ones_like(fixed[0])
    for _ in range(_POWER_ITERATIONS):
        v = (heavy * fixed * (fixed * v).sum(-1, keepdim=True)).sum(0)
        v = v / v.norm(dim=-1, keepdim=True).clamp(min=1e-30)
    return (weights * (scores * v).sum(-1).square()).sum(0)
