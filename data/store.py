"""The simulation store: one campaign's rows on disk, a Zarr v3 group that ``xarray.open_zarr`` reads alone.

Layout::

    theta (simulation, parameter) float64      status (simulation) int8       runtime (simulation) float32, seconds a row
    one array per observable (simulation, …)   parameter: names of the parameters

A chunk holds one *block* of rows, the unit of reading and of randomness; a shard holds whole blocks and is the unit of
writing. Every array has the same shard length along ``simulation`` and one shard has one writer, so nothing is locked
and no two writers ever share a file. A writer marks ``status`` last: what is marked done is whole. Checksums (CRC32C
over the compressed bytes, because Zstandard alone reads a flipped byte) are verified on every read.
"""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ZarrUserWarning

from .errors import CorruptStoreError, MissingFileError, StoreError
from .files import fingerprint, new_folder, sweep
from .variables import Arrays, Variable, Variables

if TYPE_CHECKING:
    import xarray as xr

SCHEMA_VERSION = 1
STATUS = ("pending", "ok", "invalid", "failed", "timeout")
PENDING, OK, INVALID, FAILED, TIMEOUT = range(len(STATUS))

_CHUNK_BYTES = 4 * 2**20
_SHARDS = 16


@dataclass(frozen=True, slots=True)
class Layout:
    """How many rows there are, in a block and in a shard; fixed when the store is made."""

    rows: int
    block: int
    shard: int

    @classmethod
    def choose(cls, rows: int, observables: Variables) -> Layout:
        """Blocks of at most 1,000 rows and 4 MiB, gathered into about 16 shards."""
        if rows < 1:
            raise StoreError(f"`rows` of a campaign must be at least 1; got {rows}")
        row_bytes = max(sum(v.size * np.dtype(v.dtype).itemsize for v in observables), 1)
        block = max(1, min(1000, rows, _CHUNK_BYTES // row_bytes))
        blocks = -(-rows // block)
        return cls(rows, block, block * max(1, blocks // _SHARDS))

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard)

    def shard_rows(self, shard: int) -> slice:
        return slice(shard * self.shard, min((shard + 1) * self.shard, self.rows))

    def blocks(self, shard: int) -> list[tuple[int, int]]:
        """(number of the block, its rows) of every block of ``shard``."""
        rows = self.shard_rows(shard)
        starts = range(rows.start, rows.stop, self.block)
        return [(start // self.block, min(self.block, rows.stop - start)) for start in starts]


class SimulationStore:
    """One campaign on disk. Make it with `create`, find it again with `open`."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group
        attributes: dict[str, Any] = dict(group.attrs)
        self.attributes = attributes
        self.layout = Layout(**attributes["layout"])
        self.parameters = Variables.from_json(attributes["parameters"])
        self.observables = Variables.from_json(attributes["observables"])

    @classmethod
    def create(
        cls, path: str | Path, layout: Layout, parameters: Variables, observables: Variables, attributes: dict[str, Any]
    ) -> SimulationStore:
        """Make an empty store in one step; every row is pending.

        Raises:
            StoreError: Something is at ``path`` already.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"`path` of a new store must be free; {path} exists: open it or choose another")
        described = {
            "schema_version": SCHEMA_VERSION,
            "layout": {"rows": layout.rows, "block": layout.block, "shard": layout.shard},
            "parameters": parameters.to_json(),
            "observables": observables.to_json(),
            **attributes,
        }
        with new_folder(path) as folder, warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", ZarrUserWarning
            )  # consolidated metadata: xarray reads it, the spec has it not
            group = zarr.create_group(folder, zarr_format=3, attributes=described)
            _create_arrays(group, layout, parameters, observables)
            zarr.consolidate_metadata(group.store)
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path) -> SimulationStore:
        """Open an existing store.

        Raises:
            MissingFileError: Nothing there.
            StoreError: No simfer store, or of a newer schema.
        """
        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise MissingFileError(f"no simulation store at {path}")
        with zarr.config.set({"array.write_empty_chunks": True}):  # else a shard full of the fill value looks missing
            group = zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)
        version = group.attrs.get("schema_version")
        if version != SCHEMA_VERSION:
            raise StoreError(
                f"the store {path} has schema version {version}; this simfer reads version {SCHEMA_VERSION}: "
                "open it with the simfer that wrote it"
            )
        return cls(path, group)

    @property
    def rows(self) -> int:
        return self.layout.rows

    @property
    def status(self) -> np.ndarray:
        """Status of every row, an index into `STATUS`."""
        return self._read("status", slice(None))

    def counts(self) -> dict[str, int]:
        """How many rows have each status."""
        found = np.bincount(self.status, minlength=len(STATUS))
        return dict(zip(STATUS, (int(n) for n in found), strict=True))

    def pending_shards(self) -> list[int]:
        """Shards still to be written: not marked done, or with a file missing."""
        status, layout = self.status, self.layout
        return [
            shard
            for shard in range(layout.shards)
            if (status[layout.shard_rows(shard)] == PENDING).any() or not self._files_exist(shard)
        ]

    def write_shard(self, shard: int, theta: np.ndarray, x: Arrays, status: np.ndarray, runtime: np.ndarray) -> None:
        """Write one whole shard, its status last. Writing the same again changes nothing."""
        rows = self.layout.shard_rows(shard)
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, values in {"theta": theta, **x, "runtime": runtime, "status": status}.items():
                self._array(name)[rows] = values

    def read(self, rows: slice = slice(None)) -> tuple[np.ndarray, Arrays]:
        """theta and x of some rows, whatever their status.

        Raises:
            CorruptStoreError: A checksum does not fit.
        """
        return self._read("theta", rows), {name: self._read(name, rows) for name in self.observables.names}

    def verify(self) -> None:
        """Read every byte that is marked done.

        Raises:
            CorruptStoreError: Naming the array and shard that is damaged or missing.
        """
        for shard in range(self.layout.shards):
            rows = self.layout.shard_rows(shard)
            done = (self._read("status", rows) != PENDING).any()
            if done and not self._files_exist(shard):
                raise CorruptStoreError(f"shard {shard} of {self.path} is marked done but a file of it is missing")
            for name in self._row_arrays():
                self._read(name, rows)

    def digest(self) -> str:
        """SHA-256 over the bytes that must not depend on machine load: all files of all arrays but ``runtime``."""
        hashes = {
            str(file.relative_to(self.path)): hashlib.sha256(file.read_bytes()).hexdigest()
            for name in (*self._row_arrays(), "parameter")
            if name != "runtime"
            for file in sorted((self.path / name / "c").rglob("*"))
            if file.is_file()
        }
        return fingerprint(hashes)

    def sweep(self) -> None:
        """Remove temporary files of killed writers."""
        sweep(self.path)

    def to_xarray(self) -> xr.Dataset:
        """The store as a lazy dataset, as ``xarray.open_zarr(path)`` gives it."""
        import xarray as xr

        return xr.open_zarr(self.path)

    def _row_arrays(self) -> tuple[str, ...]:
        return ("theta", *self.observables.names, "runtime", "status")

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _read(self, name: str, rows: slice) -> np.ndarray:
        try:
            return np.asarray(self._array(name)[rows])
        except (ValueError, RuntimeError) as error:
            raise CorruptStoreError(
                f"array `{name}` of {self.path} is damaged between rows {rows.start or 0} and {rows.stop or self.rows} "
                f"({error}): delete the shard's files under {self.path / name / 'c'} and run the same command again"
            ) from error

    def _files_exist(self, shard: int) -> bool:
        return all(
            (self.path / name / "c" / "/".join([str(shard)] + ["0"] * (self._array(name).ndim - 1))).is_file()
            for name in self._row_arrays()
        )


def _create_arrays(group: zarr.Group, layout: Layout, parameters: Variables, observables: Variables) -> None:
    theta = Variable("parameters", (len(parameters),), "float64", dims=("parameter",))
    units = {"units": [v.units for v in parameters], "long_name": "parameters"}
    _create(group, layout, "theta", theta, units)
    for variable in observables:
        attributes = {"units": variable.units, "long_name": variable.label or variable.name}
        _create(group, layout, variable.name, variable, attributes)
    _create(group, layout, "runtime", Variable("seconds", (), "float32"), {"units": "s"})
    flags = {"flag_values": list(range(len(STATUS))), "flag_meanings": " ".join(STATUS)}
    _create(group, layout, "status", Variable("flag", (), "int8"), flags)
    names = np.array(parameters.names, dtype=np.dtypes.StringDType())
    group.create_array("parameter", data=names, dimension_names=("parameter",))


def _create(group: zarr.Group, layout: Layout, name: str, variable: Variable, attributes: dict[str, Any]) -> None:
    group.create_array(
        name,
        shape=(layout.rows, *variable.shape),
        dtype=variable.dtype,
        chunks=(layout.block, *variable.shape),
        shards=(layout.shard, *variable.shape),
        compressors=[ZstdCodec(level=3), Crc32cCodec()],
        fill_value=np.nan if np.dtype(variable.dtype).kind == "f" else 0,
        dimension_names=("simulation", *variable.axes),
        attributes=attributes,
    )
