r"""Flow matching posterior estimation.

A velocity field v is regressed on the velocities of straight paths from noise to the parameters of simulated pairs,

.. math:: \min_\phi \; \mathbb{E}_{t, p(\theta) p(x | \theta), z_0} \| v_\phi(z_t, t, x) - (z_1 - (1 - \sigma) z_0) \|^2,
    \qquad z_t = t z_1 + (1 - (1 - \sigma) t) z_0, \quad z_0 \sim N(0, I),

with :math:`z_1` the parameters in the prior's unconstrained space, where the prior is N(0, I), and
:math:`t = r^{1 / (1 + \alpha)}`, r uniform: its density is :math:`(1 + \alpha) t^\alpha`, uniform for :math:`\alpha = 0`,
late times more often above. The field then carries N(0, I) to the posterior, whose log density is exact up to
the solver's error (`continuous`). Wildberger et al. (2023), https://arxiv.org/abs/2305.17161 (who write the exponent that is
applied to r as that of the density); Lipman et al. (2023), https://arxiv.org/abs/2210.02747.

t and z_0 are a function of a seed that is kept with the weights, of the step, and of theta: training that is resumed sees what
it would have seen, and validation, which knows no step, the same in every epoch.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import ShapeError
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Estimator
from .continuous import ContinuousDistribution, ContinuousFlow
from .direct import DirectPosterior
from .embeddings import build_embedding
from .noise import combine, key_of_rows, uniform
from .precision import full_precision
from .preprocess import build_preprocess
from .settings import EstimatorSettings

_EPSILON = 0.01  # of the clock: posteriors down to some hundredths of the prior's width are resolved
_VALIDATION_DRAWS = 8  # of (t, z_0) for each row: the loss of one is noisy


class FMPE(Estimator):
    """A velocity field over the prior's unconstrained space, fed by an embedding of x."""

    def __init__(self, prior: Prior, observables: Variables, settings: EstimatorSettings) -> None:
        super().__init__(prior, observables, settings)
        self.prior, self.observables, self.settings = prior, observables, settings
        self.preprocess = build_preprocess(observables, settings)
        self.embedding, context = build_embedding(settings.embedding, observables)
        field = settings.field
        self.flow = ContinuousFlow(
            prior.dim,
            context,
            width=field.hidden,
            blocks=field.blocks,
            steps=field.steps,
            epsilon=_EPSILON,
            probes=field.probes,
        )
        self.seed: Tensor
        self.step: Tensor
        self.register_buffer("seed", torch.randint(2**62, ()))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def transforms(self) -> dict[str, str]:
        return dict(self.preprocess.transforms)

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        self.preprocess.fit_parts(lambda: (batch.x for batch in portions))

    def condition(self, x: dict[str, Tensor]) -> Float[Tensor, "rows context"]:
        return self.embedding(self.preprocess(x))

    def density(self, context: Float[Tensor, "rows context"]) -> ContinuousDistribution:
        return self.flow(context)

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        if self.training:
            self.step.add_(1)
        rate = 1 - self.settings.field.sigma_min
        t, start = self._path(batch.theta)
        end = self.prior.to_unconstrained(batch.theta)
        between = t * end + (1 - rate * t) * start
        context = self.condition(batch.x).float()
        with full_precision(context):
            velocity = self.flow.field(between.float(), t.float(), context)
        return (velocity - (end - rate * start)).square().mean((0, 2))

    def posterior(self, prior: Prior) -> DirectPosterior:
        if prior != self.prior:
            raise ShapeError(
                f"`prior` must be the one the simulations were drawn from, {self.prior}; got {prior}: FMPE cannot change it"
            )
        return DirectPosterior(self)

    def _path(
        self, theta: Float[Tensor, "rows parameter"]
    ) -> tuple[Float[Tensor, "draw rows 1"], Float[Tensor, "draw rows parameter"]]:
        """Times and starting points, a function of the seed, the step and theta; of no step in validation."""
        draws = self.settings.field.draws if self.training else _VALIDATION_DRAWS
        key = combine(self.seed, self.step if self.training else torch.zeros_like(self.step))
        keys = combine(key_of_rows(theta), combine(key, torch.arange(draws, device=key.device))[:, None])
        numbers = uniform(keys, 1 + theta.shape[1])
        return numbers[..., :1] ** (1 / (1 + self.settings.field.alpha)), torch.special.ndtri(numbers[..., 1:])
