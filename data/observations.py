"""Observations from files: NetCDF, HDF5, Zarr, npz, npy, CSV and JSON, as named arrays."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, MissingFileError
from .variables import Arrays, Variables


def read_observation(
    source: str | Path | Mapping[str, Any], variables: Variables, *, finite: bool = True, many: bool = False
) -> Arrays:
    """One observation, every variable of shape ``shape``; of several independent ones ``(trial, *shape)``.

    Args:
        source: A file, or a mapping from name to numbers. A file that holds one nameless array (npy) or one array
            of another name stands for the only variable; a CSV has one named column per 1-d variable.
        variables: What the simulator observes.
        finite: Whether every entry must be finite.
        many: Whether there may be several.

    Raises:
        MissingFileError: No such file.
        ConfigError: A kind of file that is not known, or not readable.
        ShapeError: Names or shapes that do not fit, or more than one observation.
        NotFiniteError: NaN or infinity.
    """
    found = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    if len(variables) == 1 and len(found) == 1 and set(found) == {""}:
        found = {variables.names[0]: found[""]}
    if not isinstance(source, Mapping):
        found = {name: found[name] for name in variables.names if name in found} or found
    rows = variables.rows(
        {name: _numbers(name, values) for name, values in found.items()}, what="observation", finite=finite
    )
    trials = len(next(iter(rows.values())))
    if trials == 0 or (trials > 1 and not many):
        hint = ": only methods `nle` and `nre` take several" if trials else ""
        raise ConfigError(f"`observation` must be one observation; got {trials}{hint}")
    return {name: np.asarray(values[0] if trials == 1 else values) for name, values in rows.items()}


def _numbers(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values, dtype=float)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"`observation[{name!r}]` must be numbers; got {values!r:.80}") from error


def _read(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise MissingFileError(f"no file `{path}` for `observation`")
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise ConfigError(f"`observation` must be a file ending in {', '.join(_READERS)}; got `{path}`")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"`observation` file {path} cannot be read as {path.suffix}: {error}") from error


def _netcdf(path: Path) -> dict[str, Any]:
    import xarray as xr

    with xr.open_dataset(path, engine="h5netcdf") as dataset:
        return {str(name): values.to_numpy() for name, values in dataset.data_vars.items()}


def _zarr(path: Path) -> dict[str, Any]:
    import xarray as xr

    with xr.open_zarr(path, chunks=None, consolidated=False) as dataset:
        return {str(name): values.to_numpy() for name, values in dataset.data_vars.items()}


def _hdf5(path: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(path) as file:
        return {name: item[()] for name, item in file.items() if isinstance(item, h5py.Dataset)}


def _npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def _npy(path: Path) -> dict[str, Any]:
    return {"": np.load(path, allow_pickle=False)}


def _csv(path: Path) -> dict[str, Any]:
    table = np.atleast_1d(np.genfromtxt(path, delimiter=",", names=True, dtype=float, encoding="utf-8"))
    if table.dtype.names is None:
        raise ValueError("it needs a header line that names its columns")
    return {name: table[name] for name in table.dtype.names}


def _json(path: Path) -> dict[str, Any]:
    found = json.loads(path.read_text(encoding="utf-8"))
    return found if isinstance(found, dict) else {"": found}


_READERS: dict[str, Callable[[Path], dict[str, Any]]] = {
    ".nc": _netcdf,
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".zarr": _zarr,
    ".npz": _npz,
    ".npy": _npy,
    ".csv": _csv,
    ".json": _json,
}
