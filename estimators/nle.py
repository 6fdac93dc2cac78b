r"""Neural likelihood estimation.

Trains :math:`q_\phi(x | \theta)` by maximum likelihood on simulated pairs,

.. math:: \min_\phi \; -\mathbb{E}_{p(\theta) p(x | \theta)} \log q_\phi(x | \theta), \qquad
    q_\phi(x | \theta) = q_\phi(y | z(\theta)) \left| \det \frac{dy}{dx} \right| ,

with a flow over y, all observables flattened, transformed and standardised, conditioned on theta in the prior's
unconstrained space and on known nuisance (context). The posterior under any prior follows from it, and that of many
independent observations from its product; both by Markov chains (`mcmc`). Papamakarios, Sterratt & Murray (2019),
https://arxiv.org/abs/1805.07226.

Counts n are made continuous by uniform noise u on [0, 1): the flow learns the density of n + u, whose integral over a cell
is the probability of n (Theis, van den Oord & Bethge 2016, https://arxiv.org/abs/1511.01844); `NLE.log_likelihood` takes
its value at the middle of the cell. The noise is a function of (seed, step, row, entry). Entries of x that never vary
have no density: the flow sees noise in their place, and the density is that of the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import ConfigError
from ..data.statistics import Moments
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Estimator, XLike
from .flows import build_flow
from .mcmc import MCMCPosterior, mcmc_posterior
from .networks import ValidityLogit
from .noise import combine, uniform
from .potential import rowwise
from .precision import full_precision
from .preprocess import Preprocess
from .settings import EmbeddingSettings, EstimatorSettings

_LEAST_SD = 1e-2  # of a standardised entry, or whitened axis, that varies; those that do have 1


class NLE(Estimator):
    """A conditional flow over x.

    Raises:
        ConfigError: An embedding, which would change what the density is of; imputation; a floor of standard deviations; or
            nothing but context.
    """

    normalised = True

    def __init__(self, prior: Prior, observables: Variables, settings: EstimatorSettings) -> None:
        super().__init__(prior, observables, settings)
        require_plain(settings)
        self.prior, self.observables = prior, observables
        self.settings = settings.model_copy(update={"embedding": EmbeddingSettings(kind="none")})
        modelled, known = _divided(observables, settings.context)
        given = settings.transforms
        of_known = {name: given[name] for name in known.names if name in given}
        of_modelled = {name: kind for name, kind in given.items() if name not in known.names}
        self.preprocess = Preprocess(modelled, of_modelled, whiten=settings.whiten)
        self.known = Preprocess(known, of_known) if known else None
        self.flow = build_flow(settings.flow, modelled.size, prior.dim + known.size)
        self.validity = ValidityLogit(prior.dim).requires_grad_(False) if settings.failures else None
        self.varies: Tensor
        self.seed: Tensor
        self.step: Tensor
        self.register_buffer("varies", torch.ones(self.preprocess.features, dtype=torch.bool))
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def transforms(self) -> dict[str, str]:
        return {**self.preprocess.transforms, **(self.known.transforms if self.known else {})}

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        self.preprocess.fit_parts(lambda: (_only(self.preprocess, batch.x) for batch in portions))
        if known := self.known:
            known.fit_parts(lambda: (_only(known, batch.x) for batch in portions))
        moments = Moments(self.preprocess.features)
        for batch in portions:
            moments.update(self.preprocess(_only(self.preprocess, batch.x)))
        self.varies.copy_(moments.sd > _LEAST_SD)

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        if self.training:
            self.step += 1
        step = self.step if self.training else torch.zeros_like(self.step)
        sizes = [self.preprocess.observables.size, self.preprocess.features]
        noise = uniform(combine(self.seed, step), batch.rows * sum(sizes)).reshape(batch.rows, -1)
        within, instead = noise.split(sizes, 1)
        prepared = self._prepared(batch.x, within, torch.special.ndtri(instead))
        with full_precision(prepared):
            return -self.log_factor(self.prior.to_unconstrained(batch.theta).float(), prepared)

    def log_likelihood(
        self, theta: Float[Tensor, "rows parameter"], x: XLike, *, iid: bool = False
    ) -> Float[Tensor, "rows"]:
        """log q(x | theta), normalised over x in its own units, and of being valid where that was learned.

        Args:
            theta: Parameters.
            x: One row per row of theta, or one row that is meant for all.
            iid: All rows of x are independent observations of each row of theta: the sum of their log-likelihoods.
        """
        return rowwise(self, theta, x, iid=iid)

    def encode(self, x: dict[str, Tensor]) -> Float[Tensor, "rows prepared"]:
        rows = len(next(iter(x.values())))
        middle = self.seed.new_full((rows, self.preprocess.observables.size), 0.5, dtype=torch.float64)
        return self._prepared(x, middle, middle.new_zeros(rows, self.preprocess.features))

    def log_factor(
        self, z: Float[Tensor, "rows parameter"], prepared: Float[Tensor, "*trial rows prepared"]
    ) -> Float[Tensor, "*trial rows"]:
        size = self.preprocess.features
        known = prepared[..., size:-1].float()
        condition = torch.cat([z.expand(*known.shape[:-1], -1), known], -1) if self.known else z
        return self.flow(condition).log_prob(prepared[..., :size].float()).double() + prepared[..., -1]

    def posterior(self, prior: Prior) -> MCMCPosterior:
        return mcmc_posterior(self, prior)

    def _prepared(self, x: dict[str, Tensor], within: Tensor, instead: Tensor) -> Tensor:
        """Features of x, then context, then log |det dy/dx|, less the density of what stands in for constant entries."""
        y = self._dequantised(_only(self.preprocess, x), within)
        features = torch.where(self.varies, self.preprocess(y).double(), instead)
        standing_in = torch.where(self.varies, 0.0, -0.5 * instead.square() - 0.5 * math.log(2 * math.pi)).sum(1)
        known = [self.known(_only(self.known, x)).double()] if self.known else []
        return torch.cat([features, *known, (self.preprocess.log_abs_det(y) - standing_in)[:, None]], 1)

    def _dequantised(self, x: dict[str, Tensor], within: Tensor) -> dict[str, Tensor]:
        """Whole numbers moved into their cells, by a share of 0 to 1."""
        variables = self.preprocess.observables
        shares = dict(zip(variables.names, within.split([v.size for v in variables], 1), strict=True))
        return {
            v.name: x[v.name] + shares[v.name].to(x[v.name]).reshape(x[v.name].shape)
            if v.support.integer
            else x[v.name]
            for v in variables
        }


def require_plain(settings: EstimatorSettings) -> None:
    """Refuse what has no density of x.

    Raises:
        ConfigError: An embedding, imputation, or a floor of standard deviations.
    """
    if settings.embedding not in (EmbeddingSettings(), EmbeddingSettings(kind="none")):
        raise ConfigError(
            "`embedding` must be left out with method `nle`, which learns a density of x itself: that of an embedding "
            "would be another one, and its training would make the embedding constant; use `npe` or `nre`, or simulate "
            "summaries"
        )
    if settings.impute:
        raise ConfigError(
            "`on_invalid` must not be `impute` with method `nle`, which would take the means put in for missing entries "
            "for data: use `mask`, or method `npe` or `nre`"
        )
    if settings.sd_floor:
        raise ConfigError(
            "`sd_floor` must be left out with method `nle`, which learns a density of x and would take entries far below it "
            "for constant: use `npe` or `nre`"
        )


def _divided(observables: Variables, context: Iterable[str]) -> tuple[Variables, Variables]:
    """What has a density, and what it is conditioned on."""
    known = set(context)
    unknown = known - set(observables.names)
    modelled = Variables(v for v in observables if v.name not in known)
    if unknown or not modelled:
        raise ConfigError(
            f"`context` must be some, not all, of the observables {', '.join(observables.names)}; got {', '.join(sorted(known))}"
        )
    return modelled, Variables(v for v in observables if v.name in known)


def _only(preprocess: Preprocess, x: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x[name] for name in preprocess.observables.names}
