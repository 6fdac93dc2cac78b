"""What an external program leaves: npy, npz, CSV, JSON, HDF5 or NetCDF, as named arrays of the observables' shapes."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..data.errors import ProgramError
from ..data.variables import Arrays, Variable, Variables

SUFFIXES = {
    ".npy": "npy",
    ".npz": "npz",
    ".csv": "csv",
    ".txt": "csv",
    ".json": "json",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".nc": "netcdf",
}

Wanted = Sequence[str] | None


def read_output(source: str | bytes, kind: str, wanted: Wanted) -> Arrays:
    """The datasets called ``wanted``, or all; a file of one nameless array gives it under the empty name.

    Args:
        source: Path of a file, or what was printed (csv and json).
        kind: One of npy, npz, csv, json, hdf5, netcdf.
        wanted: Names inside the file, such as ``group/x`` in HDF5; None for all at the top.

    Raises:
        ProgramError: It is not what ``kind`` says.
    """
    try:
        return READERS[kind](source, wanted)
    except (OSError, ValueError, TypeError, KeyError, EOFError) as error:
        raise ProgramError(f"its output cannot be read as {kind}: {str(error) or type(error).__name__:.200}") from error


def as_observables(
    found: Arrays, observables: Variables, datasets: Mapping[str, str], lead: tuple[int, ...], *, loose: bool
) -> Arrays:
    """Give every observable its dataset, shape ``(*lead, *shape)``, in its dtype.

    Args:
        found: Dataset → array; one nameless array holds the only observable, or all of them one after another.
        observables: What there must be.
        datasets: Observable → name of its dataset, where that is another.
        lead: ``()`` for one row, ``(rows,)`` for a batch.
        loose: Whether shapes are those of text: any of the right size will do.

    Raises:
        ProgramError: A dataset is missing, or has the wrong shape or dtype.
    """
    if set(found) == {""}:
        named = _split(found[""], observables, lead, loose=loose)
    else:
        named = {v.name: _dataset(found, datasets.get(v.name, v.name)) for v in observables}
    return {v.name: _cast(v, _shaped(v, named[v.name], lead, loose=loose)) for v in observables}


def seen_variables(found: Arrays, datasets: Mapping[str, str], batch: bool) -> Variables:
    """The variables that an output shows, where nobody described them; one nameless array is ``x``.

    Raises:
        ProgramError: There is nothing, or a dataset of something else than numbers.
        ShapeError: A dataset's name that is no identifier.
    """
    named = {"x": found[""]} if set(found) == {""} else found
    if datasets and set(found) != {""}:
        named = {name: _dataset(found, dataset) for name, dataset in datasets.items()}
    if not named:
        raise ProgramError("its output has no dataset: give `observables`, or `datasets` for those in groups")
    return Variables(_seen(name, values, batch) for name, values in named.items())


def _seen(name: str, values: np.ndarray, batch: bool) -> Variable:
    _require_numbers(name, values)
    return Variable(name, values.shape[1:] if batch else values.shape, values.dtype.name)


def _dataset(found: Arrays, name: str) -> np.ndarray:
    if name not in found:
        raise ProgramError(f"its output has no dataset `{name}`, only {', '.join(found) or 'none'}")
    return found[name]


def _split(values: np.ndarray, observables: Variables, lead: tuple[int, ...], *, loose: bool) -> Arrays:
    if len(observables) == 1:
        return {observables.names[0]: values}
    wanted = (*lead, observables.size)
    if values.size != math.prod(wanted) or not (loose or values.shape == wanted):
        raise ProgramError(
            f"its output must hold {observables.size} numbers per row ({', '.join(observables.names)}); "
            f"got shape {values.shape}"
        )
    ends = np.cumsum([v.size for v in observables])[:-1]
    parts = np.split(values.reshape(wanted), ends, axis=-1)
    return {v.name: part.reshape((*lead, *v.shape)) for v, part in zip(observables, parts, strict=True)}


def _shaped(variable: Variable, values: np.ndarray, lead: tuple[int, ...], *, loose: bool) -> np.ndarray:
    wanted = (*lead, *variable.shape)
    if values.shape == wanted:
        return values
    if values.size == math.prod(wanted) and (loose or _long(values.shape) == _long(wanted)):
        return values.reshape(wanted)
    raise ProgramError(f"its output must have `{variable.name}` of shape {wanted}; got {values.shape}")


def _long(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the axes of length one, which many formats put around a single number."""
    return tuple(n for n in shape if n != 1)


def _cast(variable: Variable, values: np.ndarray) -> np.ndarray:
    _require_numbers(variable.name, values)
    if np.dtype(variable.dtype).kind == "f":
        return values.astype(variable.dtype)
    with np.errstate(invalid="ignore"):
        cast = values.astype(variable.dtype)
    if not np.array_equal(cast, values):
        wrong = values[cast != values].flat[0]
        raise ProgramError(f"its output must have `{variable.name}` in {variable.dtype}; got {wrong}")
    return cast


def _require_numbers(name: str, values: np.ndarray) -> None:
    if values.dtype.kind not in "biuf":
        raise ProgramError(f"its output must have numbers as `{name}`; got dtype {values.dtype}")


def _file(source: str | bytes) -> str | io.BytesIO:
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _text(source: str | bytes) -> str:
    if isinstance(source, bytes):
        return source.decode()
    with open(source, "rb") as file:
        return file.read().decode()


def _npy(source: str | bytes, wanted: Wanted) -> Arrays:
    return {"": np.load(_file(source), allow_pickle=False)}


def _npz(source: str | bytes, wanted: Wanted) -> Arrays:
    with np.load(_file(source), allow_pickle=False) as file:
        return {name: file[name] for name in file.files if wanted is None or name in wanted}


def _csv(source: str | bytes, wanted: Wanted) -> Arrays:
    lines = [line.replace(",", " ").split() for line in _text(source).splitlines()]
    lines = [line for line in lines if line and not line[0].startswith("#")]
    if not lines:
        raise ValueError("it is empty")
    if _is_number(lines[0][0]):
        table = np.array([[float(word) for word in line] for line in lines])
        return {"": table.reshape(_long(table.shape)) if len(table) == 1 or table.shape[1] == 1 else table}
    names, columns = [word.strip("\"'") for word in lines[0]], np.array(lines[1:], dtype=float).T
    return dict(zip(names, columns, strict=True))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _json(source: str | bytes, wanted: Wanted) -> Arrays:
    found = json.loads(_text(source))
    named = found if isinstance(found, dict) else {"": found}
    return {name: np.asarray(values) for name, values in named.items() if wanted is None or name in wanted or not name}


def _hdf5(source: str | bytes, wanted: Wanted) -> Arrays:
    import h5py

    with h5py.File(_file(source), "r") as file:
        names = [name for name in file if wanted is None] if wanted is None else [n for n in wanted if n in file]
        return {name: np.asarray(file[name][()]) for name in names if isinstance(file[name], h5py.Dataset)}


def _netcdf(source: str | bytes, wanted: Wanted) -> Arrays:
    import xarray as xr

    with xr.open_dataset(_file(source), engine="h5netcdf") as dataset:
        names = list(map(str, dataset.data_vars)) if wanted is None else [n for n in wanted if n in dataset]
        return {name: dataset[name].to_numpy() for name in names}


READERS: dict[str, Callable[[str | bytes, Wanted], Arrays]] = {
    "npy": _npy,
    "npz": _npz,
    "csv": _csv,
    "json": _json,
    "hdf5": _hdf5,
    "netcdf": _netcdf,
}
