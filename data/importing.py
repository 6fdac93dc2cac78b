"""From named columns of files to rows of a store: which column is what, and what each row is worth.

A row without parameters is no simulation, and a row whose theta the prior cannot have drawn belongs to another problem:
both are errors that name the row. A row without all of its x is a simulation that failed: it is kept, as ``invalid``.
"""

from __future__ import annotations

import fnmatch
import hashlib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .errors import NotFiniteError, PriorError, ShapeError, UnknownNameError, did_you_mean
from .files import fingerprint
from .records import FAILED, INVALID, OK, STATUS, Records, Schema, no_reasons, why_invalid
from .tables import Column, Table, column_of
from .variables import Arrays, Variable, Variables

Columns = str | Sequence[str]
_HASHED_WHOLE = 64 * 2**20
_FIRST = 2**20
_KEYS = ("units", "label", "dims", "low", "high", "integer")


@dataclass(frozen=True, slots=True)
class Names:
    """What is called how in the files.

    What is None is taken by simfer's own names from a file that simfer wrote, and is not there in any other.

    Attributes:
        theta: A 2-d array with a column per parameter in the prior's order, a list of columns in that order, or
            parameter → column. The parameters' own names when None.
        x: Observable → array, or list of columns (``*`` stands for any text), or a name or list of names that stay.
        context: The same for known nuisance.
        group: Integers; rows with the same are never split.
        u: Base random numbers.
        status: `STATUS` as a number, or whether a row is usable.
        reason: Why a row is not usable, as text.
        runtime: Seconds.
        variables: Observable or context → ``units``, ``label``, ``dims``, ``low``, ``high``, ``integer``, in place of
            what the file says.
    """

    theta: Columns | Mapping[str, str] | None = None
    x: Columns | Mapping[str, Columns] | None = None
    context: Columns | Mapping[str, Columns] | None = None
    group: str | None = None
    u: str | None = None
    status: str | None = None
    reason: str | None = None
    runtime: str | None = None
    variables: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """Which columns make which array of the store.

    Attributes:
        schema: Of the store.
        rows: How many there are.
        columns: Array of the store → columns of the file; several are put side by side.
    """

    schema: Schema
    rows: int
    columns: dict[str, tuple[str, ...]]

    def read(self, table: Table, rows: slice) -> Records:
        """Some rows.

        Raises:
            NotFiniteError: NaN or infinity in theta or context; names the row.
            PriorError: theta outside the support; names row and parameter.
            ShapeError: Text where numbers are required, or a status or group that is none.
        """
        found = table.read(list(dict.fromkeys(name for names in self.columns.values() for name in names)), rows)
        schema, start = self.schema, rows.start
        arrays = {target: _joined(names, found, target, start) for target, names in self.columns.items()}
        theta = _inside(arrays["theta"].reshape(-1, len(schema.parameters)), schema.parameters, start)
        x = {v.name: arrays[v.name] for v in schema.observables}
        context = {v.name: arrays[f"context/{v.name}"] for v in schema.context}
        for name, values in context.items():
            _require_finite(values, f"context.{name}", start)
        status, reason = _judged(arrays.get("status"), arrays.get("reason"), x, start)
        x, context = _cast(schema.observables, x), _cast(schema.context, context)
        runtime = arrays.get("runtime", np.full(len(theta), np.nan)).astype(np.float32)
        u = arrays["u"].astype(np.float64) if "u" in arrays else None
        group = _whole(arrays["group"], start) if "group" in arrays else None
        return Records(theta, x, status, runtime, context, u, group, reason)


