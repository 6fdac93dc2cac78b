"""HDF5 and NetCDF files as tables: datasets in groups are called ``group/name``; what simfer exported describes itself."""

from __future__ import annotations

import json
import posixpath
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from .tables import Column
from .variables import Arrays

DESCRIPTION = "simfer"  # a dataset, because attributes of HDF5 end at 64 KiB
_NO_VARIABLE = b"This is a netCDF dimension but not a netCDF variable"


class HDF5Table:
    """Any HDF5 file. Units, labels and names of axes are taken from the attributes that NetCDF and h5py give them."""

    def __init__(self, path: Path) -> None:
        self._file = h5py.File(path)
        self.columns: dict[str, Column] = {}
        self._file.visititems(self._visit)
        self.columns.pop(DESCRIPTION, None)
        described = self._file.get(DESCRIPTION)
        self.description = json.loads(described.asstr()[()]) if isinstance(described, h5py.Dataset) else None

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        return {name: self._read(self._file[name], rows) for name in names}

    def close(self) -> None:
        self._file.close()

    def _visit(self, name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and not _is_bare_dimension(item):
            self.columns[name] = _column(item)

    @staticmethod
    def _read(dataset: Any, rows: slice) -> np.ndarray:
        return dataset.asstr()[rows] if h5py.check_string_dtype(dataset.dtype) else dataset[rows]


class NetCDFTable:
    """NetCDF 3 or 4 by xarray, which undoes the packing of CF conventions; opened lazily and never cached."""

    def __init__(self, path: Path) -> None:
        import xarray as xr

        options: dict[str, Any] = {"decode_times": False, "decode_timedelta": False, "cache": False}
        if h5py.is_hdf5(path):
            self._groups = xr.open_groups(path, engine="h5netcdf", **options)
        else:
            self._groups = {"/": xr.open_dataset(path, engine="scipy", **options)}
        self._arrays = {
            posixpath.join(group, str(name)).lstrip("/"): values
            for group, dataset in self._groups.items()
            for name, values in dataset.variables.items()
        }
        described = self._arrays.pop(DESCRIPTION, None)
        self.description = None if described is None else json.loads(str(described.to_numpy()))
        self.columns = {name: _variable_column(values) for name, values in self._arrays.items()}

    def read(self, names: Sequence[str], rows: slice) -> Arrays:
        return {name: self._arrays[name][rows].to_numpy() for name in names}

    def close(self) -> None:
        for dataset in self._groups.values():
            dataset.close()


def _is_bare_dimension(dataset: Any) -> bool:
    return bytes(dataset.attrs.get("NAME", b"")).startswith(_NO_VARIABLE)


def _column(dataset: Any) -> Column:
    dtype = np.dtype(object) if h5py.check_string_dtype(dataset.dtype) else dataset.dtype
    units, label = (_text(dataset.attrs.get(key)) for key in ("units", "long_name"))
    dims = tuple(_axis(dimension) for dimension in dataset.dims)[1:]
    return Column(tuple(dataset.shape or ()), dtype, units, label, dims if all(dims) else ())


def _axis(dimension: Any) -> str:
    scale = posixpath.basename(dimension[0].name) if len(dimension) else ""
    return dimension.label or scale


def _variable_column(values: Any) -> Column:
    units, label = (_text(values.attrs.get(key)) for key in ("units", "long_name"))
    return Column(values.shape, values.dtype, units, label, tuple(map(str, values.dims[1:])))


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else value if isinstance(value, str) else ""
