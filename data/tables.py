"""Named columns in files of whatever kind, read some rows at a time: what importing needs of a format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np

from .errors import ConfigError, MissingFileError, ShapeError, SimferError, StoreError, UnknownNameError, did_you_mean
from .variables import Arrays


@dataclass(frozen=True, slots=True)
class Column:
    """One array of a file, its rows along the first axis.

    Attributes:
        shape: Of the whole array, ``(rows, …)``.
        dtype: That holds whatever `Table.read` gives.
        units: As the file says.
        label: As the file says.
        dims: Names of the axes after the first, where the file has names for all of them.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    units: str = ""
    label: str = ""
    dims: tuple[str, ...] = ()


@runtime_checkable
class Table(Protocol):
    """A file, open for reading. Reading goes forward: a format that is a stream begins anew for rows behind it.

    Attributes:
        columns: What there is, by name.
        description: What simfer says of a store, or of a file it has exported; None of any other.
    """

    @property
    def columns(self) -> Mapping[str, Column]: ...

    @property
    def description(self) -> Mapping[str, Any] | None: ...

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        """Some rows of some columns; text as objects."""
        ...

    def close(self) -> None: ...


@contextmanager
def open_table(paths: Sequence[Path]) -> Iterator[Table]:
    """Open one file, or several of the same columns whose rows follow one another; errors of reading are named.

    Raises:
        MissingFileError: No such file.
        ConfigError: A kind of file that is not known.
        ShapeError: Files with other columns, or columns of other shapes, than the first.
        StoreError: A file that cannot be read.
    """
    with ExitStack() as stack:
        parts = []
        for path in paths:
            part = stack.enter_context(_reading(path))
            parts.append(part)
        yield parts[0] if len(parts) == 1 else _Chain(paths, parts)


def column_of(table: Table, name: str) -> Column:
    """A column by name.

    Raises:
        UnknownNameError: None has that name; says which are near.
    """
    if name not in table.columns:
        raise UnknownNameError(f"no dataset or column `{name}`; {did_you_mean(name, table.columns)}")
    return table.columns[name]


@contextmanager
def _reading(path: Path) -> Iterator[Table]:
    if not path.exists():
        raise MissingFileError(f"no file `{path}` to import")
    opener = _OPENERS.get(path.suffix.lower())
    if opener is None:
        raise ConfigError(f"`import` must be a file ending in {', '.join(_OPENERS)}; got `{path}`")
    with _named(path):
        table = opener(path)
    try:
        yield _Named(path, table)
    finally:
        table.close()


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Whatever a library says of a file that it cannot read, as one error that names the file."""
    try:
        yield
    except SimferError:
        raise
    except Exception as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise StoreError(f"{path} cannot be read as {path.suffix}: {first}: is it whole, and of that kind?") from error


class _Named:
    """A table whose errors name its file."""

    def __init__(self, path: Path, table: Table) -> None:
        self._path, self._table = path, table
        self.columns, self.description = table.columns, table.description

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        with _named(self._path):
            return self._table.read(names, rows)

    def close(self) -> None:
        self._table.close()


class _Chain:
    """Several tables of the same columns, one after the other."""

    def __init__(self, paths: Sequence[Path], parts: Sequence[Table]) -> None:
        self._parts = parts
        self.description = parts[0].description
        self._lengths = [_length(path, part) for path, part in zip(paths, parts, strict=True)]
        total = sum(self._lengths)
        for path, part in zip(paths, parts, strict=True):
            _require_same(paths[0], parts[0], path, part)
        self.columns = {
            name: replace(c, shape=(total, *c.shape[1:]), dtype=_common_dtype([part.columns[name] for part in parts]))
            for name, c in parts[0].columns.items()
            if c.shape
        }

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        found, start = [], 0
        for part, length in zip(self._parts, self._lengths, strict=True):
            first, last = max(rows.start - start, 0), min(rows.stop - start, length)
            if first < last:
                found.append(part.read(names, slice(first, last)))
            start += length
        return {name: np.concatenate([arrays[name] for arrays in found]) for name in names}

    def close(self) -> None:
        for part in self._parts:
            part.close()


def _length(path: Path, table: Table) -> int:
    lengths = {name: c.shape[0] for name, c in table.columns.items() if c.shape}
    if len(set(lengths.values())) != 1:
        raise ShapeError(f"every column of {path} must have equally many rows to be joined to others; got {lengths}")
    return next(iter(lengths.values()))


def _require_same(first: Path, expected: Table, path: Path, table: Table) -> None:
    shapes, theirs = ({n: c.shape[1:] for n, c in t.columns.items() if c.shape} for t in (expected, table))
    differing = [name for name in {**shapes, **theirs} if shapes.get(name) != theirs.get(name)]
    if differing:
        raise ShapeError(f"{path} must have the columns of {first}, of the same shapes; `{differing[0]}` differs")


def _common_dtype(columns: Sequence[Column]) -> np.dtype[Any]:
    """That holds the values of all of them without loss; of numbers and what is none, objects."""
    try:
        return np.result_type(*(column.dtype for column in columns))
    except TypeError:
        return np.dtype(object)


def _hdf5(path: Path) -> Table:
    from .hdf5_table import HDF5Table

    return HDF5Table(path)


def _netcdf(path: Path) -> Table:
    from .hdf5_table import NetCDFTable

    return NetCDFTable(path)


def _npz(path: Path) -> Table:
    from .npz_table import NpzTable

    return NpzTable(path)


def _csv(path: Path) -> Table:
    from .csv_table import CSVTable

    return CSVTable(path)


def _parquet(path: Path) -> Table:
    from .parquet_table import ParquetTable

    return ParquetTable(path)


def _store(path: Path) -> Table:
    from .store_table import StoreTable

    return StoreTable(path)


_OPENERS: dict[str, Callable[[Path], Table]] = {
    ".h5": _hdf5,
    ".hdf5": _hdf5,
    ".nc": _netcdf,
    ".npz": _npz,
    ".csv": _csv,
    ".parquet": _parquet,
    ".zarr": _store,
}
