r"""Neural posterior estimation.

Trains :math:`q_\phi(\theta | x)` by maximum likelihood on simulated pairs,

.. math:: \min_\phi \; -\mathbb{E}_{p(\theta) p(x | \theta)} \log q_\phi(\theta | x),
    \qquad q_\phi(\theta | x) = q_\phi(z | x) \prod_i \frac{p(\theta_i)}{\phi(z_i)},

with the flow in the prior's unconstrained space z, where the prior is N(0, I). Papamakarios & Murray (2016),
https://arxiv.org/abs/1605.06376; Greenberg et al. (2019), https://arxiv.org/abs/1905.07488.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import ShapeError, UnsupportedError
from ..data.variables import Variables
from ..simulators.prior import Prior
from .base import Estimator, Posterior, XLike, seeded
from .embeddings import build_embedding
from .flows import build_flow
from .preprocess import Preprocess
from .settings import EstimatorSettings

_ROWS_AT_ONCE = 2**17  # draws × observations in one pass: bounds memory, costs no speed


class NPE(Estimator):
    """A conditional flow over the prior's unconstrained space, fed by an embedding of x."""

    def __init__(self, prior: Prior, observables: Variables, settings: EstimatorSettings) -> None:
        super().__init__(prior, observables, settings)
        self.prior, self.observables, self.settings = prior, observables, settings
        self.preprocess = Preprocess(observables, settings.transforms, whiten=settings.whiten, impute=settings.impute)
        self.embedding, context = build_embedding(settings.embedding, self.preprocess.features)
        self.flow = build_flow(settings.flow, prior.dim, context)

    @property
    def transforms(self) -> dict[str, str]:
        return dict(self.preprocess.transforms)

    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        self.preprocess.fit_parts(lambda: (batch.x for batch in portions))

    def condition(self, x: dict[str, Tensor]) -> Float[Tensor, "rows context"]:
        """What the flow is conditioned on."""
        return self.embedding(self.preprocess(x))

    def log_prob(self, theta: Tensor, context: Float[Tensor, "rows context"]) -> Float[Tensor, "*sample rows"]:
        """log q(theta | x) from the flow's context, in float64."""
        z = self.prior.to_unconstrained(theta)
        return self.flow(context).log_prob(z.float()).double() + self.prior.log_abs_det(theta.double(), z)

    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        return -self.log_prob(batch.theta, self.condition(batch.x))

    def posterior(self, prior: Prior) -> NPEPosterior:
        if prior != self.prior:
            raise ShapeError(
                f"`prior` must be the one the simulations were drawn from, {self.prior}; got {prior}: NPE cannot change it"
            )
        return NPEPosterior(self)


class NPEPosterior(Posterior):
    """The trained density itself: exact draws, no rejection, `log_prob` normalised."""

    def __init__(self, estimator: NPE) -> None:
        self.estimator = estimator.eval()
        self.observables = estimator.observables
        self.prior = estimator.prior
        self.imputes = estimator.settings.impute

    def sample_batched(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None, show_progress_bars: bool = False
    ) -> Float[Tensor, "*sample_shape observation parameter"]:
        with torch.no_grad(), seeded(seed):
            context = self._context(x)
            parts = [self._theta(self.estimator.flow(context).sample((n,))) for n in _portions(sample_shape, context)]
            return torch.cat(parts).reshape(*sample_shape, len(context), -1)

    def sample_with_log_prob(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        with torch.no_grad(), seeded(seed):
            context = self._context(x)
            parts = [self._with_log_prob(n, context) for n in _portions(sample_shape, context)]
            theta, log_prob = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
            shape = (*sample_shape, len(context))
            return theta.reshape(*shape, -1), log_prob.reshape(shape)

    def log_prob_batched(
        self, theta: Float[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
    ) -> Float[Tensor, "*sample_shape observation"]:
        with torch.set_grad_enabled(track_gradients):
            context = self._context(x)
            theta = torch.as_tensor(theta).to(context.device)
            if theta.shape[-2:] != (len(context), self.prior.dim):
                raise ShapeError(
                    f"`theta` must have shape (*sample, {len(context)} observations, {self.prior.dim} parameters); "
                    f"got {tuple(theta.shape)}"
                )
            flat = theta.reshape(-1, *theta.shape[-2:])
            parts = [self.estimator.log_prob(part, context) for part in flat.split(_draws_at_once(context))]
            return torch.cat(parts).reshape(theta.shape[:-1])

    def rsample(self, sample_shape: Sequence[int], x: XLike) -> Float[Tensor, "*sample_shape observation parameter"]:
        flow = self.estimator.flow(self._context(x))
        if not flow.has_rsample:
            kind = self.estimator.settings.flow.kind
            raise UnsupportedError(f"`rsample` needs a reparametrised density; `{kind}` has none: use nsf or maf")
        return self._theta(flow.rsample(torch.Size(sample_shape)))

    def to(self, device: str | torch.device) -> NPEPosterior:
        self.estimator.to(device)
        return self

    def _context(self, x: XLike) -> Tensor:
        device = next(self.estimator.parameters()).device
        return self.estimator.condition({name: values.to(device) for name, values in self._rows(x).items()})

    def _theta(self, z: Tensor) -> Tensor:
        return self.prior.from_unconstrained(z)

    def _with_log_prob(self, draws: int, context: Tensor) -> tuple[Tensor, Tensor]:
        flow = self.estimator.flow(context)
        if not hasattr(flow, "rsample_and_log_prob"):  # zuko's mixture
            theta = self._theta(flow.sample((draws,)))
            return theta, self.estimator.log_prob(theta, context)
        z, log_prob = flow.rsample_and_log_prob((draws,))
        theta = self._theta(z)
        return theta, log_prob.double() + self.prior.log_abs_det(theta, z.double())


def _draws_at_once(context: Tensor) -> int:
    return max(1, _ROWS_AT_ONCE // len(context))


def _portions(sample_shape: Sequence[int], context: Tensor) -> Iterator[int]:
    """How many draws to take at a time."""
    left, most = math.prod(sample_shape), _draws_at_once(context)
    while left > 0:
        yield min(left, most)
        left -= most