def resolve(table: Table, names: Names, parameters: Variables) -> Plan:
    """Find every column.

    Args:
        table: Open.
        names: What is called how.
        parameters: The prior's, with their support; units that are empty are taken from the columns.

    Raises:
        UnknownNameError: A column that is not there.
        ShapeError: Columns of unequal length, of the wrong shape, or not of numbers.
    """
    names = _with_defaults(table, names)
    theta = _theta_columns(table, names.theta, parameters)
    x, context = (_named_columns(table, key, given) for key, given in (("x", names.x), ("context", names.context)))
    if not x:
        raise ShapeError(f"`x` must be given: observable → dataset; there are {', '.join(table.columns) or 'none'}")
    single = {key: (name,) for key in ("group", "u", "status", "reason", "runtime") if (name := getattr(names, key))}
    columns = {"theta": theta, **x, **{f"context/{name}": value for name, value in context.items()}, **single}
    rows = _rows(table, columns)
    _check_overrides(names.variables, [*x, *context])
    described = _described(table)
    schema = Schema(
        _with_units(parameters, theta, table),
        _consistent(_variable(table, n, c, names.variables.get(n, {}), described.get(n)) for n, c in x.items()),
        _consistent(_variable(table, n, c, names.variables.get(n, {}), described.get(n)) for n, c in context.items()),
        column_of(table, names.u).shape[1:] if names.u else None,
        names.group is not None,
    )
    return Plan(schema, rows, columns)


def describe_file(path: Path) -> dict[str, Any]:
    """What tells a file from others of its name: SHA-256 of all of it up to 64 MiB; of a larger one the size, the time
    it was changed and SHA-256 of its first MiB, because to hash 100 GB takes minutes; of a store its attributes.
    """
    if path.is_dir():
        return {"name": path.name, "sha256": hashlib.sha256((path / "zarr.json").read_bytes()).hexdigest()}
    state = path.stat()
    found: dict[str, Any] = {"name": path.name, "bytes": state.st_size}
    with path.open("rb") as file:
        if state.st_size <= _HASHED_WHOLE:
            return {**found, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
        first = hashlib.sha256(file.read(_FIRST)).hexdigest()
    return {**found, "modified_ns": state.st_mtime_ns, "sha256_of_first_mib": first}


def describe_plan(plan: Plan) -> str:
    """A fingerprint of which column is what."""
    return fingerprint({key: list(names) for key, names in plan.columns.items()})


def _with_defaults(table: Table, names: Names) -> Names:
    if table.description is None:
        return names
    schema = Schema.from_json(dict(table.description["schema"]))
    own: dict[str, Any] = {
        "theta": "theta",
        "x": {name: name for name in schema.observables.names},
        "context": {name: f"context/{name}" for name in schema.context.names},
        **{key: key for key in ("group", "u", "status", "reason", "runtime") if key in table.columns},
    }
    return replace(names, **{key: value for key, value in own.items() if getattr(names, key) is None})


def _theta_columns(table: Table, given: Columns | Mapping[str, str] | None, parameters: Variables) -> tuple[str, ...]:
    if given is None:
        given = {name: name for name in parameters.names}
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in parameters.names]
        missing = [name for name in parameters.names if name not in given]
        if unknown or missing:
            raise UnknownNameError(
                f"`theta` must name a column for each of {', '.join(parameters.names)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(unknown) or 'none'}"
            )
        given = [given[name] for name in parameters.names]
    wanted = _expanded(table, given)
    found = column_of(table, wanted[0]).shape[1:] if len(wanted) == 1 else (len(wanted),)
    if found not in ((len(parameters),), ()) or (found == () and len(parameters) > 1):
        raise ShapeError(
            f"`theta` must have {len(parameters)} columns ({', '.join(parameters.names)}), one row per simulation; "
            f"got {', '.join(f'`{n}` of shape {column_of(table, n).shape}' for n in wanted[:5])}"
        )
    return wanted


def _named_columns(table: Table, key: str, given: Columns | Mapping[str, Columns] | None) -> dict[str, tuple[str, ...]]:
    if given is None:
        return {}
    if isinstance(given, str):
        given = [given]
    named = given if isinstance(given, Mapping) else {posixpath.basename(name): name for name in given}
    for name in named:
        Variable(name)  # says what a name must be
    return {name: _expanded(table, columns) for name, columns in named.items()}


def _expanded(table: Table, given: Columns) -> tuple[str, ...]:
    names: list[str] = []
    for pattern in [given] if isinstance(given, str) else given:
        matching = fnmatch.filter(table.columns, pattern) if "*" in pattern else []
        names += matching or [pattern]
    for name in names:
        column_of(table, name)
    return tuple(names)


