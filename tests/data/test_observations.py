from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import xarray as xr

from simfer.data.errors import ConfigError, MissingFileError, NotFiniteError, ShapeError
from simfer.data.observations import read_observation
from simfer.data.variables import Variable, Variables

TWO = Variables([Variable("flux", (4,), dims=("time",)), Variable("n", ())])
ONE = Variables([Variable("flux", (4,))])
FLUX = np.array([1.0, 2.0, 3.0, 4.5])


def _nc(path: Path) -> None:
    xr.Dataset({"flux": ("time", FLUX), "n": 3.0, "other": 1.0}).to_netcdf(path, engine="h5netcdf")


def _zarr(path: Path) -> None:
    xr.Dataset({"flux": ("time", FLUX), "n": 3.0}).to_zarr(path, zarr_format=3, consolidated=False)


def _h5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        file["flux"], file["n"] = FLUX, 3.0


def _npz(path: Path) -> None:
    np.savez(path, flux=FLUX, n=3.0)


def _json(path: Path) -> None:
    path.write_text(json.dumps({"flux": FLUX.tolist(), "n": 3}))


@pytest.mark.parametrize(
    ("suffix", "write"), [(".nc", _nc), (".zarr", _zarr), (".h5", _h5), (".npz", _npz), (".json", _json)]
)
def test_every_format_gives_the_same_arrays(tmp_path: Path, suffix: str, write: object) -> None:
    path = tmp_path / f"obs{suffix}"
    write(path)
    found = read_observation(path, TWO)
    np.testing.assert_array_equal(found["flux"], FLUX)
    assert found["n"] == 3.0


def test_npy_and_csv_stand_for_the_only_variable(tmp_path: Path) -> None:
    np.save(tmp_path / "o.npy", FLUX)
    (tmp_path / "o.csv").write_text("flux\n1\n2\n3\n4.5\n")
    for name in ("o.npy", "o.csv"):
        np.testing.assert_array_equal(read_observation(tmp_path / name, ONE)["flux"], FLUX)


@pytest.mark.parametrize(
    ("content", "error", "match"),
    [
        ({"flux": [1, 2, 3]}, ShapeError, r"must have shape \(4,\)"),
        ({"flux": [1, 2, None, 4]}, NotFiniteError, "must be finite"),
        ({"flux": [1, 2, "three", 4]}, ConfigError, "must be numbers"),
        ({"fluxx": [1, 2, 3, 4]}, ShapeError, "missing: flux; unknown: fluxx"),
        ({"flux": [[1, 2, 3, 4]] * 2}, ConfigError, "must be one observation; got 2"),
    ],
)
def test_bad_content_is_named(tmp_path: Path, content: dict[str, object], error: type[Exception], match: str) -> None:
    (tmp_path / "o.json").write_text(json.dumps(content))
    with pytest.raises(error, match=match):
        read_observation(tmp_path / "o.json", ONE)


def test_bad_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no file"):
        read_observation(tmp_path / "o.nc", ONE)
    (tmp_path / "o.txt").write_text("1")
    with pytest.raises(ConfigError, match=r"ending in \.nc"):
        read_observation(tmp_path / "o.txt", ONE)
    (tmp_path / "o.h5").write_text("no hdf5")
    with pytest.raises(ConfigError, match=r"cannot be read as .h5"):
        read_observation(tmp_path / "o.h5", ONE)
