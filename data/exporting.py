"""Export a store to one HDF5 or NetCDF file, which is the same file: NetCDF 4 is HDF5 with named axes."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .building import bounded_layout
from .errors import ConfigError, StoreError
from .hdf5_table import DESCRIPTION
from .proposals import require_no_proposals
from .store import SimulationStore, require_finished
from .store_table import describe_store

if TYPE_CHECKING:
    import xarray as xr

SUFFIXES = (".h5", ".hdf5", ".nc")
_CHUNK_BYTES = 2**20


def export_store(
    store: SimulationStore, path: str | Path, *, progress: Callable[[int], None] = lambda rows: None
) -> None:
    """Write all rows with units, labels, names of axes and parameters, status and reason; a few MB are in memory at once.

    The file has the store's own names and says what it is, so that importing it needs no mapping and gives the same
    arrays.

    Args:
        store: Finished.
        path: Ends in ``.h5``, ``.hdf5`` or ``.nc``.
        progress: Called with the number of rows just written.

    Raises:
        ConfigError: Another ending.
        StoreError: Something is at ``path`` already, or rows are pending.
        CorruptStoreError: A checksum does not fit, or a file is missing.
    """
    with new_file(Path(path)) as temporary:
        require_finished(store)
        require_no_proposals(store, "exported")  # whoever imports it would take all its rows for draws of the prior
        _write(store, temporary, progress)


def export_tree(results: xr.DataTree, path: str | Path) -> None:
    """Write results, such as a run's ``posterior.zarr``, with their groups; they may be lazy.

    Raises:
        ConfigError: Another ending than ``.h5``, ``.hdf5`` or ``.nc``.
        StoreError: Something is at ``path`` already.
    """
    with new_file(Path(path)) as temporary:
        results.to_netcdf(temporary, engine="h5netcdf")


@contextmanager
def new_file(path: Path, suffixes: tuple[str, ...] = SUFFIXES) -> Iterator[Path]:
    """Yield a temporary name; when the block ends well, it becomes ``path``, which must have one of the suffixes."""
    if path.suffix.lower() not in suffixes:
        raise ConfigError(f"an exported file must end in {', '.join(suffixes)}; got `{path}`")
    if path.exists():
        raise StoreError(f"`path` of an exported file must be free; {path} exists: remove it or choose another")
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _write(store: SimulationStore, path: Path, progress: Callable[[int], None]) -> None:
    import h5netcdf

    portion = bounded_layout(store.rows, store.schema).shard
    with h5netcdf.File(path, "w") as file:
        file.dimensions = {"simulation": store.rows, "parameter": len(store.parameters)}
        _create(store, file)
        names = file.create_variable("parameter", ("parameter",), _text())
        names[...] = np.array(store.parameters.names, dtype=object)
        file.create_variable(DESCRIPTION, (), _text())[...] = json.dumps(describe_store(store))
        for start in range(0, store.rows, portion):
            rows = slice(start, min(start + portion, store.rows))
            for name, _, _ in store.schema.arrays():
                file[name][rows] = store.read_array(name, rows)
            file["reason"][rows] = store.reasons(rows)
            progress(rows.stop - rows.start)


def _create(store: SimulationStore, file: Any) -> None:
    for name, variable, attributes in store.schema.arrays():
        for axis, length in zip(variable.axes, variable.shape, strict=True):
            if axis not in file.dimensions:
                file.dimensions[axis] = length
        row_bytes = max(variable.size * np.dtype(variable.dtype).itemsize, 1)
        made = file.create_variable(
            name,
            ("simulation", *variable.axes),
            variable.dtype,
            chunks=(min(store.rows, max(1, _CHUNK_BYTES // row_bytes)), *variable.shape),
            compression="gzip",
            compression_opts=1,
            shuffle=True,
        )
        for key, value in attributes.items():
            if value not in ("", [""] * len(store.parameters)):
                made.attrs[key] = np.asarray(value, dtype=np.int8) if key == "flag_values" else value
    file.create_variable("reason", ("simulation",), _text())


def _text() -> Any:
    import h5py

    return h5py.string_dtype()
