"""The two contracts of this room: what is trained, and what is asked."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor, nn

from ..data.batch import Batch
from ..data.errors import ShapeError
from ..data.ranges import Outside, OutsideTrainingWarning, Ranges, advice
from ..data.results import to_inference_data
from ..data.variables import Arrays, Variables
from ..simulators.prior import Prior
from .settings import EstimatorSettings

if TYPE_CHECKING:
    from .conditional import Conditional, Marginal
    from .symmetry.assumed import AssumedSymmetry

_USUAL_OUTSIDE = 0.01  # share of rows beyond the training data that is not worth a word: others of the same simulator

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
    seen: Ranges | None = None  # of the training rows; None before training

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

    def prepare(self, rows: Batch) -> Batch:
        """Rows that stay in memory, with what a step needs of them and no weight changes; as they are by default."""
        return rows

    @abstractmethod
    def loss(self, batch: Batch) -> Float[Tensor, "rows"]:
        """The objective of each row; its mean is minimised."""

    def member_losses(self, batch: Batch) -> Float[Tensor, "member rows"]:
        """The objective of each row for every member: the sum of their means is what training minimises."""
        return self.loss(batch)[None]

    @property
    def core(self) -> Estimator:
        """The estimator whose density terms of the objective are about; this one, unless it learns from moved rows."""
        return self

    def for_core(self, batch: Batch) -> Batch:
        """Rows as the core sees them."""
        return batch

    def take_better(self, best: dict[str, Tensor], now: dict[str, Tensor], better: Sequence[bool]) -> dict[str, Tensor]:
        """The best state so far: that of ``now`` for the members whose validation loss is ``better`` than ever before."""
        return now if better[0] else best

    def finish(self, held_out: Iterable[Batch]) -> dict[str, Any]:
        """Learn from validation rows what only the final weights can tell; gives facts about it for the model."""
        return {}

    @abstractmethod
    def posterior(self, prior: Prior) -> Posterior:
        """The posterior under ``prior``, ready to be asked."""

    def as_sbi(self) -> nn.Module:
        """This density as sbi's `ConditionalDensityEstimator` has it, without sbi: see `interop.AsSBI`.

        Raises:
            UnsupportedError: It is no density of theta given x.
        """
        from .interop import AsSBI

        return AsSBI(self)


class ChainReport(Protocol):
    """How Markov chains fared, in words as its text."""

    @property
    def trusted(self) -> bool: ...

    def to_json(self) -> dict[str, Any]: ...


class Posterior(ABC):
    """p(theta | x), with the argument order and shapes of sbi.

    x may be a tensor or array, or a mapping from observable to one; of one observation where one is meant, of one row
    per observation in the methods named ``*_batched``. Draws are float64 tensors inside the prior's support.
    """

    observables: Variables
    prior: Prior
    imputes: bool = False  # whether x may hold what is not finite
    ranges: Ranges | None = None  # of the data it was trained on
    at_once: int | None = (
        None  # observations that are asked together where time left is told, or work kept; all when None
    )
    normalised: bool = True  # whether `log_prob` integrates to one over theta
    differentiable: bool = True  # whether `log_prob` has a gradient, in theta and in x, and is smooth
    assumed: AssumedSymmetry | None = None  # that it was trained with
    diagnostics: ChainReport | None = None  # of the Markov chains of the last question, where it has any
    _default_x: dict[str, Tensor] | None = None
    _told: str = ""

    @property
    def parameters(self) -> Variables:
        """What theta consists of."""
        return self.prior.variables

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
        self, theta: Real[Tensor, "*sample_shape observation parameter"], x: XLike, track_gradients: bool = False
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

    def propose(
        self, sample_shape: Sequence[int], x: XLike, *, seed: int | None = None
    ) -> tuple[Float[Tensor, "*sample_shape observation parameter"], Float[Tensor, "*sample_shape observation"]]:
        """Draws for importance sampling and what their weights are to be divided by: the log density of each."""
        return self.sample_with_log_prob(sample_shape, x, seed=seed)

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
        self, theta: Real[Tensor, "*batch parameter"], x: XLike | None = None, track_gradients: bool = False
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

    def map(self, x: XLike | None = None, *, starts: int = 20, seed: int | None = 0) -> Float[Tensor, "parameter"]:
        """The mode of the posterior density of theta for one observation: see `map_batched`.

        Raises:
            ShapeError: x is not one observation, or there is none.
        """
        return self.map_batched(self._one(x), starts=starts, seed=seed)[0]

    def map_batched(
        self, x: XLike, *, starts: int = 20, seed: int | None = 0
    ) -> Float[Tensor, "observation parameter"]:
        """The mode of the posterior density of theta for every observation, from many starts: see `mode.find_modes`.

        Args:
            x: One row per observation.
            starts: The best of many draws to climb from, for every observation.
            seed: Of the draws.
        """
        from .mode import find_modes

        return find_modes(self, self._rows(x), starts=starts, seed=seed)

    def conditional(self, given: Mapping[str, float], x: XLike | None = None, *, seed: int | None = 0) -> Conditional:
        """The density of the other parameters where some are known, for one observation: see `conditional`.

        Args:
            given: Parameter → its value.
            x: One observation.
            seed: Of the draws that find where it lies.

        Raises:
            ShapeError: No such parameter, or none is left.
            UnsupportedError: The values lie where the posterior has no mass, or the density is too hard to be integrated.
        """
        from .conditional import condition

        return condition(self, given, self._one(x), seed=seed)

    def marginal(self, names: Sequence[str], x: XLike | None = None) -> Marginal:
        """The density of some parameters, whatever the others are, for one observation: see `conditional`.

        Raises:
            ShapeError: No such parameter, or none is left out.
        """
        from .conditional import Marginal

        return Marginal(self, tuple(names), self._one(x))

    def to_inference_data(self, x: XLike | None = None, *, draws: int = 1000, seed: int | None = None) -> Any:
        """Draws for one observation, their log density, and the observation, as ArviZ takes them.

        Raises:
            ShapeError: x is not one observation, or there is none.
            UnsupportedError: ArviZ is not installed: ``pip install 'simfer[arviz]'``.
        """
        from .interop import draws_tree

        return to_inference_data(draws_tree(self, self._one(x), draws, seed))

    def outside(self, x: XLike) -> list[Outside]:
        """Where an observation, or the first of many that does, lies outside the data the posterior was trained on."""
        rows = {name: values.detach().cpu().numpy() for name, values in self._rows(x).items()}
        return self.ranges.outside(rows)[1] if self.ranges else []

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
        rows = named_rows(x, self.observables, finite=not self.imputes)
        self._warn_outside({name: _numpy(values) for name, values in rows.items()})
        return rows

    def _warn_outside(self, rows: Arrays) -> None:
        """Say once what lies outside the training data."""
        many = len(next(iter(rows.values())))
        bad, entries = self.ranges.outside(rows) if self.ranges else (0, [])
        if bad <= _USUAL_OUTSIDE * many:
            return
        text = advice(bad, entries, many)
        if text != self._told:
            self._told = text
            warnings.warn(text, OutsideTrainingWarning, stacklevel=4)


def named_rows(x: XLike, observables: Variables, *, finite: bool = True) -> dict[str, Tensor]:
    """x as checked float32 tensors with a leading axis; a tensor that needs gradients keeps them.

    Raises:
        ShapeError: Names or shapes do not fit.
        NotFiniteError: An entry is NaN or infinite, where it must not be.
    """
    named = x if isinstance(x, Mapping) else _split(x, observables)
    observables.rows({name: _numpy(values) for name, values in named.items()}, finite=finite)
    return {v.name: torch.as_tensor(named[v.name], dtype=torch.float32).reshape(-1, *v.shape) for v in observables}


def _split(x: XLike, observables: Variables) -> dict[str, Any]:
    if len(observables) == 1:
        return {observables.names[0]: _unbatched(x, observables)}
    return dict(observables.rows(_numpy(x), finite=False))


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