def _rows(table: Table, columns: Mapping[str, tuple[str, ...]]) -> int:
    lengths: dict[str, int] = {}
    for target, names in columns.items():
        for name in names:
            column = column_of(table, name)
            _check_column(target, name, column, alone=len(names) == 1)
            lengths[name] = column.shape[0]
    if len(set(lengths.values())) > 1:
        raise ShapeError(f"all columns must have equally many rows; got {_shortened(lengths)}")
    rows = next(iter(lengths.values()))
    if rows < 1:
        raise ShapeError("there must be at least one row to import; got none")
    return rows


def _check_column(target: str, name: str, column: Column, *, alone: bool) -> None:
    if not column.shape:
        raise ShapeError(f"`{target}`: dataset `{name}` must have one row per simulation; it is a single value")
    if column.dtype.kind not in "biuf" and target != "reason":
        raise ShapeError(f"`{target}`: dataset `{name}` must be numbers; got dtype {column.dtype}")
    flat = target in ("group", "status", "reason", "runtime") or not alone
    if flat and len(column.shape) > 1:
        raise ShapeError(f"`{target}`: dataset `{name}` must have one value per row; got shape {column.shape}")


def _shortened(lengths: Mapping[str, int]) -> str:
    """An example of each length."""
    examples = {length: name for name, length in lengths.items()}
    return ", ".join(f"{length} in `{name}`" for length, name in examples.items())


def _variable(
    table: Table, name: str, columns: tuple[str, ...], overrides: Mapping[str, Any], known: Variable | None
) -> Variable:
    column = column_of(table, columns[0])
    shape = column.shape[1:] if len(columns) == 1 else (len(columns),)
    dims = column.dims if len(columns) == 1 and _usable(column.dims, name) else ()
    dtype = _stored_dtype(np.result_type(*(column_of(table, c).dtype for c in columns)))
    if known is not None and known.shape == shape:
        made = replace(known, dtype=dtype)
    else:
        made = Variable(name, shape, dtype, column.units, label=column.label, dims=dims)
    bounds = {key: overrides[key] for key in ("low", "high", "integer") if key in overrides}
    texts = {key: str(overrides[key]) for key in ("units", "label") if key in overrides}
    dims = tuple(overrides.get("dims", made.dims))
    support = replace(made.support, **bounds)
    return Variable(name, shape, dtype, texts.get("units", made.units), support, texts.get("label", made.label), dims)


def _usable(dims: tuple[str, ...], name: str) -> bool:
    return all(dim.isidentifier() for dim in dims) and not {name, "simulation", "parameter"} & set(dims)


