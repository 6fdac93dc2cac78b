"""A plain function as a simulator: ``f(theta, rng)``, of a whole batch or of one row."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from typing import Any, overload

import numpy as np

from ..data.errors import ContractError, SimulatorError
from ..data.variables import Variable, Variables
from .prior import Prior
from .source import source_hash

_ROWS = ("batch", "vector", "named")


class FunctionSimulator:
    """What `simulator` returns; see there.

    Attributes:
        prior: The joint prior of the parameters.
        observables: As given, or as a first call showed.
        rows: How the function takes theta.
        function: Its name, which tells this simulator from others.
        source: Hash of the file or text that defines it.
        observations: Shipped data by name.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        prior: Prior,
        observables: Variables | None,
        rows: str,
        observations: Mapping[str, Any],
    ) -> None:
        self._function = function
        self.prior = prior
        self.rows = rows
        self.function = getattr(function, "__qualname__", type(function).__qualname__)
        self.source = source_hash(function)
        self.observations = dict(observations)
        self.observables = observables or self._inferred()

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        returned = self._call(theta, rng)
        return returned if isinstance(returned, dict) else {self.observables.names[0]: np.asarray(returned)}

    def _call(self, theta: np.ndarray, rng: np.random.Generator) -> Any:
        if self.rows == "batch":
            return self._function(theta, rng)
        seeds = rng.integers(2**32, size=(len(theta), 4))  # so that what one row consumes does not shift the next
        return _stacked([self._one(row, np.random.default_rng(seed)) for row, seed in zip(theta, seeds, strict=True)])

    def _one(self, row: np.ndarray, rng: np.random.Generator) -> Any:
        if self.rows == "vector":
            return self._function(row.copy(), rng)
        return self._function(rng=rng, **dict(zip(self.prior.names, row.tolist(), strict=True)))

    def _inferred(self) -> Variables:
        """Names, shapes and dtypes of what the function returns for three draws of the prior."""
        rng = np.random.default_rng(0)
        try:
            returned = self._call(self.prior.sample(3, rng), rng)
        except Exception as error:
            raise SimulatorError(
                f"`{self.function}` raised {type(error).__name__}: {error}, when called on three draws of the prior "
                "to see what it returns: mend it, or give `observables`"
            ) from error
        named = returned if isinstance(returned, dict) else {"x": returned}
        return Variables(self._seen(name, np.asarray(values)) for name, values in named.items())

    def _seen(self, name: str, values: np.ndarray) -> Variable:
        if values.dtype.kind not in "biuf" or values.shape[:1] != (3,):
            raise ContractError(
                f"`{self.function}` must return numbers with one row for each row of theta; got `{name}` of dtype "
                f'{values.dtype} and shape {values.shape} for three rows (`rows="vector"` if it takes one row at a time)'
            )
        return Variable(name, values.shape[1:], values.dtype.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """By name where it took the function's own name, as under a decorator; else by its parts."""
        where = (self._function.__module__, self.function) if hasattr(self._function, "__module__") else None
        if where is not None and _found(*where) is self:
            return _found, where
        return FunctionSimulator, (self._function, self.prior, self.observables, self.rows, self.observations)


@overload
def simulator(
    function: Callable[..., Any],
    *,
    prior: Prior | Mapping[str, Any],
    observables: Variables | None = None,
    rows: str = "batch",
    observations: Mapping[str, Any] | None = None,
) -> FunctionSimulator: ...
@overload
def simulator(
    function: None = None,
    *,
    prior: Prior | Mapping[str, Any],
    observables: Variables | None = None,
    rows: str = "batch",
    observations: Mapping[str, Any] | None = None,
) -> Callable[[Callable[..., Any]], FunctionSimulator]: ...
def simulator(
    function: Callable[..., Any] | None = None,
    *,
    prior: Prior | Mapping[str, Any],
    observables: Variables | None = None,
    rows: str = "batch",
    observations: Mapping[str, Any] | None = None,
) -> FunctionSimulator | Callable[[Callable[..., Any]], FunctionSimulator]:
    """Make a simulator of a function; as a call or, with ``function`` left out, as a decorator.

    Args:
        function: Returns an array, or a dict from name to array. ``rng``, a NumPy generator, must be its only source
            of randomness.
        prior: A `Prior`, or its marginals by name.
        observables: What it returns; seen from one call on three draws of the prior when None, an array being ``x``.
        rows: ``batch``: ``f(theta, rng)`` with theta ``(rows, parameter)`` returns arrays with a leading row axis.
            ``vector``: ``f(theta, rng)`` with theta ``(parameter,)`` returns one row.
            ``named``: ``f(alpha=..., beta=..., rng=...)`` returns one row.
        observations: Data by name, in the form of one row of x, for ``observation:`` in YAML.

    Returns:
        An object that goes wherever a simulator does: `simfer.simulate`, `simfer.run`, ``simulator: file.py:name``.

    Raises:
        SimulatorError: The function raised on draws of the prior.
        ContractError: It returned something else than numbers, or the wrong number of rows.
        PriorError: The prior is impossible.
    """
    if rows not in _ROWS:
        raise SimulatorError(f'`rows` must be "batch", "vector" or "named"; got {rows!r}')
    known = prior if isinstance(prior, Prior) else Prior(prior)

    def adapt(function: Callable[..., Any]) -> FunctionSimulator:
        return FunctionSimulator(function, known, observables, rows, observations or {})

    return adapt if function is None else adapt(function)


def _stacked(rows: list[Any]) -> Any:
    if rows and isinstance(rows[0], dict):
        return {name: np.stack([np.asarray(row[name]) for row in rows]) for name in rows[0]}
    return np.stack([np.asarray(row) for row in rows])


def _found(module: str, name: str) -> Any:
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
