r"""Neural posterior estimation.

Trains :math:`q_\phi(\theta | x)` by maximum likelihood on simulated pairs,

.. math:: \min_\phi \; -\mathbb{E}_{p(\theta) p(x | \theta)} \log q_\phi(\theta | x),
    \qquad q_\phi(\theta | x) = q_\phi(z | x) \prod_i \frac{p(\theta_i)}{\phi(z_i)},

with the flow in the prior's unconstrained space z, where the prior is N(0, I). Papamakarios & Murray (2016),
https://arxiv.org/abs/1605.06376; Greenberg et al. (2019), https://arxiv.org/abs/1905.07488.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import ShapeError
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Estimator
from .direct import DirectPosterior, latents, with_latents
from .embeddings import build_embedding
from .flows import build_flow
from .frame import Frame, Framed
from .precision import full_precision
from .preprocess import build_preprocess
from .settings import EstimatorSettings


class NPE(Estimator):
    """A conditional flow over the prior's unconstrained space, fed by an embedding of x."""

    def __init__(self, prior: Prior, observables: Variables, settings: EstimatorSettings) -> None:
        super().__init__(prior, observables, settings)
        self.prior, self.observables, self.settings = prior, observables, settings
        self.preprocess = build_preprocess(observables, settings)
        self.embedding, context = build_embedding(settings.embedding, observables)
        self.flow = build_flow(settings.flow, prior.dim, context)
        self.frame = Frame(prior.dim) if settings.scale == "rows" else None

    @property
    def transforms(self) -> dict[str, str]:
        return dict(self.preprocess.transforms)

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        self.preprocess.fit_parts(lambda: (batch.x for batch in portions))
        if self.frame is not None:
            self.frame.fit(self.prior.to_unconstrained(batch.theta) for batch in portions)

    def condition(self, x: dict[str, Tensor]) -> Float[Tensor, "rows context"]:
        return self.embedding(self.preprocess(x))

    def density(self, context: Float[Tensor, "rows context"]) -> Any:
        return self.flow(context) if self.frame is None else Framed(self.flow(context), self.frame)

    def prepare(self, rows: Batch) -> Batch:
        return with_latents(self.prior, rows)

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        z, log_abs_det = latents(self.prior, batch)
        context = self.condition(batch.x).float()
        with full_precision(context):
            return -(self.density(context).log_prob(z).double() + log_abs_det)

    def posterior(self, prior: Prior) -> DirectPosterior:
        if prior != self.prior:
            raise ShapeError(
                f"`prior` must be the one the simulations were drawn from, {self.prior}; got {prior}: NPE cannot change it"
            )
        return DirectPosterior(self)