def _stored_dtype(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "b":
        return "int8"
    if dtype.kind == "f":
        return "float32" if dtype.itemsize <= 4 else "float64"
    return dtype.newbyteorder("=").name


def _consistent(variables: Iterable[Variable]) -> Variables:
    """The variables; axes of one name must be equally long, or xarray could not open the store."""
    made = Variables(variables)
    lengths: dict[str, int] = {}
    for variable in made:
        for dim, length in zip(variable.axes, variable.shape, strict=True):
            if lengths.setdefault(dim, length) != length:
                raise ShapeError(
                    f"`{variable.name}` has {length} entries along `{dim}`, another array {lengths[dim]}: give other "
                    f"names by `variables: {{{variable.name}: {{dims: […]}}}}`"
                )
    return made


def _check_overrides(overrides: Mapping[str, Mapping[str, Any]], known: Sequence[str]) -> None:
    for name, item in overrides.items():
        if name not in known:
            raise UnknownNameError(f"`variables`: no observable or context `{name}`; {did_you_mean(name, known)}")
        for key in item:
            if key not in _KEYS:
                raise UnknownNameError(f"`variables.{name}`: unknown key `{key}`; {did_you_mean(key, _KEYS)}")


def _described(table: Table) -> dict[str, Variable]:
    if table.description is None:
        return {}
    schema = Schema.from_json(dict(table.description["schema"]))
    return {v.name: v for v in (*schema.observables, *schema.context)}


def _with_units(parameters: Variables, columns: tuple[str, ...], table: Table) -> Variables:
    if len(columns) != len(parameters):
        return parameters
    units = [column_of(table, name).units for name in columns]
    return Variables(replace(p, units=p.units or found) for p, found in zip(parameters, units, strict=True))


def _joined(names: tuple[str, ...], found: Arrays, target: str, start: int) -> np.ndarray:
    for name in names if target != "reason" else ():
        if found[name].dtype.kind not in "biuf":
            first = found[name].flat[0]
            raise ShapeError(f"`{target}`: `{name}` must be numbers; row {start} (counted from 0) is {first!r:.40}")
    return found[names[0]] if len(names) == 1 else np.stack([found[name] for name in names], axis=1)


def _cast(variables: Variables, arrays: Arrays) -> Arrays:
    """In the dtypes of the store, none of which loses anything: a float never becomes a whole number."""
    return {
        v.name: np.ascontiguousarray(arrays[v.name].astype(v.dtype, casting="same_kind", copy=False)) for v in variables
    }


def _inside(theta: np.ndarray, parameters: Variables, start: int) -> np.ndarray:
    """theta as float64; what rounding to fewer digits has put beyond a bound is put back on it."""
    _require_finite(theta, "theta", start, parameters.names)
    eps = np.finfo(theta.dtype).eps if theta.dtype.kind == "f" else 0.0
    theta = np.ascontiguousarray(theta, dtype=np.float64)
    low, high = (np.array([getattr(p.support, side) for p in parameters]) for side in ("low", "high"))
    room_low, room_high = (4 * eps * np.where(np.isfinite(b), np.abs(b), 0.0) for b in (low, high))
    outside = (theta < low - room_low) | (theta > high + room_high)
    if outside.any():
        row, column = (int(i) for i in np.argwhere(outside)[0])
        raise PriorError(_outside(parameters.names[column], theta[row, column], low[column], high[column], start + row))
    return np.clip(theta, low, high)


def _outside(name: str, value: float, low: float, high: float, row: int) -> str:
    return (
        f"`theta` must lie in the prior's support; row {row} (counted from 0) has {name} = {value:.6g}, outside "
        f"[{low:.6g}, {high:.6g}]: give the prior that theta was drawn from, or remove such rows and give the prior "
        "cut to the same range"
    )


def _require_finite(values: np.ndarray, what: str, start: int, names: Sequence[str] = ()) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        where = tuple(int(i) for i in np.argwhere(bad)[0])
        which = f" in {names[where[1]]}" if names else ""
        raise NotFiniteError(
            f"`{what}` must be finite; row {start + where[0]} (counted from 0) has {values[where]}{which}: "
            "remove such rows from the file"
        )


def _judged(
    given: np.ndarray | None, reason: np.ndarray | None, x: Arrays, start: int
) -> tuple[np.ndarray, np.ndarray]:
    """Status and reason of every row; an x that is no number makes a row invalid that was ok."""
    rows = len(next(iter(x.values())))
    status = np.full(rows, OK, np.int8) if given is None else _statuses(given, start)
    reasons = no_reasons(rows) if reason is None else _texts(reason)
    for row in np.flatnonzero((status != OK) & (reasons == "")):
        reasons[row] = "marked in the imported file"
    status = np.array(status, np.int8)
    for broken, why in why_invalid(x).items():
        if status[broken] == OK:
            status[broken], reasons[broken] = INVALID, why
    return status, reasons


def _texts(values: np.ndarray) -> np.ndarray:
    """Text, empty where there is none: None in Parquet, NaN in CSV."""
    import pandas as pd

    return np.array(["" if no else str(value) for value, no in zip(values, pd.isna(values), strict=True)], dtype=object)


def _statuses(given: np.ndarray, start: int) -> np.ndarray:
    if given.dtype.kind == "b":
        return np.where(given, OK, FAILED).astype(np.int8)
    _require_finite(given, "status", start)
    wrong = ~np.isin(given, range(OK, len(STATUS)))
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        meanings = ", ".join(f"{i} {name}" for i, name in enumerate(STATUS) if i)
        raise ShapeError(f"`status` must be true or false, or {meanings}; row {start + row} has {given[row]}")
    return given.astype(np.int8)


def _whole(group: np.ndarray, start: int) -> np.ndarray:
    whole = np.where(np.isfinite(group), group, 0).astype(np.int64)
    if (whole != group).any():
        row = int(np.flatnonzero(whole != group)[0])
        raise ShapeError(f"`group` must be whole numbers; row {start + row} has {group[row]}")
    return whole
