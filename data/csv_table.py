"""CSV files as tables: a header line, then numbers; an empty field is NaN."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from .errors import ShapeError
from .tables import Column
from .variables import Arrays

_STEP = 10_000


class CSVTable:
    """Comma-separated columns in UTF-8. One pass counts the rows, a second reads them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open(newline="", encoding="utf-8-sig") as file:
            self._names = [name.strip() for name in next(csv.reader(file), [])]
        self._check_names()
        shape = (_count(path, len(self._names)),)
        self.columns = {name: Column(shape, np.dtype(np.float64)) for name in self._names}
        self.description = None
        self._reader: Any = None
        self._wanted: tuple[str, ...] = ()
        self._row = 0

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        if self._reader is None or self._wanted != tuple(names) or rows.start < self._row:
            self._begin(tuple(names))
        while self._row < rows.start:
            self._take(min(_STEP, rows.start - self._row))
        start = self._row
        frame = self._take(rows.stop - rows.start)
        return {name: self._numbers(name, frame[name], start) for name in names}

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()

    def _check_names(self) -> None:
        if not self._names:
            raise ShapeError(f"{self._path} is empty: it needs a header line that names its columns, and rows")
        twice = [name for name, n in Counter(self._names).items() if n > 1]
        if twice:
            raise ShapeError(f"the header of {self._path} must name every column once; `{twice[0]}` is there twice")

    def _begin(self, names: tuple[str, ...]) -> None:
        self.close()
        self._reader = pd.read_csv(
            self._path,
            names=self._names,
            header=0,
            usecols=list(dict.fromkeys(names)),
            iterator=True,
            low_memory=False,
            encoding="utf-8-sig",
        )
        self._wanted, self._row = names, 0

    def _take(self, count: int) -> pd.DataFrame:
        try:
            frame = self._reader.get_chunk(count)
        except StopIteration:
            frame = pd.DataFrame()
        if len(frame) < count:
            raise EOFError(f"a line is not one row, from row {self._row} on (is there a line break within quotes?)")
        self._row += count
        return frame

    def _numbers(self, name: str, values: Any, start: int) -> np.ndarray:
        """Numbers as they are; text as text, for a column of reasons, unless some of it is a number."""
        if values.dtype.kind in "biuf":
            return np.asarray(values)
        numbers = pd.to_numeric(values, errors="coerce")
        if numbers.notna().any():
            row = int(np.flatnonzero(numbers.isna() & values.notna())[0])
            raise ShapeError(
                f"`{name}` of {self._path} must be numbers; row {start + row} (counted from 0) is {values.iloc[row]!r}"
            )
        return np.asarray(values.fillna(""), dtype=object)


def _count(path: Path, fields: int) -> int:
    """Rows after the header; blank lines are none.

    Raises:
        ShapeError: A line with fewer fields, as where a file was cut short.
    """
    rows = -1
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            if b'"' not in line and line.count(b",") != fields - 1:
                got = line.count(b",") + 1
                raise ShapeError(f"every line of {path} must have {fields} fields; line {number} has {got}")
            rows += 1
    return rows
