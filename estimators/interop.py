"""To sbi and from it, by shapes alone: sbi itself is imported by whoever uses it.

`AsSBI` is what sbi's posteriors and diagnostics need of a `ConditionalDensityEstimator`, and `SBIPosterior` makes one of
sbi's posteriors ours, for our checks and figures. Read against sbi 0.27.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.errors import ShapeError, UnsupportedError
from ..data.results import SAMPLE, columns, data_dataset, draws_dataset, tree
from ..data.variables import Support, Variable, Variables
from ..simulators.prior import Prior
from .base import Estimator, Posterior, XLike, seeded
from .direct import DirectEstimator, log_prob


class AsSBI(nn.Module):
    """q(theta | x) with the methods and shapes of sbi's `ConditionalDensityEstimator`: input is theta, condition is x.

    Several observables, or one without axes, become one vector, in the order of ``estimator.observables``. Numbers are
    float32, as sbi has them; theta stays inside the prior's support when rounded.

    Args:
        estimator: Trained.

    Raises:
        UnsupportedError: It is no density of theta given x.
    """

    def __init__(self, estimator: Estimator) -> None:
        super().__init__()
        if not isinstance(estimator, DirectEstimator):
            raise UnsupportedError(
                f"`as_sbi` needs a density of theta given x; `{estimator.settings.method}` has none: use npe"
            )
        self.net: Any = estimator

    @property
    def input_shape(self) -> torch.Size:
        return torch.Size([self.net.prior.dim])

    @property
    def condition_shape(self) -> torch.Size:
        observables = self.net.observables
        (first, *others) = observables
        return torch.Size([observables.size] if others or not first.shape else first.shape)

    @property
    def embedding_net(self) -> nn.Module | None:
        return None

    def loss(self, input: Tensor, condition: Tensor, **ignored: Any) -> Float[Tensor, "batch"]:
        """The training loss of every pair, ``input (batch, parameter)`` and ``condition (batch, *condition_shape)``."""
        return self.net.loss(Batch(input.double(), self._x(condition)))

    def log_prob(self, input: Tensor, condition: Tensor, **ignored: Any) -> Float[Tensor, "sample batch"]:
        """log q, ``input ([sample,] batch, parameter)``, ``condition ([sample,] batch, *condition_shape)``."""
        theta = input if input.dim() > 2 else input[None]
        event = len(self.condition_shape)
        if condition.dim() == event + 2:
            return self._pairwise(theta, condition)
        rows = max(theta.shape[1], len(condition))
        theta, condition = theta.expand(-1, rows, -1), condition.expand(rows, *self.condition_shape)
        return log_prob(self.net, theta, self._context(condition)).float()

    def sample(self, sample_shape: Sequence[int], condition: Tensor, **ignored: Any) -> Tensor:
        """Draws, ``(*sample_shape, batch, parameter)``."""
        with torch.no_grad():
            z = self.net.density(self._context(condition)).sample(torch.Size(sample_shape))
            return self.net.prior.rounded(self.net.prior.from_unconstrained(z))

    def sample_and_log_prob(
        self, sample_shape: Sequence[int], condition: Tensor, **ignored: Any
    ) -> tuple[Tensor, Tensor]:
        """Draws, and log q of each."""
        draws = self.sample(sample_shape, condition)
        flat = draws.reshape(-1, *draws.shape[-2:])
        return draws, self.log_prob(flat, condition).reshape(draws.shape[:-1])

    def _pairwise(self, theta: Tensor, condition: Tensor) -> Tensor:
        samples, rows = condition.shape[0], max(theta.shape[1], condition.shape[1])
        theta = theta.expand(samples, rows, -1).reshape(1, samples * rows, -1)
        condition = condition.expand(samples, rows, *self.condition_shape).reshape(-1, *self.condition_shape)
        return log_prob(self.net, theta, self._context(condition)).float().reshape(samples, rows)

    def _context(self, condition: Tensor) -> Tensor:
        return self.net.condition(self._x(condition))

    def _x(self, condition: Tensor) -> dict[str, Tensor]:
        observables: Variables = self.net.observables
        flat = condition.float().reshape(-1, observables.size)
        parts = flat.split([v.size for v in observables], 1)
        return {v.name: part.reshape(-1, *v.shape) for v, part in zip(observables, parts, strict=True)}


class SBIPosterior(Posterior):
    """One of sbi's posteriors as one of ours.

    What it gives as `log_prob` is up to a constant of each observation: sbi's direct posteriors are not corrected for
    leakage, which takes them long, and its MCMC posteriors have no more. Ranks of it, as checks use, are the same.

    Args:
        posterior: Of sbi; anything with ``sample`` and ``log_prob`` or ``potential`` in its shapes.
        parameters: What theta consists of.
        observables: What x consists of, one variable.
    """

    imputes = True  # sbi decides itself what x may hold
    normalised = False

    def __init__(self, posterior: Any, parameters: Variables, observables: Variables) -> None:
        self.wrapped, self.observables = posterior, observables
        self._parameters = parameters

    @property
    def parameters(self) -> Variables:
        return self._parameters

    @property
    def prior(self) -> Prior:  # type: ignore[override]
        raise UnsupportedError("a posterior of sbi's knows its prior as a torch distribution, not as simfer's `Prior`")

    def sample_batched(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None, show_progress_bars: bool = False
    ) -> Float[Tensor, "*sample_shape observation parameter"]:
        x, shape = self._tensor(x), torch.Size(sample_shape)
        with seeded(seed):
            try:
                draws = self.wrapped.sample_batched(shape, x, show_progress_bars=show_progress_bars)
            except (NotImplementedError, AttributeError, AssertionError):
                one_by_one = [self.wrapped.sample(shape, x=row[None], show_progress_bars=False) for row in x]
                draws = torch.stack(one_by_one, dim=len(shape))
        return draws.detach().double()

    def log_prob_batched(
        self, theta: Float[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
    ) -> Float[Tensor, "*sample_shape observation"]:
        x, theta = self._tensor(x), torch.as_tensor(theta).float()
        flat = theta.reshape(-1, *theta.shape[-2:])
        if hasattr(self.wrapped, "posterior_estimator"):
            lp = self.wrapped.log_prob_batched(flat, x, norm_posterior=False, track_gradients=track_gradients)
        else:
            lp = torch.stack([self._potential(flat[:, i], row, track_gradients) for i, row in enumerate(x)], dim=-1)
        return lp.reshape(theta.shape[:-1]).double()

    def rsample(self, sample_shape: Sequence[int], x: XLike) -> Float[Tensor, "*sample_shape observation parameter"]:
        raise UnsupportedError("`rsample`: sbi's posteriors have no reparametrised draws")

    def sample_with_log_prob(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        draws = self.sample_batched(sample_shape, x, seed=seed)
        return draws, self.log_prob_batched(draws, x)

    def to(self, device: str | torch.device) -> SBIPosterior:
        self.wrapped.to(device)
        return self

    def _potential(self, theta: Tensor, row: Tensor, track_gradients: bool) -> Tensor:
        if hasattr(self.wrapped, "potential"):
            return self.wrapped.potential(theta, x=row[None], track_gradients=track_gradients)
        return self.wrapped.log_prob(theta, x=row[None])

    def _tensor(self, x: XLike) -> Tensor:
        return self._rows(x)[self.observables.names[0]]


def from_sbi(posterior: Any, theta: Any, x: Any, names: Sequence[str] | None = None) -> SBIPosterior:
    """One of sbi's posteriors as one of ours, with shapes from pairs (theta, x).

    Args:
        posterior: Anything with ``sample`` in sbi's shapes.
        theta: ``(pair, parameter)``.
        x: One tensor, ``(pair, *shape)``.
        names: Of the parameters; ``theta_0``, ``theta_1``, … when None.

    Raises:
        ShapeError: It has no ``sample``, or theta or x has no such shape.
    """
    if not callable(getattr(posterior, "sample", None)):
        raise ShapeError(f"`posterior` must be simfer's, or have sbi's `sample` and `log_prob`; got {type(posterior)}")
    shapes = tuple(torch.as_tensor(theta).shape), tuple(torch.as_tensor(x).shape)
    if len(shapes[0]) != 2 or len(shapes[1]) < 2 or shapes[0][0] != shapes[1][0]:
        raise ShapeError(
            f"`theta` must be (pair, parameter) and `x` (pair, *shape), for a posterior of sbi's; got {shapes}"
        )
    named = tuple(names or (f"theta_{i}" for i in range(shapes[0][1])))
    low, high = _bounds(getattr(posterior, "prior", None), len(named))
    ends = zip(named, low, high, strict=True)
    parameters = Variables(Variable(name, support=Support(least, most)) for name, least, most in ends)
    return SBIPosterior(posterior, parameters, Variables([Variable("x", shapes[1][1:])]))


def draws_tree(posterior: Posterior, x: dict[str, Tensor], draws: int, seed: int | None) -> xr.DataTree:
    """Draws for one observation with their log density and the observation, in ArviZ's groups."""
    theta, lp = posterior.sample_with_log_prob((draws,), x, seed=seed)
    parameters, observables = posterior.parameters, posterior.observables
    observed = {name: values[0].cpu().numpy() for name, values in x.items()}
    groups = {
        "posterior": draws_dataset(parameters, columns(parameters, theta[:, 0].cpu().numpy())),
        "sample_stats": xr.Dataset({"lp": (SAMPLE, lp[None, :, 0].cpu().numpy())}),
        "observed_data": data_dataset(observables, observed),
    }
    return tree(groups)


def _bounds(prior: Any, dims: int) -> tuple[list[float], list[float]]:
    """Least and largest value of each parameter, where a torch distribution says so."""
    infinite = [-torch.inf] * dims, [torch.inf] * dims
    try:
        support = prior.support
    except (AttributeError, NotImplementedError):
        return infinite
    support = getattr(support, "base_constraint", support)
    found = [getattr(support, name, None) for name in ("lower_bound", "upper_bound")]
    low, high = (
        default if bound is None else torch.as_tensor(bound).double().expand(dims).tolist()
        for bound, default in zip(found, infinite, strict=True)
    )
    return low, high
