"""Parquet files as tables, by pyarrow: columns of numbers, or of lists that are all equally long.

Null is NaN, or empty text. Whole numbers know no NaN, so a column of them that has nulls is one of float64; without
nulls it keeps its dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ConfigError, ShapeError
from .tables import Column
from .variables import Arrays

_BATCH_BYTES = 2**22


class ParquetTable:
    """A Parquet file, decoded a batch of rows at a time.

    Raises:
        ConfigError: pyarrow is not installed.
    """

    def __init__(self, path: Path) -> None:
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ConfigError(
                "reading Parquet needs pyarrow, which is not installed: `pip install 'simfer[parquet]'`"
            ) from error
        self._path = path
        self._file = parquet.ParquetFile(path, pre_buffer=False)
        self._rows = self._file.metadata.num_rows
        self._with_nulls = _with_nulls(self._file.metadata)
        self.columns = {field.name: self._column(field) for field in self._file.schema_arrow}
        self.description = None
        self._wanted: tuple[str, ...] = ()
        self._batches: Any = None
        self._rest: Any = None
        self._row = 0

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        if self._batches is None or self._wanted != tuple(names) or rows.start < self._row:
            self._begin(tuple(names))
        while self._row < rows.start:
            self._take(rows.start - self._row)
        start, parts = self._row, []
        while self._row < rows.stop:
            parts.append(self._take(rows.stop - self._row))
        return {name: np.concatenate([self._values(name, p.column(name), start) for p in parts]) for name in names}

    def close(self) -> None:
        self._file.close()

    def _begin(self, names: tuple[str, ...]) -> None:
        self._wanted, self._row, self._rest = names, 0, None
        row_bytes = sum(8 * int(np.prod(self.columns[name].shape[1:])) for name in names)
        rows = max(1, _BATCH_BYTES // row_bytes)
        self._batches = self._file.iter_batches(rows, columns=list(dict.fromkeys(names)), use_threads=False)

    def _take(self, most: int) -> Any:
        batch = self._rest if self._rest is not None and self._rest.num_rows else next(self._batches)
        taken, self._rest = batch.slice(0, most), batch.slice(most)
        self._row += taken.num_rows
        return taken

    def _column(self, field: Any) -> Column:
        from pyarrow import types

        kind = field.type
        shape: tuple[int, ...] = (self._rows,)
        if types.is_fixed_size_list(kind):
            kind, shape = kind.value_type, (self._rows, kind.list_size)
        elif types.is_list(kind) or types.is_large_list(kind):
            kind, shape = kind.value_type, (self._rows, self._first_length(field.name))
        units = (field.metadata or {}).get(b"units", b"").decode()
        dtype = _dtype(kind)
        widened = dtype.kind in "biu" and self._has_nulls(field.name)
        return Column(shape, np.dtype(np.float64) if widened else dtype, units)

    def _has_nulls(self, name: str) -> bool:
        return any(path == name or path.startswith(f"{name}.") for path in self._with_nulls)

    def _first_length(self, name: str) -> int:
        batch = next(self._file.iter_batches(1, columns=[name]), None)
        return len(batch.column(0)[0]) if batch is not None and batch.column(0)[0].is_valid else 0

    def _values(self, name: str, array: Any, start: int) -> np.ndarray:
        width = self.columns[name].shape[1:]
        if not width:
            return _numpy(array)
        lengths = np.asarray(array.value_lengths().fill_null(0))
        if (lengths != width[0]).any():
            row = int(np.flatnonzero(lengths != width[0])[0])
            raise ShapeError(
                f"every list of `{name}` in {self._path} must have {width[0]} numbers, as the first has; one in the "
                f"batch from row {start} on has {lengths[row]}"
            )
        return _numpy(array.flatten()).reshape(-1, *width)


def _numpy(array: Any) -> np.ndarray:
    from pyarrow import types

    if array.null_count and types.is_boolean(array.type):  # else objects; whole numbers become float64 by themselves
        array = array.cast("uint8")
    values: np.ndarray = array.to_numpy(zero_copy_only=False)
    return values


def _with_nulls(metadata: Any) -> set[str]:
    """Paths of the columns that have nulls in any group of rows, or may have because the file does not count them."""
    optional = [i for i in range(metadata.num_columns) if metadata.schema.column(i).max_definition_level]
    found = set()
    for group in map(metadata.row_group, range(metadata.num_row_groups)):
        found |= {c.path_in_schema for c in map(group.column, optional) if _may_have_nulls(c.statistics)}
    return found


def _may_have_nulls(statistics: Any) -> bool:
    return statistics is None or not statistics.has_null_count or statistics.null_count > 0


def _dtype(kind: Any) -> np.dtype[Any]:
    try:
        return np.dtype(kind.to_pandas_dtype())
    except (NotImplementedError, TypeError):  # text, structs, lists of lists
        return np.dtype(object)
