"""The contract of a simulator, and the one place where simfer calls it."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..data.errors import ContractError
from ..data.variables import Arrays, Variables
from .prior import Prior
from .source import source_hash


@runtime_checkable
class Simulator(Protocol):
    """A forward model that takes a whole batch of parameters at once.

    Attributes:
        prior: The joint prior of its parameters.
        observables: Names, shapes, dtypes, units and support of what it returns.

    A simulator may have, besides: ``observations``, a mapping from a name to shipped data in the form of one row of
    ``x``; ``version``, a string; ``operational``, names of arguments that
    cannot change x, such as a time limit; ``per_row``, that it takes one row at a time; ``retries``; whatever arguments it was made with as plain attributes; and what the protocols
    `HasLikelihood`, `HasContext`, `HasBaseNumbers`, `HasGroups` and `HasSymmetry` describe.
    """

    prior: Prior
    observables: Variables

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Simulate one row of x for each row of theta.

        Args:
            theta: Parameters in the order of ``prior.names``, shape ``(rows, parameter)``, float64.
            rng: The only source of randomness: the same generator gives the same x.
            context: Known nuisance, one row per row of theta; None where the simulator has none.

        Returns:
            Name of an observable → array of shape ``(rows, *shape)``, row i from ``theta[i]`` alone. A row that
            could not be simulated is NaN.
        """
        ...


@runtime_checkable
class HasLikelihood(Protocol):
    """A simulator whose likelihood is known, for refinement, evidence and tests."""

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``; x has one row per row of theta, or one row that is meant for all."""
        ...


@runtime_checkable
class ContextPrior(Protocol):
    """Where the known nuisance of simulated rows comes from; a `Prior` is one, of scalars."""

    @property
    def variables(self) -> Variables: ...

    def draw(self, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Name → array of shape ``(rows, *shape)``, a function of ``rng`` alone."""
        ...


@runtime_checkable
class HasContext(Protocol):
    """A simulator whose data depend on something known for each observation, such as an exposure time.

    ``simulate`` and ``log_likelihood`` then get it as ``context``, one row per row of theta.
    """

    context: ContextPrior


@runtime_checkable
class HasBaseNumbers(Protocol):
    """A simulator that is a function of theta and of random numbers u drawn apart from it; campaigns record u.

    ``simulate(theta, rng)`` must equal ``simulate_from_u(theta, sample_u(len(theta), rng))``.
    """

    u_shape: tuple[int, ...]

    def sample_u(self, rows: int, rng: np.random.Generator) -> np.ndarray:
        """Base random numbers, ``(rows, *u_shape)``."""
        ...

    def simulate_from_u(
        self, theta: np.ndarray, u: np.ndarray, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """x as a function, without randomness of its own."""
        ...


@runtime_checkable
class HasGroups(Protocol):
    """A simulator of which ``group_size`` rows in turn share one theta, as galaxies of one universe do."""

    group_size: int


@runtime_checkable
class HasSymmetry(Protocol):
    """A simulator under which moved parameters give moved data.

    Attributes:
        symmetry: Name of a component → what `simfer.simulators.symmetry` declares of it; or an object that fulfils
            `simfer.estimators.symmetry.base.Symmetry`. ``simfer check-symmetry`` tests it.
    """

    symmetry: Any


def context_of(simulator: Simulator) -> ContextPrior | None:
    """Where its known nuisance comes from, if it has any."""
    return simulator.context if isinstance(simulator, HasContext) else None


def simulate_checked(
    simulator: Simulator,
    theta: np.ndarray,
    rng: np.random.Generator,
    context: Arrays | None = None,
    u: np.ndarray | None = None,
) -> Arrays:
    """Simulate, from base random numbers if given, and hold the simulator to its contract.

    Returns:
        Arrays of their own, in the dtypes of the observables; one of whole numbers stays float where it is not finite.

    Raises:
        ContractError: Wrong names, number of rows, shapes or dtypes; fractions, or what is too large, for whole numbers.
    """
    if u is not None and isinstance(simulator, HasBaseNumbers):
        x = simulator.simulate_from_u(theta, u, context) if context else simulator.simulate_from_u(theta, u)
    else:
        x = simulator.simulate(theta, rng, context) if context else simulator.simulate(theta, rng)
    name = type(simulator).__name__
    if not isinstance(x, dict) or set(x) != set(simulator.observables.names):
        got = ", ".join(map(str, x)) if isinstance(x, dict) else type(x).__name__
        raise ContractError(
            f"`{name}.simulate` must return a dict with exactly {', '.join(simulator.observables.names)}; got {got}"
        )
    return {v.name: _checked(name, v.name, (len(theta), *v.shape), v.dtype, x[v.name]) for v in simulator.observables}


def _checked(simulator: str, name: str, shape: tuple[int, ...], dtype: str, values: Any) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "biuf":
        raise ContractError(f"`{simulator}.simulate` must return numbers as `{name}`; got dtype {array.dtype}")
    if array.shape[:1] != shape[:1]:
        raise ContractError(
            f"`{simulator}.simulate` must return one row of `{name}` for each of the {shape[0]} rows of theta; "
            f"got {array.shape[0] if array.ndim else 'a single number'}"
        )
    if array.shape != shape:
        raise ContractError(
            f"`{simulator}.simulate` must return `{name}` of shape {shape[1:]} per row, as its observables say; "
            f"got {array.shape[1:]}"
        )
    return _cast(simulator, name, array, np.dtype(dtype))


def _cast(simulator: str, name: str, array: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    if dtype.kind not in "iu":
        return array.astype(dtype)
    finite = np.isfinite(array)
    whole, limits = array[finite], np.iinfo(dtype)
    if (whole != np.rint(whole)).any() or (whole < limits.min).any() or (whole > limits.max).any():
        raise ContractError(
            f"`{simulator}.simulate` must return whole numbers of {dtype} as `{name}`, as its observables say"
        )
    return array.astype(dtype if finite.all() else np.float64)


def describe(simulator: Any) -> dict[str, Any]:
    """What tells one simulator, or one context, from another: class, version, arguments and a hash of its code."""
    kind = type(simulator)
    left_out = getattr(simulator, "operational", ())
    arguments = {
        key: _plain(value)
        for key, value in sorted(vars(simulator).items())
        if not key.startswith("_") and key not in left_out and isinstance(value, _PLAIN)
    }
    return {
        "class": f"{kind.__module__}:{kind.__qualname__}",
        "version": str(getattr(simulator, "version", "")),
        "arguments": arguments,
        "source": source_hash(kind),
    }


_PLAIN = (bool, int, float, str, Path, np.generic, np.ndarray, list, tuple, dict)


def _plain(value: Any) -> Any:
    """As JSON has it; an array by its hash."""
    if isinstance(value, np.ndarray):
        return {"shape": list(value.shape), "sha256": hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    value = value.item() if isinstance(value, np.generic) else value
    finite = isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value))
    return value if finite else str(value)
