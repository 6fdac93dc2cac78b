r"""Neural ratio estimation.

A classifier :math:`h_\phi(\theta, x)` that tells pairs of the joint distribution from pairs of the marginals knows
:math:`\log p(x | \theta) / p(x)`, from which follow posteriors under any prior and of many independent observations, by
Markov chains (`mcmc`). Contrasts are the parameters of other rows of the batch, so nothing is drawn.

``contrastive``: NRE-C, Miller, Weniger & Forré (2022), https://arxiv.org/abs/2210.06170. Among K parameters of the prior none
belongs to x, or with odds γ the last one does:

.. math:: -\frac{1}{1 + \gamma} \mathbb{E}\left[\log \frac{K}{K + \gamma \sum_k e^{h(\theta_k, x)}}\right]
    - \frac{\gamma}{1 + \gamma} \mathbb{E}\left[\log \frac{\gamma e^{h(\theta_K, x)}}{K + \gamma \sum_k e^{h(\theta_k, x)}}\right]

with all :math:`\theta_k` of the prior in the first and :math:`\theta_K, x` of the joint distribution in the second; its
optimum is :math:`h = \log p(x | \theta) / p(x)`, without an unknown constant.

``balanced``: BNRE, Delaunoy et al. (2022), https://arxiv.org/abs/2208.13624. Cross-entropy of
:math:`d = \sigma(h)`, with a weight λ on the condition that an optimal classifier fulfils,

.. math:: -\mathbb{E}_{p(\theta, x)} \log d - \mathbb{E}_{p(\theta) p(x)} \log (1 - d)
    + \lambda \left(\mathbb{E}_{p(\theta, x)} d + \mathbb{E}_{p(\theta) p(x)} d - 1\right)^2 ,

which makes posteriors rather too wide than too narrow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from ..data.batch import Batch
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Estimator, XLike
from .embeddings import build_embedding
from .mcmc import MCMCPosterior, mcmc_posterior
from .networks import ResidualNetwork, ValidityLogit
from .potential import rowwise
from .precision import full_precision
from .preprocess import build_preprocess
from .settings import EstimatorSettings, RatioSettings


class NRE(Estimator):
    """A residual network over [z, embedding of x]. Context is part of x: the ratio given context has the same posterior."""

    normalised = False

    def __init__(self, prior: Prior, observables: Variables, settings: EstimatorSettings) -> None:
        super().__init__(prior, observables, settings)
        self.prior, self.observables, self.settings = prior, observables, settings
        self.preprocess = build_preprocess(observables, settings)
        self.embedding, features = build_embedding(settings.embedding, observables)
        self.classifier = ResidualNetwork(prior.dim + features, settings.ratio.hidden)
        self.validity = ValidityLogit(prior.dim).requires_grad_(False) if settings.failures else None

    @property
    def transforms(self) -> dict[str, str]:
        return dict(self.preprocess.transforms)

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        self.preprocess.fit_parts(lambda: (batch.x for batch in portions))

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        z, features = self.prior.to_unconstrained(batch.theta).float(), self.embedding(self.preprocess(batch.x)).float()
        ratio = self.settings.ratio
        contrasts = rolled(z, ratio.contrasts if ratio.kind == "contrastive" else 1)
        with full_precision(features):
            joint, others = self._logit(z, features), self._logit(contrasts, features)
            return _LOSSES[ratio.kind](joint, others, ratio)

    def log_ratio(
        self, theta: Float[Tensor, "rows parameter"], x: XLike, *, iid: bool = False
    ) -> Float[Tensor, "rows"]:
        """log p(x | theta) / p(x), and log of being valid where that was learned; arguments as `NLE.log_likelihood`."""
        return rowwise(self, theta, x, iid=iid)

    def encode(self, x: dict[str, Tensor]) -> Float[Tensor, "rows prepared"]:
        return self.embedding(self.preprocess(x)).double()

    def log_factor(
        self, z: Float[Tensor, "rows parameter"], prepared: Float[Tensor, "*trial rows prepared"]
    ) -> Float[Tensor, "*trial rows"]:
        return self._logit(z, prepared.float()).double()

    def posterior(self, prior: Prior) -> MCMCPosterior:
        return mcmc_posterior(self, prior)

    def _logit(self, z: Tensor, features: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(z.shape[:-1], features.shape[:-1])
        return self.classifier(torch.cat([z.expand(*shape, -1), features.expand(*shape, -1)], -1))


def rolled(z: Float[Tensor, "rows parameter"], contrasts: int) -> Float[Tensor, "contrast rows parameter"]:
    """For each row the parameters of others, as far apart as can be: rows of one group are neighbours.

    A batch of one row is its own contrast; one of few has as many contrasts as it has other rows.
    """
    many = max(1, min(contrasts, len(z) - 1))
    step = max(1, len(z) // (many + 1))
    return torch.stack([z.roll(k * step, 0) for k in range(1, many + 1)])


def contrastive_loss(
    joint: Float[Tensor, "rows"], others: Float[Tensor, "contrast rows"], settings: RatioSettings
) -> Float[Tensor, "rows"]:
    """NRE-C of each row: ``joint`` has h of its own parameters, ``others`` that of those of other rows."""
    log_many, log_gamma = math.log(len(others)), math.log(settings.gamma)
    none = _log_sum(log_many, log_gamma + others) - log_many
    one = _log_sum(log_many, log_gamma + torch.cat([joint[None], others[1:]])) - log_gamma - joint
    return (none + settings.gamma * one) / (1 + settings.gamma)


def balanced_loss(
    joint: Float[Tensor, "rows"], others: Float[Tensor, "contrast rows"], settings: RatioSettings
) -> Float[Tensor, "rows"]:
    """BNRE of each row; the balancing condition is that of the batch, and the same in all of its rows."""
    unbalance = joint.sigmoid().mean() + others.sigmoid().mean() - 1
    return -logsigmoid(joint) - logsigmoid(-others).mean(0) + settings.balance * unbalance.square()


def _log_sum(constant: float, logs: Float[Tensor, "term rows"]) -> Float[Tensor, "rows"]:
    return torch.cat([torch.full_like(logs[:1], constant), logs]).logsumexp(0)


_LOSSES: dict[str, Callable[[Tensor, Tensor, RatioSettings], Tensor]] = {
    "contrastive": contrastive_loss,
    "balanced": balanced_loss,
}
