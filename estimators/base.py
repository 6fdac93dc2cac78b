"""The two contracts of this room: what is trained, and what is asked."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.errors import ShapeError
from ..data.variables import Variables
from ..simulators.prior import Prior
from .settings import EstimatorSettings

XLike = Any  # a tensor or array, or a mapping from observable to one


class Estimator(nn.Module, ABC):
    """What is trained: q(theta | x), q(x | theta), a ratio or a vector field.

    Everything an estimator needs to be rebuilt is in its constructor's arguments; everything it has learned, the
    normalisation of x included, is in its state dict.

    Args:
        prior: Of theta; gives the space the density lives in.
        observables: What x consists of.
        settings: Of the density and the embedding.
    """

    settings: EstimatorSettings
    observables: Variables
    members: int = 1  # of an ensemble; several share batches, but no gradients

    @abstractmethod
    def __init__(self, prior: Prior, observables: Variables, settings: EstimatorSettings) -> None:
        super().__init__()

    @property
    @abstractmethod
    def transforms(self) -> dict[str, str]:
        """Observable → the function applied to it before standardisation."""

    @abstractmethod
    def fit_preprocess(self, portions: Iterable[Batch]) -> None:
        """Take the normalisation from training rows, before the first step.

        ``portions`` may be iterated several times; each time is one pass over the rows, on disk if that is where they are.
        """

    @abstractmethod
    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        """The objective of each row; its mean is minimised."""

    def member_losses(self, batch: Batch) -> Float[Tensor, "member rows"]:
        """The objective of each row for every member: the sum of their means is what training minimises."""
        return self.loss(batch)[None]

    def take_better(self, best: dict[str, Tensor], now: dict[str, Tensor], better: Sequence[bool]) -> dict[str, Tensor]:
        """The best state so far: that of ``now`` for the members whose validation loss is ``better`` than ever before."""
        return now if better[0] else best

    def finish(self, held_out: Iterable[Batch]) -> dict[str, Any]:
        """Learn from validation rows what only the final weights can tell; gives facts about it for the model."""
        return {}

    @abstractmethod
    def posterior(self, prior: Prior) -> Posterior:
        """The posterior under ``prior``, ready to be asked."""


class Posterior(ABC):
    """p(theta | x), with the argument order and shapes of sbi.

    x may be a tensor or array, or a mapping from observable to one; of one observation where one is meant, of one row
    per observation in the methods named ``*_batched``. Draws are float64 tensors inside the prior's support.
    """

    observables: Variables
    prior: Prior
    imputes: bool = False  # whether x may hold what is not finite
    _default_x: dict[str, Tensor] | None = None

    @abstractmethod
    def sample_batched(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None, show_progress_bars: bool = False
    ) -> Float[Tensor, "*sample_shape observation parameter"]:
        """Independent draws for every observation.

        Args:
            sample_shape: How many, such as ``(1000,)``.
            x: One row per observation.
            seed: Makes the draws a function of it; torch's global state when None.
            show_progress_bars: Accepted for sbi, ignored.
        """

    @abstractmethod
    def log_prob_batched(
        self, theta: Float[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
    ) -> Float[Tensor, "*sample_shape observation"]:
        """Log density of ``theta[..., i, :]`` given observation i; -inf outside the support."""

    @abstractmethod
    def rsample(self, sample_shape: Sequence[int], x: XLike) -> Float[Tensor, "*sample_shape observation parameter"]:
        """Draws like `sample_batched`, differentiable with respect to the network's weights and to x."""

    @abstractmethod
    def to(self, device: str | torch.device) -> Posterior:
        """Move to a device, and return self."""

    @abstractmethod
    def sample_with_log_prob(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        """Draws like `sample_batched` and the log density of each, in one pass."""

    def sample(
        self,
        sample_shape: Sequence[int] = (),
        x: XLike | None = None,
        *,
        seed: int | None = None,
        show_progress_bars: bool = False,
    ) -> Float[Tensor, "*sample_shape parameter"]:
        """Independent draws for one observation.

        Raises:
            ShapeError: x is not one observation, or there is none.
        """
        return self.sample_batched(sample_shape, self._one(x), seed=seed)[..., 0, :]

    def log_prob(
        self, theta: Float[Tensor, "*batch parameter"], x: XLike | None = None, track_gradients: bool = False
    ) -> Float[Tensor, "*batch"]:
        """Log density given one observation; -inf outside the support.

        Raises:
            ShapeError: x is not one observation, or there is none; theta has the wrong number of parameters.
        """
        theta = torch.as_tensor(theta)
        return self.log_prob_batched(theta[..., None, :], self._one(x), track_gradients)[..., 0]

    def set_default_x(self, x: XLike) -> Posterior:
        """Remember the observation that is meant when none is given."""
        self._default_x = self._one(x)
        return self

    def _one(self, x: XLike | None) -> dict[str, Tensor]:
        if x is None:
            if self._default_x is None:
                raise ShapeError("`x` must be given: this posterior has no default observation (`set_default_x`)")
            return self._default_x
        rows = self._rows(x)
        many = len(next(iter(rows.values())))
        if many != 1:
            raise ShapeError(f"`x` must be one observation; got {many}: use `sample_batched` or `log_prob_batched`")
        return rows

    def _rows(self, x: XLike) -> dict[str, Tensor]:
        """x as checked float32 tensors with a leading axis; a tensor that needs gradients keeps them."""
        named = x if isinstance(x, Mapping) else self._split(x)
        self.observables.rows({name: _numpy(values) for name, values in named.items()}, finite=not self.imputes)
        return {
            v.name: torch.as_tensor(named[v.name], dtype=torch.float32).reshape(-1, *v.shape) for v in self.observables
        }

    def _split(self, x: XLike) -> dict[str, Any]:
        if len(self.observables) == 1:
            return {self.observables.names[0]: _unbatched(x, self.observables)}
        return dict(self.observables.rows(_numpy(x), finite=False))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Draw from torch's global generator as if it had just been seeded, and leave it as it was."""
    if seed is None:
        yield
        return
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


def _numpy(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _unbatched(x: Any, observables: Variables) -> Any:
    """Let a flat vector stand for an observable of several axes, as sbi's users give it."""
    (variable,) = observables
    shape = tuple(np.shape(x))
    if len(variable.shape) > 1 and shape[-1:] == (variable.size,) and len(shape) <= 2:
        return x.reshape(*shape[:-1], *variable.shape)
    return x
