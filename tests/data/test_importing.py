"""Import: every format gives the same arrays; what is wrong is named with dataset, row and remedy; export comes back."""

from __future__ import annotations

import csv
import fcntl
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import xarray as xr

from simfer.data import building
from simfer.data import store as store_module
from simfer.data.building import bounded_layout, new_store
from simfer.data.errors import (
    ConfigError,
    CorruptStoreError,
    MissingFileError,
    NotFiniteError,
    PriorError,
    ShapeError,
    SimferError,
    StoreError,
    UnknownNameError,
)
from simfer.data.exporting import SUFFIXES, export_store
from simfer.data.importing import Names
from simfer.data.layout import Layout
from simfer.data.records import INVALID, OK, Schema
from simfer.data.store import SimulationStore
from simfer.data.tables import open_table
from simfer.data.variables import Variable, Variables
from simfer.pipelines.cli import main
from simfer.simulators.imported import Imported, import_simulations
from simfer.simulators.prior import Prior

ROWS = 700
PRIOR = Prior({"a": {"dist": "Uniform", "low": 0.0, "high": 1.0}, "b": {"dist": "Normal", "loc": 0.0, "scale": 1.0}})
NAMES = Names(theta="theta", x={"trace": "trace"}, context={"exposure": "time"}, group="universe")
COLUMNS = Names(
    theta={"a": "p0", "b": "p1"}, x={"trace": ("t0", "t1", "t2")}, context={"exposure": "time"}, group="universe"
)


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    trace = rng.normal(size=(ROWS, 3))
    trace[5, 1] = np.nan
    return {
        "theta": PRIOR.sample(ROWS, rng),
        "trace": trace,
        "time": rng.uniform(1.0, 2.0, ROWS),
        "universe": np.arange(ROWS) // 7,
    }


