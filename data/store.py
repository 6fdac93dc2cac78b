"""The simulation store: one campaign's rows on disk, a Zarr v3 group that ``xarray.open_zarr`` reads alone.

Layout::

    theta (simulation, parameter) float64      one array per observable (simulation, …)      parameter: their names
    context/… (simulation, …)                  u (simulation, …) float64                     group (simulation) int64
    status (simulation) int8                   reason (simulation) text                      runtime (simulation) float32, s

``context``, ``u`` and ``group`` are there where the campaign has them. A chunk holds one *block* of rows, the unit of
reading and of randomness; a shard holds whole blocks and is the unit of writing. Every array has the same shard length
along ``simulation`` and one shard has one writer, so nothing is locked and no two writers ever share a file. A writer
marks ``status`` last: what is marked done is whole. Checksums (CRC32C over the compressed bytes, because Zstandard alone
reads a flipped byte) are verified on every read. ``reason`` has files only where a row is not ok.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.errors import ContainsArrayError, ZarrUserWarning

from .errors import CorruptStoreError, MissingFileError, StoreError
from .files import fingerprint, new_folder, remove, sweep
from .layout import Layout
from .records import PENDING, STATUS, Records, Schema, no_reasons
from .variables import Arrays, Variable, Variables

if TYPE_CHECKING:
    import xarray as xr

SCHEMA_VERSION = 2
_READABLE = (1, 2)  # 1 had neither context, u, group, reason nor segments
_TEXT = np.dtypes.StringDType()
_CODECS = (ZstdCodec(level=3), Crc32cCodec())


@dataclass(frozen=True, slots=True)
class Damage:
    """One array of one shard that cannot be read."""

    shard: int
    array: str
    what: str

    def __str__(self) -> str:
        return f"shard {self.shard}, array `{self.array}`: {self.what}"


class SimulationStore:
    """One campaign on disk. Make it with `create`, find it again with `open`."""

    def __init__(self, path: Path, group: zarr.Group) -> None:
        self.path = path
        self._group = group
        attributes: dict[str, Any] = dict(group.attrs)
        self.attributes = attributes
        self.layout = Layout.from_json(attributes["layout"])
        self.schema = Schema.from_json(attributes)
        self._axes = {name: 1 + len(variable.shape) for name, variable, _ in self.schema.arrays()}

    @classmethod
    def create(cls, path: str | Path, layout: Layout, schema: Schema, attributes: dict[str, Any]) -> SimulationStore:
        """Make an empty store in one step; every row is pending.

        Raises:
            StoreError: Something is at ``path`` already.
        """
        path = Path(path)
        if path.exists():
            raise StoreError(f"`path` of a new store must be free; {path} exists: open it or choose another")
        with new_folder(path) as folder:
            cls.create_in(folder, layout, schema, attributes)
        return cls.open(path)

    @classmethod
    def create_in(cls, folder: Path, layout: Layout, schema: Schema, attributes: dict[str, Any]) -> SimulationStore:
        """Make an empty store of a folder that is there and empty; in several steps, so it must be a temporary one."""
        described = {"schema_version": SCHEMA_VERSION, "layout": layout.to_json(), **schema.to_json(), **attributes}
        group = zarr.create_group(folder, zarr_format=3, attributes=described)
        _create_arrays(group, layout, schema)
        _consolidate(group)
        return cls.open(folder)

    @classmethod
    def open(cls, path: str | Path) -> SimulationStore:
        """Open an existing store.

        Raises:
            MissingFileError: Nothing there.
            StoreError: No simfer store, a damaged one, or of a newer schema.
        """
        path = Path(path)
        if not (path / "zarr.json").is_file():
            raise MissingFileError(f"no simulation store at {path}")
        with zarr.config.set({"array.write_empty_chunks": True}):  # else a shard full of the fill value looks missing
            group = _group(path)
        version = group.attrs.get("schema_version")
        if version is None:
            raise StoreError(
                f"{path} is a Zarr group but no simulation store; `simfer import` makes one of your arrays"
            )
        if version not in _READABLE:
            raise StoreError(
                f"the store {path} has schema version {version}; this simfer reads {_READABLE[0]} to {_READABLE[-1]}: "
                "open it with the simfer that wrote it"
            )
        return cls(path, group)

    @property
    def parameters(self) -> Variables:
        return self.schema.parameters

    @property
    def observables(self) -> Variables:
        return self.schema.observables

    @property
    def conditions(self) -> Variables:
        """What a posterior is conditioned on: x and context."""
        return Variables([*self.schema.observables, *self.schema.context])

    @property
    def rows(self) -> int:
        return self.layout.rows

    @property
    def status(self) -> np.ndarray:
        """Status of every row, an index into `STATUS`."""
        return self.read_array("status")

    def counts(self) -> dict[str, int]:
        """How many rows have each status."""
        found = np.bincount(self.status, minlength=len(STATUS))
        return dict(zip(STATUS, (int(n) for n in found), strict=True))

    def shards_with(self, statuses: Sequence[int]) -> list[int]:
        """Shards that hold a row of one of these statuses."""
        wanted = np.flatnonzero(np.isin(self.status, list(statuses)))
        return [int(shard) for shard in np.unique(wanted // self.layout.shard)]

    def pending_shards(self, among: Sequence[int] | None = None) -> list[int]:
        """Shards still to be written: not marked done, or with a file missing; of some, or of all, in which case all files are read."""
        if among is not None:
            return [s for s in among if not self.is_whole(s) or (self._status_of(s) == PENDING).any()]
        pending = set(self.shards_with([PENDING]))
        return [s for s in range(self.layout.shards) if s in pending or not self.is_whole(s)]

    def _status_of(self, shard: int) -> np.ndarray:
        return self.read_array("status", self.layout.shard_rows(shard))

    def is_whole(self, shard: int) -> bool:
        """Whether every array has a file for ``shard``."""
        return not self._missing(shard)

    def finished_at(self) -> dict[int, float]:
        """Shard → when its status was written, in seconds since the epoch."""
        files = {int(file.name): file for file in (self.path / "status" / "c").glob("[0-9]*") if file.name.isdigit()}
        return {shard: file.stat().st_mtime for shard, file in files.items()}

    def write_shard(self, shard: int, records: Records) -> None:
        """Write one whole shard, its status last. Writing the same again changes nothing."""
        rows = self.layout.shard_rows(shard)
        reason = np.asarray(no_reasons(records.rows) if records.reason is None else records.reason, dtype=_TEXT)
        if "reason" in self._group and (reason.astype(bool).any() or self._file("reason", shard).exists()):
            self._array("reason")[rows] = reason
        with zarr.config.set({"array.write_empty_chunks": True}):
            for name, values in records.arrays().items():
                self._array(name)[rows] = values

    def read(self, rows: slice = slice(None)) -> tuple[np.ndarray, Arrays]:
        """theta and x of some rows, whatever their status.

        Raises:
            CorruptStoreError: A checksum does not fit.
        """
        return self.read_array("theta", rows), {name: self.read_array(name, rows) for name in self.observables.names}

    def read_conditions(self, rows: slice = slice(None)) -> Arrays:
        """x and context of some rows, by name."""
        context = {name: self.read_array(f"context/{name}", rows) for name in self.schema.context.names}
        return self.read(rows)[1] | context

    def read_records(self, rows: slice = slice(None)) -> Records:
        """All that the store has of some rows.

        Raises:
            CorruptStoreError: A checksum does not fit.
        """
        arrays = {name: self.read_array(name, rows) for name in self._row_arrays()}
        return Records.from_arrays(arrays, self.schema, self.reasons(rows))

    def reasons(self, rows: slice = slice(None)) -> np.ndarray:
        """Why rows are not ok, as text, empty where they are."""
        if "reason" not in self._group:
            return no_reasons(len(range(*rows.indices(self.rows))))
        return self.read_array("reason", rows).astype(object)

    def read_array(self, name: str, rows: slice = slice(None)) -> np.ndarray:
        """Rows of one array: ``theta``, an observable, ``context/NAME``, ``u``, ``group``, ``status`` or ``runtime``.

        Raises:
            CorruptStoreError: A checksum does not fit; names the shard.
        """
        start, stop, _ = rows.indices(self.rows)
        try:
            return np.asarray(self._array(name)[start:stop])
        except (ValueError, RuntimeError) as error:
            shards = range(start // self.layout.shard, -(-stop // self.layout.shard))
            found = next((d for s in shards if (d := self._damage(s, name))), f"array `{name}`: {error}")
            raise CorruptStoreError(damaged(self.path, [found])) from error

    def damages(self) -> Iterator[Damage]:
        """Read every byte that is marked done, and name what cannot be read."""
        for shard in range(self.layout.shards):
            found = [d for name in (*self._row_arrays(), *self._optional()) if (d := self._damage(shard, name))]
            yield from found
            if any(d.array == "status" for d in found):
                continue
            done = (self.read_array("status", self.layout.shard_rows(shard)) != PENDING).any()
            yield from (
                Damage(shard, name, "marked done but a file is missing") for name in self._missing(shard) if done
            )

    def verify(self) -> None:
        """Read every byte that is marked done.

        Raises:
            CorruptStoreError: Naming every array and shard that is damaged or missing.
        """
        found = list(self.damages())
        if found:
            raise CorruptStoreError(damaged(self.path, found))

    def discard(self, shard: int) -> None:
        """Give a shard up: its rows are pending again, to be filled by the same campaign."""
        for name in ("status", *(name for name in self._row_arrays() if name != "status"), "reason"):
            remove(self._file(name, shard))

    def extend(self, rows: int, attributes: dict[str, Any] | None = None) -> None:
        """Add pending rows at the end, and ``attributes`` in the same step; what is there stays as it is.

        Raises:
            StoreError: Fewer rows than there are.
        """
        layout = self.layout.extended(rows)
        for name in (*self._row_arrays(), "reason"):
            array = self._array(name)
            array.resize((rows, *array.shape[1:]))
        self.annotate(
            {"layout": layout.to_json(), **(attributes or {})}
        )  # last: what is beyond the layout's rows is not read
        self.layout = layout

    def annotate(self, attributes: dict[str, Any]) -> None:
        """Add to the attributes."""
        self._group.attrs.update(attributes)
        _consolidate(self._group)
        self.attributes = {**self.attributes, **attributes}

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

    def _optional(self) -> tuple[str, ...]:
        """Arrays with files only where there is something to say."""
        return ("reason",) if "reason" in self._group else ()

    def _row_arrays(self) -> tuple[str, ...]:
        return tuple(self._axes)

    def _array(self, name: str) -> zarr.Array[Any]:
        array = self._group[name]
        assert isinstance(array, zarr.Array)
        return array

    def _file(self, name: str, shard: int) -> Path:
        return self.path / name / "c" / "/".join([str(shard)] + ["0"] * (self._axes.get(name, 1) - 1))

    def _missing(self, shard: int) -> list[str]:
        """Arrays of which ``shard`` has no file."""
        return [name for name in self._row_arrays() if not self._file(name, shard).is_file()]

    def _damage(self, shard: int, name: str) -> Damage | None:
        rows = self.layout.shard_rows(shard)
        try:
            self._array(name)[rows]
        except (ValueError, RuntimeError) as error:
            return Damage(shard, name, str(error))
        return None


def require_finished(store: SimulationStore) -> None:
    """See to it that every row of a store is there to be copied.

    Raises:
        StoreError: Rows are pending.
        CorruptStoreError: A shard is marked done but a file of it is missing; names the shard.
    """
    pending = int((store.status == PENDING).sum())
    if pending:
        raise StoreError(
            f"all rows of {store.path} must be done; {pending} of {store.rows} are pending: finish its campaign first, "
            "by the command that began it"
        )
    require_whole(store)


def require_whole(store: SimulationStore) -> None:
    """See to it that what is marked done has all its files; a missing one would be read as fill values.

    Raises:
        CorruptStoreError: Names the shards that have not.
    """
    pending = set(store.shards_with([PENDING]))
    lost = [s for s in range(store.layout.shards) if s not in pending and not store.is_whole(s)]
    if lost:
        raise CorruptStoreError(
            damaged(store.path, [f"shard {shard}: marked done but a file is missing" for shard in lost])
        )


def damaged(path: Path, found: Sequence[object]) -> str:
    """What is wrong and what to do about it."""
    listed = "; ".join(map(str, found[:5])) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
    return (
        f"the store {path} is damaged: {listed}: run `simfer verify {path} --repair` to give these shards up, "
        "then the same command again to simulate them anew"
    )


def _group(path: Path) -> zarr.Group:
    try:
        return zarr.open_group(path, mode="r+", zarr_format=3, use_consolidated=False)
    except ContainsArrayError as error:
        raise StoreError(
            f"{path} is an array and no simulation store; give the store's own folder, above it"
        ) from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:  # whatever zarr makes of broken JSON
        raise StoreError(
            f"the store {path} has a damaged `zarr.json` ({error}): restore this file from a copy of the store, or "
            "simulate into another folder"
        ) from error


def _create_arrays(group: zarr.Group, layout: Layout, schema: Schema) -> None:
    for name, variable, attributes in schema.arrays():
        _create(group, layout, name, variable, attributes)
    group.create_array(
        "reason",
        shape=(layout.rows,),
        dtype=_TEXT,
        chunks=(layout.block,),
        shards=(layout.shard,),
        compressors=list(_CODECS),
        fill_value="",
        dimension_names=("simulation",),
    )
    names = np.array(schema.parameters.names, dtype=_TEXT)
    group.create_array("parameter", data=names, dimension_names=("parameter",))


def _create(group: zarr.Group, layout: Layout, name: str, variable: Variable, attributes: dict[str, Any]) -> None:
    group.create_array(
        name,
        shape=(layout.rows, *variable.shape),
        dtype=variable.dtype,
        chunks=(layout.block, *variable.shape),
        shards=(layout.shard, *variable.shape),
        compressors=list(_CODECS),
        fill_value=np.nan if np.dtype(variable.dtype).kind == "f" else 0,
        dimension_names=("simulation", *variable.axes),
        attributes=attributes,
    )


def _consolidate(group: zarr.Group) -> None:
    """xarray reads consolidated metadata; the specification has it not, which zarr warns of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ZarrUserWarning)
        zarr.consolidate_metadata(group.store)
