"""Named variables: what a parameter or an observable is called, its shape, units and support."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .errors import NotFiniteError, ShapeError

Arrays = dict[str, np.ndarray]

RESERVED = frozenset({"theta", "status", "runtime", "reason", "parameter", "simulation", "context", "u", "group"})
RESERVED_IN_RESULTS = frozenset(
    {"chain", "draw", "observation", "lp"}
)  # beside parameters there, which would take their place


@dataclass(frozen=True, slots=True)
class Support:
    """The closed interval a variable lives in, and whether it is counted rather than measured."""

    low: float = -math.inf
    high: float = math.inf
    integer: bool = False


REAL = Support()
POSITIVE = Support(low=0.0)
UNIT_INTERVAL = Support(low=0.0, high=1.0)
COUNT = Support(low=0.0, integer=True)


@dataclass(frozen=True, slots=True)
class Variable:
    """One parameter or observable.

    Args:
        name: An identifier; it names the array on disk, the row of every table and the key in YAML.
        shape: Shape of one row; () for a scalar.
        dtype: NumPy dtype on disk.
        units: For figures and tables; empty for a pure number.
        support: Where values can lie.
        label: What figures print; the name when empty. Mathtext such as ``$\\beta$`` is welcome.
        dims: One name per axis of ``shape``; ``{name}_0``, ``{name}_1``, ... when empty.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: str = "float64"
    units: str = ""
    support: Support = REAL
    label: str = ""
    dims: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.name.isidentifier() or self.name in RESERVED:
            raise ShapeError(
                f"`name` of a variable must be an identifier and none of {', '.join(sorted(RESERVED))}; got {self.name!r}"
            )
        if self.dims and len(self.dims) != len(self.shape):
            raise ShapeError(f"`dims` of {self.name} must name {len(self.shape)} axes; got {self.dims}")

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def axes(self) -> tuple[str, ...]:
        return self.dims or tuple(f"{self.name}_{i}" for i in range(len(self.shape)))

    @property
    def title(self) -> str:
        """Label with units, as axes of figures print it."""
        text = self.label or self.name
        return f"{text} [{self.units}]" if self.units else text


@dataclass(frozen=True, slots=True)
class Variables:
    """An ordered set of variables with unique names."""

    items: tuple[Variable, ...]

    def __init__(self, items: Iterable[Variable]) -> None:
        object.__setattr__(self, "items", tuple(items))
        if len(set(self.names)) != len(self.items):
            raise ShapeError(f"`items` must have unique names; got {', '.join(self.names)}")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(variable.name for variable in self.items)

    @property
    def size(self) -> int:
        """How many numbers one row has, over all variables."""
        return sum(variable.size for variable in self.items)

    def __iter__(self) -> Iterator[Variable]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, name: str) -> Variable:
        return next(variable for variable in self.items if variable.name == name)

    def to_json(self) -> list[dict[str, Any]]:
        """Plain lists and dicts; infinite bounds become None, which JSON has and infinity is not."""
        return [_finite(asdict(variable)) for variable in self.items]

    @classmethod
    def from_json(cls, items: list[dict[str, Any]]) -> Variables:
        return cls(_variable(dict(item)) for item in items)

    def rows(self, arrays: Mapping[str, Any] | Any, *, what: str = "x", finite: bool = True) -> Arrays:
        """Give every variable a leading row axis, whatever of the usual forms it came in.

        Args:
            arrays: A mapping from name to array, each of shape ``shape`` or ``(rows, *shape)``; or, where all
                is to be had from one array, that array: of the only variable, or of all variables flattened.
            what: How error messages call it.
            finite: Whether every entry must be finite.

        Raises:
            ShapeError: Names or shapes do not fit.
            NotFiniteError: An entry is NaN or infinite.
        """
        named = arrays if isinstance(arrays, Mapping) else self._split(np.asarray(arrays), what)
        self.require_names(named, what)
        batched = {v.name: _batched(v, np.asarray(named[v.name]), what) for v in self.items}
        lengths = {name: len(array) for name, array in batched.items()}
        if len(set(lengths.values())) > 1:
            raise ShapeError(f"`{what}` must have equally many rows in every variable; got {lengths}")
        for name, array in batched.items() if finite else ():
            check_finite(array, f"{what}[{name!r}]")
        return batched

    def require_names(self, named: Mapping[str, Any], what: str) -> None:
        """Raise a ShapeError unless exactly these variables are given."""
        missing = [name for name in self.names if name not in named]
        unknown = [str(name) for name in named if name not in self.names]
        if missing or unknown:
            raise ShapeError(
                f"`{what}` must have exactly the variables {', '.join(self.names)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )

    def _split(self, array: np.ndarray, what: str) -> Arrays:
        if len(self.items) == 1:
            return {self.items[0].name: array}
        if array.ndim == 0 or array.shape[-1] != self.size:
            raise ShapeError(
                f"`{what}` given as one array must have {self.size} numbers in its last axis "
                f"({', '.join(f'{v.name}: {v.size}' for v in self.items)}); got shape {array.shape}"
            )
        ends = np.cumsum([variable.size for variable in self.items])[:-1]
        parts = np.split(array, ends, axis=-1)
        return {v.name: part.reshape(array.shape[:-1] + v.shape) for v, part in zip(self.items, parts, strict=True)}


def check_finite(array: np.ndarray, what: str) -> None:
    """Raise NotFiniteError, naming the first bad entry, unless every entry is finite."""
    bad = ~np.isfinite(array)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        raise NotFiniteError(
            f"`{what}` must be finite; got {array[where]} at index {where} "
            f"({int(bad.sum())} of {array.size} entries): remove or impute these entries"
        )


def _batched(variable: Variable, array: np.ndarray, what: str) -> np.ndarray:
    if array.dtype.kind not in "biuf":
        raise ShapeError(f"`{what}[{variable.name!r}]` must be numbers; got dtype {array.dtype}")
    if array.shape == variable.shape:
        return array[None]
    if array.shape[1:] == variable.shape and array.ndim == len(variable.shape) + 1:
        return array
    raise ShapeError(
        f"`{what}[{variable.name!r}]` must have shape {variable.shape}, or one such row per observation; got {array.shape}"
    )


def _finite(item: dict[str, Any]) -> dict[str, Any]:
    support = {k: v if isinstance(v, bool) or math.isfinite(v) else None for k, v in item["support"].items()}
    return {**item, "shape": list(item["shape"]), "dims": list(item["dims"]), "support": support}


def _variable(item: dict[str, Any]) -> Variable:
    bounds = {key: value for key, value in item.pop("support").items() if value is not None}
    shape, dims = tuple(item.pop("shape")), tuple(item.pop("dims"))
    return Variable(**item, shape=shape, dims=dims, support=Support(**bounds))