def flat(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """2-d arrays as columns, for formats that have no others."""
    theta = {f"p{i}": column for i, column in enumerate(arrays["theta"].T)}
    trace = {f"t{i}": column for i, column in enumerate(arrays["trace"].T)}
    return {**theta, **trace, "time": arrays["time"], "universe": arrays["universe"]}


def write_hdf5(path: Path, arrays: dict[str, np.ndarray]) -> Names:
    with h5py.File(path, "w") as file:
        for name, values in arrays.items():
            file[name] = values
    return NAMES


def write_netcdf(path: Path, arrays: dict[str, np.ndarray], engine: Any = "h5netcdf") -> Names:
    data = {name: (("row", *([f"{name}_axis"] if v.ndim > 1 else [])), v) for name, v in arrays.items()}
    xr.Dataset(data).to_netcdf(path, engine=engine)
    return NAMES


def write_netcdf3(path: Path, arrays: dict[str, np.ndarray]) -> Names:
    return write_netcdf(path, {**arrays, "universe": arrays["universe"].astype(np.int32)}, "scipy")


def write_npz(path: Path, arrays: dict[str, np.ndarray]) -> Names:
    np.savez(path, **{**arrays, "theta": np.asfortranarray(arrays["theta"])})
    return NAMES


def write_packed_npz(path: Path, arrays: dict[str, np.ndarray]) -> Names:
    np.savez_compressed(path, **{name: np.ascontiguousarray(values) for name, values in arrays.items()})
    return NAMES


def write_csv(path: Path, arrays: dict[str, np.ndarray]) -> Names:
    table = flat(arrays)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(table)
        for row in zip(*table.values(), strict=True):
            writer.writerow("" if np.isnan(value) else repr(value.item()) for value in row)
    return COLUMNS


def write_parquet(path: Path, arrays: dict[str, np.ndarray]) -> Names:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns: dict[str, Any] = {name: values for name, values in flat(arrays).items() if not name.startswith("t")}
    trace = pa.FixedSizeListArray.from_arrays(pa.array(arrays["trace"].ravel()), 3)
    table = pa.table({**columns, "time": arrays["time"], "trace": trace, "lists": trace.cast(pa.list_(pa.float64()))})
    parquet.write_table(table, path, row_group_size=100)
    return Names(theta=("p0", "p1"), x={"trace": "trace"}, context={"exposure": "time"}, group="universe")


def write_store(path: Path, arrays: dict[str, np.ndarray]) -> Names:
    import_simulations(path.with_suffix(".h5"), path, write_hdf5(path.with_suffix(".h5"), arrays), PRIOR)
    return Names()


WRITERS: dict[str, tuple[str, Callable[[Path, dict[str, np.ndarray]], Names]]] = {
    "hdf5": ("sims.h5", write_hdf5),
    "netcdf": ("sims.nc", write_netcdf),
    "netcdf3": ("sims.nc", write_netcdf3),
    "npz": ("sims.npz", write_npz),
    "compressed npz": ("sims.npz", write_packed_npz),
    "csv": ("sims.csv", write_csv),
    "parquet": ("sims.parquet", write_parquet),
    "store": ("sims.zarr", write_store),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_every_format_gives_the_same_rows(
    kind: str, arrays: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_SHARD_BYTES", 10_000)
    name, write = WRITERS[kind]
    names = write(tmp_path / name, arrays)
    store = import_simulations(tmp_path / name, tmp_path / "out.zarr", names, PRIOR)
    assert store.layout.shards > 3
    np.testing.assert_array_equal(store.read_array("theta"), arrays["theta"])
    np.testing.assert_array_equal(store.read_array("trace"), arrays["trace"])
    np.testing.assert_array_equal(store.read_array("context/exposure"), arrays["time"])
    np.testing.assert_array_equal(store.read_array("group"), arrays["universe"])
    assert store.counts() == {"pending": 0, "ok": ROWS - 1, "invalid": 1, "failed": 0, "timeout": 0}
    assert store.reasons()[5] == "not finite: trace"
    assert not any(store.reasons()[6:])
    assert store.attributes["campaign"]["seed"] is None
    store.verify()


@pytest.mark.parametrize("kind", [kind for kind in WRITERS if kind != "netcdf3"])
def test_rows_may_be_read_in_any_order(kind: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    name, write = WRITERS[kind]
    write(tmp_path / name, arrays)
    with open_table([tmp_path / name]) as table:
        column = next(n for n in ("time", "context/exposure") if n in table.columns)
        for rows in (slice(0, 10), slice(400, 650), slice(3, 4), slice(699, 700)):
            np.testing.assert_array_equal(table.read([column], rows)[column], arrays["time"][rows])


def test_parquet_lists_of_any_kind_are_vectors(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_parquet(tmp_path / "sims.parquet", arrays)
    names = Names(theta=("p0", "p1"), x={"y": "lists"})
    store = import_simulations(tmp_path / "sims.parquet", tmp_path / "out.zarr", names, PRIOR)
    np.testing.assert_array_equal(store.read_array("y"), arrays["trace"])


def write_table(path: Path, **columns: list[Any]) -> Path:
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_nulls_of_parquet_are_nan_whatever_the_dtype(tmp_path: Path) -> None:
    path = write_table(
        tmp_path / "sims.parquet",
        a=[0.1, 0.2, 0.3, 0.4, 0.5],
        b=[0, 1, 2, 3, 4],
        count=[5, 6, 7, None, 8],
        flag=[True, False, None, True, True],
        lists=[[1, 2], [3, None], [4, 5], [6, 7], [8, 9]],
        whole=[2**60 + 1, 1, 2, 3, 4],
        why=[None, "mended", None, None, None],
    )
    names = Names(x=("count", "flag", "lists", "whole"), group="whole", reason="why")
    store = import_simulations(path, tmp_path / "out.zarr", names, PRIOR)
    assert [v.dtype for v in store.observables] == ["float64", "float64", "float64", "int64"]
    np.testing.assert_array_equal(store.read_array("count"), [5, 6, 7, np.nan, 8])
    np.testing.assert_array_equal(store.read_array("flag"), [1, 0, np.nan, 1, 1])
    np.testing.assert_array_equal(store.read_array("lists")[1], [3, np.nan])
    assert store.read_array("whole")[0] == store.read_array("group")[0] == 2**60 + 1
    assert store.status.tolist() == [OK, INVALID, INVALID, INVALID, OK]
    assert store.reasons().tolist() == ["", "not finite: lists", "not finite: flag", "not finite: count", ""]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (Names(x="b", context="n"), NotFiniteError, r"`context.n` must be finite; row 3 .* has nan"),
        (Names(x="b", group="n"), ShapeError, r"`group` must be whole numbers; row 3 has nan"),
        (Names(x="b", status="usable"), NotFiniteError, r"`status` must be finite; row 3 .* has nan"),
    ],
)
def test_nulls_of_parquet_where_there_must_be_none_are_named(
    names: Names, error: type[Exception], message: str, tmp_path: Path
) -> None:
    usable = [True, False, True, None, True]
    path = write_table(tmp_path / "sims.parquet", a=[0.5] * 5, b=[0.0] * 5, n=[5, 6, 7, None, 8], usable=usable)
    with pytest.raises(error, match=message):
        import_simulations(path, tmp_path / "out.zarr", names, PRIOR)


def test_text_that_is_missing_is_empty_in_every_part_of_a_chain(tmp_path: Path) -> None:
    (tmp_path / "part0.csv").write_text("a,b,x,why\n0.1,0,1,\n0.2,0,1,\n")
    (tmp_path / "part1.csv").write_text("a,b,x,why\n0.3,0,1,bad luck\n0.4,0,1,\n")
    store = import_simulations(tmp_path / "part*.csv", tmp_path / "out.zarr", Names(x="x", reason="why"), PRIOR)
    assert store.reasons().tolist() == ["", "", "bad luck", ""]


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [("int64", "float64", "float64"), ("float32", "float64", "float64"), ("int8", "int32", "int32"), ("bool", "uint8", "uint8")],
)  # fmt: skip
def test_files_of_several_dtypes_are_joined_without_loss(
    first: str, second: str, expected: str, tmp_path: Path
) -> None:
    theta = np.full((3, 2), 0.5)
    parts = np.array([0, 1, 1], first), np.array([0.5, 77.25, 100.1]).astype(second)
    for i, x in enumerate(parts):
        np.savez(tmp_path / f"part{i}.npz", theta=theta, x=x)
    store = import_simulations(tmp_path / "part*.npz", tmp_path / "out.zarr", Names(theta="theta", x="x"), PRIOR)
    assert store.observables["x"].dtype == expected
    np.testing.assert_array_equal(store.read_array("x"), np.concatenate(parts).astype(expected))


def test_numbers_and_text_are_not_joined(tmp_path: Path) -> None:
    for i, x in enumerate((np.zeros(3), np.zeros(3, "datetime64[s]"))):
        np.savez(tmp_path / f"part{i}.npz", theta=np.full((3, 2), 0.5), x=x)
    with pytest.raises(ShapeError, match="`x`: dataset `x` must be numbers"):
        Imported(tmp_path / "part*.npz", Names(theta="theta", x="x"), PRIOR)


def test_without_pyarrow_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sims.parquet").touch()
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"simfer\[parquet\]"):
        Imported(tmp_path / "sims.parquet", COLUMNS, PRIOR)


def test_several_files_are_joined_in_order(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    for i, rows in enumerate((slice(0, 300), slice(300, 310), slice(310, ROWS))):
        names = write_hdf5(tmp_path / f"part{i}.h5", {name: values[rows] for name, values in arrays.items()})
    store = import_simulations(tmp_path / "part*.h5", tmp_path / "out.zarr", names, PRIOR)
    np.testing.assert_array_equal(store.read_array("theta"), arrays["theta"])
    assert [file["name"] for file in store.attributes["campaign"]["source"]["files"]] == [
        "part0.h5",
        "part1.h5",
        "part2.h5",
    ]
    write_hdf5(tmp_path / "part3.h5", {**arrays, "trace": arrays["trace"][:, :2]})
    with pytest.raises(ShapeError, match=r"part3.h5 must have the columns of .*`trace` differs"):
        Imported(tmp_path / "part*.h5", names, PRIOR)


def test_units_and_axes_come_from_attributes_and_can_be_overridden(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    with h5py.File(tmp_path / "sims.h5", "w") as file:
        for name, values in {**arrays, **flat(arrays)}.items():
            file[name] = values
        file["trace"].attrs["units"] = "mV"
        file["trace"].dims[1].label = "electrode"
        file["p0"].attrs["units"] = "1/day"
    names = Names(
        theta={"a": "p0", "b": "p1"},
        x=("trace", "time"),
        variables={"time": {"units": "s", "low": 0.0, "label": "$t$"}},
    )
    imported = Imported(tmp_path / "sims.h5", names, PRIOR)
    assert imported.observables["trace"] == Variable("trace", (3,), units="mV", dims=("electrode",))
    time = imported.observables["time"]
    assert (time.units, time.label, time.support.low) == ("s", "$t$", 0.0)
    assert [v.units for v in imported.prior.variables] == ["1/day", ""]
    store = imported.write(tmp_path / "out.zarr")
    assert store.to_xarray()["trace"].dims == ("simulation", "electrode")
    again = Names(theta=("p0", "p1"), x="trace", variables={"trace": {"dims": ["channel"], "units": "V"}})
    assert Imported(tmp_path / "sims.h5", again, PRIOR).observables["trace"].dims == ("channel",)


def test_patterns_stand_for_columns(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    write_csv(tmp_path / "sims.csv", arrays)
    imported = Imported(tmp_path / "sims.csv", Names(theta="p*", x={"trace": "t[0-9]*"}), PRIOR)
    np.testing.assert_array_equal(imported.peek(20).x["trace"], arrays["trace"][:20])


def test_only_the_first_rows(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = write_hdf5(tmp_path / "sims.h5", arrays)
    store = import_simulations(tmp_path / "sims.h5", tmp_path / "out.zarr", names, PRIOR, rows=100)
    np.testing.assert_array_equal(store.read_array("theta"), arrays["theta"][:100])
    with pytest.raises(ShapeError, match="between 1 and the 700"):
        Imported(tmp_path / "sims.h5", names, PRIOR).write(tmp_path / "more.zarr", 701)
    assert not (tmp_path / "more.zarr").exists()


def test_status_of_the_file_is_kept(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    usable = np.arange(ROWS) != 9
    names = Names(theta="theta", x="trace", status="usable")
    write_hdf5(tmp_path / "sims.h5", {**arrays, "usable": usable})
    store = import_simulations(tmp_path / "sims.h5", tmp_path / "out.zarr", names, PRIOR)
    assert store.counts()["failed"] == 1
    assert store.reasons()[9] == "marked in the imported file"
    write_hdf5(tmp_path / "codes.h5", {**arrays, "usable": np.where(usable, 1, 7)})
    with pytest.raises(ShapeError, match="row 9 has 7"):
        import_simulations(tmp_path / "codes.h5", tmp_path / "codes.zarr", names, PRIOR)


def test_rounding_to_single_precision_does_not_put_theta_outside(tmp_path: Path) -> None:
    prior = Prior({"a": {"dist": "Uniform", "low": 0.0, "high": 0.1}})
    theta = np.linspace(0.0, 0.1, 50).astype(np.float32)
    assert float(theta[-1]) > 0.1
    write_hdf5(tmp_path / "sims.h5", {"a": theta, "x": theta})
    store = import_simulations(tmp_path / "sims.h5", tmp_path / "out.zarr", Names(x="x"), prior)
    assert store.read_array("theta").max() == 0.1
    assert store.observables["x"].dtype == "float32"


Break = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]


def at(name: str, index: Any, value: float) -> Break:
    def change(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        changed = arrays[name].copy()
        changed[index] = value
        return {**arrays, name: changed}

    return change


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda a: {k: v for k, v in a.items() if k != "trace"} | {"traces": a["trace"]}, UnknownNameError, "did you mean `traces`"),
        (lambda a: {**a, "trace": a["trace"][:-1]}, ShapeError, "equally many rows; got 700 in .*699 in `trace`"),
        (lambda a: {**a, "theta": np.zeros((ROWS, 3))}, ShapeError, r"`theta` must have 2 columns \(a, b\).*\(700, 3\)"),
        (lambda a: {**a, "trace": np.full(ROWS, b"text")}, ShapeError, "`trace`: dataset `trace` must be numbers"),
        (lambda a: {**a, "trace": np.float64(3.0)}, ShapeError, "it is a single value"),
        (lambda a: {**a, "trace": np.zeros(ROWS, complex)}, ShapeError, "must be numbers; got dtype complex"),
        (lambda a: {**a, "universe": np.zeros((ROWS, 2))}, ShapeError, "`group`.*one value per row"),
        (lambda a: {k: v[:0] for k, v in a.items()}, ShapeError, "at least one row"),
        (at("theta", (650, 1), np.nan), NotFiniteError, "row 650 .* has nan in b: remove"),
        (at("theta", (650, 0), 1.5), PriorError, r"row 650 .* has a = 1.5, outside \[0, 1\]: give the prior"),
        (at("time", 650, np.inf), NotFiniteError, "`context.exposure` must be finite; row 650"),
        (lambda a: {**a, "universe": a["universe"] + 0.5}, ShapeError, "`group` must be whole numbers; row 0 has 0.5"),
        (lambda a: {**a, "trace": np.full((ROWS, 3), np.nan)}, SimferError, "none of the 700 imported rows is usable"),
    ],
    ids=["missing", "lengths", "theta shape", "text", "scalar", "complex", "group shape", "empty", "NaN in theta",
         "outside the prior", "context", "group", "nothing usable"],
)  # fmt: skip
def test_what_is_wrong_is_named_and_nothing_is_left(
    change: Break, error: type[Exception], message: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    write_hdf5(tmp_path / "sims.h5", change(arrays))
    with pytest.raises(error, match=message):
        import_simulations(tmp_path / "sims.h5", tmp_path / "out.zarr", NAMES, PRIOR)
    assert [path.name for path in tmp_path.iterdir()] == ["sims.h5"]


@pytest.mark.parametrize(
    ("names", "error", "message"),
    [
        (Names(theta="theta"), ShapeError, "`x` must be given: observable → dataset; there are"),
        (Names(theta={"a": "p0"}, x="trace"), UnknownNameError, "missing: b"),
        (Names(theta="theta", x="trace", variables={"tracer": {}}), UnknownNameError, "did you mean `trace`"),
        (Names(theta="theta", x="trace", variables={"trace": {"unit": "s"}}), UnknownNameError, "did you mean `units`"),
        (Names(theta="theta", x={"theta": "trace"}), ShapeError, "must be an identifier and none of"),
        (Names(x="trace"), UnknownNameError, "no dataset or column `a`"),
    ],
)
def test_mappings_that_do_not_fit(
    names: Names, error: type[Exception], message: str, arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    write_hdf5(tmp_path / "sims.h5", arrays)
    with pytest.raises(error, match=message):
        Imported(tmp_path / "sims.h5", names, PRIOR)


@pytest.mark.parametrize("name", ["sims.h5", "sims.nc", "sims.npz", "sims.parquet", "sims.csv"])
@pytest.mark.parametrize("left", [0, 0.4])
def test_files_cut_short_are_named(name: str, left: float, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    kind = next(kind for kind, (file, _) in WRITERS.items() if file == name)
    names = WRITERS[kind][1](tmp_path / name, arrays)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(left * len(content))])
    with pytest.raises((StoreError, ShapeError), match=name):
        import_simulations(tmp_path / name, tmp_path / "out.zarr", names, PRIOR)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,x\n0.1,0.2,3\n0.1,zwei,3\n", r"`b` .*must be numbers; row 1 .* is 'zwei'"),
        ("a,b,x\n0.1,0.2\n", "line 2 has 2"),
        ("a,b,a\n0.1,0.2,3\n", "`a` is there twice"),
        ("a,b,x\n", "at least one row"),
        ("a,b,x\neins,0,1\nzwei,0,1\n", "`theta`: `a` must be numbers; row 0 .* is 'eins'"),
    ],
)
def test_wrong_csv(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "sims.csv").write_text(text)
    with pytest.raises(ShapeError, match=message):
        import_simulations(tmp_path / "sims.csv", tmp_path / "out.zarr", Names(x="x"), PRIOR)


def test_unknown_endings_missing_files_and_taken_names(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = write_hdf5(tmp_path / "sims.h5", arrays)
    with pytest.raises(MissingFileError, match=r"nothing\.h5"):
        Imported(tmp_path / "nothing.h5", names, PRIOR)
    with pytest.raises(MissingFileError, match=r"no\*\.h5"):
        Imported(tmp_path / "no*.h5", names, PRIOR)
    (tmp_path / "sims.mat").touch()
    with pytest.raises(ConfigError, match=r"must be a file ending in .h5, .*; got .*sims.mat"):
        Imported(tmp_path / "sims.mat", names, PRIOR)
    with pytest.raises(PriorError, match="`prior` must be given"):
        Imported(tmp_path / "sims.h5", names)
    store = import_simulations(tmp_path / "sims.h5", tmp_path / "out.zarr", names, PRIOR)
    with pytest.raises(StoreError, match="must be free"):
        import_simulations(tmp_path / "sims.h5", tmp_path / "out.zarr", names, PRIOR)
    with pytest.raises(ConfigError, match=r"must end in .h5, .hdf5, .nc"):
        export_store(store, tmp_path / "out.csv")
    with pytest.raises(StoreError, match="must be free"):
        export_store(store, tmp_path / "sims.h5")


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_what_is_exported_comes_back(suffix: str, arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    extra = {"base": np.arange(2.0 * ROWS).reshape(ROWS, 2), "status": np.where(np.arange(ROWS) == 3, 4, 1)}
    write_hdf5(tmp_path / "sims.h5", {**arrays, **extra})
    names = Names(
        theta="theta", x="trace", context={"exposure": "time"}, group="universe", u="base", status="status",
        variables={"trace": {"units": "mV", "label": "signal", "dims": ["electrode"], "low": -9.0}},
    )  # fmt: skip
    store = import_simulations(tmp_path / "sims.h5", tmp_path / "first.zarr", names, PRIOR)
    export_store(store, tmp_path / f"out{suffix}")
    again = import_simulations(tmp_path / f"out{suffix}", tmp_path / "second.zarr")
    assert again.schema == store.schema
    for name, _, _ in store.schema.arrays():
        np.testing.assert_array_equal(again.read_array(name), store.read_array(name))
    assert again.reasons().tolist() == store.reasons().tolist()
    with pytest.raises(PriorError, match="leave it out"):
        Imported(tmp_path / f"out{suffix}", prior=PRIOR.replace({"a": {"dist": "Uniform", "low": 0.0, "high": 2.0}}))


def test_others_can_read_what_is_exported(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    names = write_hdf5(tmp_path / "sims.h5", arrays)
    store = import_simulations(tmp_path / "sims.h5", tmp_path / "first.zarr", names, PRIOR)
    export_store(store, tmp_path / "out.nc")
    with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf") as dataset:
        assert dataset["theta"].dims == ("simulation", "parameter")
        assert dataset["parameter"].to_numpy().tolist() == ["a", "b"]
        np.testing.assert_array_equal(dataset["trace"], arrays["trace"])
        assert dataset["status"].attrs["flag_meanings"] == "pending ok invalid failed timeout"
    with h5py.File(tmp_path / "out.nc") as file:
        np.testing.assert_array_equal(file["context/exposure"][:], arrays["time"])


def test_pending_rows_are_not_exported(tmp_path: Path) -> None:
    schema = Schema(PRIOR.variables, Variables([Variable("x")]))
    store = SimulationStore.create(tmp_path / "half.zarr", Layout.choose(100, schema.observables), schema, {})
    with pytest.raises(StoreError, match="100 of 100 are pending"):
        export_store(store, tmp_path / "half.h5")
    assert not list(tmp_path.glob("*half.h5*"))


def test_a_missing_file_is_neither_exported_nor_imported(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    store = import_simulations(
        tmp_path / "sims.h5", tmp_path / "a.zarr", write_hdf5(tmp_path / "sims.h5", arrays), PRIOR
    )
    shutil.rmtree(store.path / "trace" / "c" / "0")
    with pytest.raises(CorruptStoreError, match="shard 0: marked done but a file is missing"):
        export_store(store, tmp_path / "out.h5")
    with pytest.raises(CorruptStoreError, match="shard 0: marked done but a file is missing"):
        Imported(store.path)
    assert not list(tmp_path.glob("*out*"))


def test_a_store_is_held_from_its_first_file_on_and_all_of_it_has_one_temporary_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = Schema(PRIOR.variables, Variables([Variable("x")]))
    create = store_module._create_arrays
    seen: list[str] = []

    def disturbed(*arguments: Any) -> None:
        building._clear(tmp_path / "out.zarr")
        seen.extend(path.name for path in tmp_path.iterdir())
        create(*arguments)

    monkeypatch.setattr(store_module, "_create_arrays", disturbed)
    with new_store(tmp_path / "out.zarr", Layout.choose(100, schema.observables), schema, {}):
        assert len(seen) == 1
        assert list(tmp_path.glob(".out.zarr.*.partial")) == [tmp_path / seen[0]]
    assert SimulationStore.open(tmp_path / "out.zarr").rows == 100


def test_a_folder_that_another_process_clears_before_it_is_held_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema = Schema(PRIOR.variables, Variables([Variable("x")]))
    flock = fcntl.flock
    cleared: list[bool] = []

    def slow(descriptor: int, operation: int) -> None:
        if operation == fcntl.LOCK_SH and not cleared:
            cleared.append(True)
            building._clear(tmp_path / "out.zarr")
        flock(descriptor, operation)

    monkeypatch.setattr(building.fcntl, "flock", slow)
    with new_store(tmp_path / "out.zarr", Layout.choose(100, schema.observables), schema, {}) as store:
        assert store.path.is_dir()
    assert cleared
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


def test_what_a_killed_import_left_is_removed_by_the_next_but_not_one_at_work(tmp_path: Path) -> None:
    schema = Schema(PRIOR.variables, Variables([Variable("x")]))
    layout = Layout.choose(100, schema.observables)
    (tmp_path / ".out.zarr.dead.partial").mkdir()
    with new_store(tmp_path / "out.zarr", layout, schema, {}) as first:
        assert not (tmp_path / ".out.zarr.dead.partial").exists()
        slower = new_store(tmp_path / "out.zarr", layout, schema, {})
        slower.__enter__()
        assert first.path.exists()
    assert SimulationStore.open(tmp_path / "out.zarr").rows == 100
    with pytest.raises(StoreError, match="must be free"):
        slower.__exit__(None, None, None)
    assert [path.name for path in tmp_path.iterdir()] == ["out.zarr"]


SLOWLY = """
import sys, time
from simfer.data import building
from simfer.data.store import SimulationStore
from simfer.pipelines.cli import main

building._SHARD_BYTES = 10_000
whole = SimulationStore.write_shard

def slowly(self, shard, records):
    whole(self, shard, records)
    print(shard, flush=True)
    time.sleep(0.2)

SimulationStore.write_shard = slowly
main(["import", *sys.argv[1:]])
"""


@pytest.mark.slow
def test_an_import_that_is_killed_leaves_no_store_and_the_next_makes_a_whole_one(
    arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    source = import_simulations(
        tmp_path / "sims.h5", tmp_path / "a.zarr", write_hdf5(tmp_path / "sims.h5", arrays), PRIOR
    )
    arguments = ["import", str(source.path), str(tmp_path / "out.zarr")]
    with subprocess.Popen([sys.executable, "-c", SLOWLY, *arguments[1:]], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"0\n"
        process.kill()
    assert not (tmp_path / "out.zarr").exists()
    assert list(tmp_path.glob("*.partial"))
    with pytest.raises(SystemExit):
        main(arguments)
    np.testing.assert_array_equal(SimulationStore.open(tmp_path / "out.zarr").read_array("theta"), arrays["theta"])
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("shape", [(), (1000,), (512, 512)])
def test_shards_of_copies_are_bounded(shape: tuple[int, ...]) -> None:
    schema = Schema(PRIOR.variables, Variables([Variable("x", shape)]))
    layout = bounded_layout(10_000_000, schema)
    row_bytes = 8 * np.prod(shape, dtype=int) + 21
    assert layout.shard % layout.block == 0
    assert layout.shard * row_bytes <= 32 * 2**20
    assert layout.shards >= 2
