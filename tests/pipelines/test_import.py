"""Runs on simulations from files, and the three commands that take them in and out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
import xarray as xr
from ruamel.yaml import YAML

import simfer
from simfer.data.errors import ConfigError, MissingFileError
from simfer.data.importing import Names
from simfer.data.loaders import usable_rows
from simfer.data.splits import held_out
from simfer.data.store import SimulationStore
from simfer.pipelines.api import Run
from simfer.pipelines.cli import main
from simfer.pipelines.config import IMPORT_KEYS
from simfer.pipelines.engine import plan
from simfer.pipelines.folder import RunFolder
from simfer.pipelines.job import make_job
from simfer.pipelines.stages import STAGES
from simfer.pipelines.yaml_file import read_source

ROWS = 600
PRIOR = {
    "a": {"dist": "Normal", "loc": 0.0, "scale": 1.0, "units": "m"},
    "b": {"dist": "Uniform", "low": -2.0, "high": 2.0},
}


@pytest.fixture
def arrays(rng: np.random.Generator) -> dict[str, np.ndarray]:
    theta = np.stack([rng.normal(size=ROWS), rng.uniform(-2.0, 2.0, ROWS)], axis=1)
    time = rng.uniform(1.0, 2.0, ROWS)
    return {"theta": theta, "x": theta + rng.normal(size=theta.shape) / time[:, None], "time": time}


def configuration(simulator: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "name": "elsewhere",
        "simulator": simulator,
        "prior": PRIOR,
        "observation": {"values": {"x": [0.1, 0.2]}},
        "train": {
            "flow": {"kind": "maf", "transforms": 1, "hidden": [8]},
            "embedding": {"kind": "none"},
            "epochs": 2,
            "batch_size": 50,
        },
        "diagnose": {"checks": ["sbc"], "pairs": 50, "draws": 20},
        "infer": {"draws": 100},
        **more,
    }


@pytest.fixture
def from_csv(arrays: dict[str, np.ndarray], tmp_path: Path) -> dict[str, Any]:
    table = np.column_stack([arrays["theta"], arrays["x"]])
    np.savetxt(tmp_path / "sims.csv", table, delimiter=",", header="a,b,x0,x1", comments="", fmt="%.17g")
    return configuration({"import": str(tmp_path / "sims.csv"), "x": {"x": ["x0", "x1"]}})


@pytest.fixture
def from_hdf5(arrays: dict[str, np.ndarray], tmp_path: Path) -> dict[str, Any]:
    with h5py.File(tmp_path / "sims.h5", "w") as file:
        for name, values in arrays.items():
            file[f"run/{name}"] = values
        file["universe"] = np.arange(ROWS) // 30
    simulator = {
        "import": str(tmp_path / "sims.h5"),
        "theta": "run/theta",
        "x": ["run/x"],
        "context": {"time": "run/time"},
        "group": "universe",
    }
    return configuration(simulator, context={"time": 1.5})


def written(config: dict[str, Any], path: Path) -> Path:
    YAML().dump(config, path)
    return path


def test_a_run_from_csv(
    from_csv: dict[str, Any],
    arrays: dict[str, np.ndarray],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tmp_path / "run"
    path = written({**from_csv, "simulator": {**from_csv["simulator"], "import": "sims.csv"}}, tmp_path / "run.yaml")
    monkeypatch.chdir("/")  # files are relative to the configuration
    main_ok(["run", str(path), "--workdir", str(folder)])
    assert "predictive: no check, because imported simulations come without a simulator" in capsys.readouterr().out
    found = simfer.load(folder)
    assert isinstance(found, Run)
    np.testing.assert_array_equal(found.simulations.read_array("theta"), arrays["theta"])
    assert set(found.summary["checks"]) == {"sbc"}
    assert "posterior_predictive" not in found.results.children
    assert found.results["posterior"]["a"].attrs["units"] == "m"
    assert found.config.simulate.rows == ROWS
    config = folder / "config.yaml"
    assert "import:" in config.read_text()
    steps = plan(make_job(read_source(config)), RunFolder(folder), list(STAGES))
    assert [step.action for step in steps] == ["skip"] * 5
    main_ok(["plan", str(config), "--workdir", str(folder)])
    assert "600 rows" in capsys.readouterr().out
    (tmp_path / "sims.csv").unlink()
    assert isinstance(simfer.load(folder), Run)  # what the run left is enough to look at it


def test_a_run_from_hdf5_keeps_groups_together(
    from_hdf5: dict[str, Any], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    found = simfer.run(from_hdf5, workdir=tmp_path / "run", quiet=True)
    store = found.simulations
    np.testing.assert_array_equal(store.read_array("context/time"), arrays["time"])
    held = held_out(store, 50)
    assert held.sum() == 60
    stages = found.summary["stages"]
    assert stages["diagnose"]["pairs"] == 60
    assert stages["train"]["rows_train"] + stages["train"]["rows_validation"] == usable_rows(store, ~held).sum() == 540
    assert stages["train"]["rows_validation"] % 30 == 0
    assert found.posterior.sample((3,)).shape == (3, 2)


@pytest.mark.slow
def test_a_file_that_changed_is_imported_again(from_csv: dict[str, Any], tmp_path: Path) -> None:
    simfer.run(from_csv, workdir=tmp_path / "run", quiet=True)
    lines = (tmp_path / "sims.csv").read_text().splitlines(keepends=True)
    (tmp_path / "sims.csv").write_text("".join(lines[:-100]))
    again = simfer.run(from_csv, workdir=tmp_path / "run", quiet=True)
    assert again.simulations.rows == ROWS - 100
    fewer = simfer.run(from_csv, workdir=tmp_path / "run", overrides={"simulate.rows": 200}, quiet=True)
    assert fewer.simulations.rows == 200
    more = simfer.run(from_csv, workdir=tmp_path / "run", overrides={"simulate.rows": 300}, quiet=True)
    assert more.simulations.rows == 300


def test_more_rows_replace_what_is_there_only_when_they_are_whole(
    from_csv: dict[str, Any], arrays: dict[str, np.ndarray], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = (tmp_path / "sims.csv").read_text().splitlines(keepends=True)
    (tmp_path / "sims.csv").write_text("".join(lines[:-1]) + f"nan{lines[-1][lines[-1].index(',') :]}")
    path, folder = written(from_csv, tmp_path / "run.yaml"), tmp_path / "run"
    simulate = ["simulate", str(path), "--workdir", str(folder), "--set"]
    main_ok([*simulate, "simulate.rows=200"])
    capsys.readouterr()
    main_ok([*simulate, "simulate.rows=300"])
    said = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "adding to what is there" not in said
    assert "copying all 300 rows anew" in said
    store = SimulationStore.open(folder / "simulations.zarr")
    digest = store.digest()
    np.testing.assert_array_equal(store.read_array("theta"), arrays["theta"][:300])
    assert "row 599 (counted from 0) has nan in a" in main_fails([*simulate, "simulate.rows=600"], capsys)
    assert SimulationStore.open(store.path).digest() == digest
    main_ok([*simulate, "simulate.rows=300"])
    assert SimulationStore.open(store.path).digest() == digest
    assert not list(folder.glob(".*.partial"))


def test_rows_given_up_by_repair_are_imported_again(from_csv: dict[str, Any], tmp_path: Path) -> None:
    run = simfer.run(from_csv, workdir=tmp_path / "run", quiet=True)
    digest = run.simulations.digest()
    damaged = next((run.simulations.path / "theta" / "c").rglob("0"))
    file = next(f for f in damaged.rglob("*") if f.is_file()) if damaged.is_dir() else damaged
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(SystemExit):
        main(["verify", str(tmp_path / "run"), "--repair"])
    assert simfer.run(from_csv, workdir=tmp_path / "run", quiet=True).simulations.digest() == digest


@pytest.mark.slow
def test_a_store_needs_no_mapping(finished: Run, tmp_path: Path, tiny: dict[str, Any]) -> None:
    config = {**tiny, "simulator": {"import": str(finished.folder / "simulations.zarr")}, "observation": None}
    del config["simulate"]
    job = make_job(read_source(config))
    assert job.config.simulate.rows == 3000
    assert job.prior == finished.model.prior
    found = simfer.run(config, workdir=tmp_path / "run", quiet=True)
    np.testing.assert_array_equal(found.simulations.read_array("x"), finished.simulations.read_array("x"))


def test_every_name_of_a_file_can_be_given(arrays: dict[str, np.ndarray], tmp_path: Path) -> None:
    assert set(IMPORT_KEYS) == {field.name for field in dataclasses.fields(Names)}
    seconds = np.linspace(0.0, 1.0, ROWS, dtype=np.float32)
    np.savez(tmp_path / "sims.npz", theta=arrays["theta"], x=arrays["x"], seconds=seconds)
    config = configuration(
        {"import": str(tmp_path / "sims.npz"), "theta": "theta", "x": "x", "runtime": "seconds"}, observation=None
    )
    main_ok(["import", str(written(config, tmp_path / "run.yaml")), str(tmp_path / "out.zarr")])
    np.testing.assert_array_equal(SimulationStore.open(tmp_path / "out.zarr").read_array("runtime"), seconds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"simulator": {"import": "sims.csv", "x": {"x": ["x0", "x7"]}}}, r":\d+: `simulator`: no dataset .*`x7`; did you"),
        ({"simulator": {"import": "none.csv", "x": "x0"}}, r"`simulator`: no file"),
        ({"simulator": {"name": "two_moons", "import": "sims.csv"}}, "`import` does not go with `name`"),
        ({"simulator": {"name": "two_moons", "x": "x0"}}, "`x` does not go with `name`"),
        ({"simulator": {"import": "sims.csv", "xs": "x0"}}, r"`simulator.xs`: unknown key; did you mean `x`"),
        ({"simulator": {}}, "must have `name`"),
        ({"prior": {}}, "`simulator`: `prior` must be given"),
        ({"prior": {"a": {"dist": "Normall"}}}, r":\d+: `prior.a`: .*did you mean `Normal`"),
        ({"simulate": {"rows": 601}}, "`simulate.rows`: must be at most the 600 rows"),
        ({"diagnose": {"pairs": 599}}, "`simulate.rows`.*must exceed the 599 pairs"),
        ({"infer": {"refine": "importance"}}, "what is imported has none"),
    ],
)  # fmt: skip
def test_mistakes_are_told_with_their_place(
    change: dict[str, Any], message: str, from_csv: dict[str, Any], tmp_path: Path
) -> None:
    path = written({**from_csv, **change}, tmp_path / "run.yaml")
    with pytest.raises(ConfigError, match=message):
        make_job(read_source(path))


def main_ok(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def main_fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    return re.sub(r"\s+", " ", capsys.readouterr().err)


def test_import_export_and_merge_from_the_command_line(
    from_hdf5: dict[str, Any], finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(from_hdf5, tmp_path / "mapping.yaml")
    main_ok(["import", str(path), str(tmp_path / "a.zarr"), "--set", "simulate.rows=200"])
    assert "200 ok" in capsys.readouterr().out
    assert "`--set` needs KEY=VALUE; got 'seed'" in main_fails(
        ["import", str(path), str(tmp_path / "no.zarr"), "--set", "seed"], capsys
    )
    main_ok(["export", str(tmp_path / "a.zarr"), str(tmp_path / "a.h5")])
    main_ok(["import", str(tmp_path / "a.h5"), str(tmp_path / "b.zarr")])
    assert SimulationStore.open(tmp_path / "b.zarr").schema == SimulationStore.open(tmp_path / "a.zarr").schema
    main_ok(["verify", str(tmp_path / "b.zarr")])
    other = simfer.simulate(make_job(read_source(finished.folder / "config.yaml")).simulator, 100, tmp_path / "c.zarr")
    main_ok(["merge", str(finished.folder), str(other.path), str(tmp_path / "all.zarr")])
    assert SimulationStore.open(tmp_path / "all.zarr").rows == 3100
    assert "at least two" in main_fails(["merge", str(other.path)], capsys)
    assert "same draws" in main_fails(["merge", str(other.path), str(other.path), str(tmp_path / "no.zarr")], capsys)
    assert "differs from" in main_fails(
        ["merge", str(other.path), str(tmp_path / "a.zarr"), str(tmp_path / "no.zarr")], capsys
    )
    assert "must have `import`" in main_fails(
        ["import", str(written({"simulator": "two_moons"}, tmp_path / "no.yaml")), str(tmp_path / "no.zarr")], capsys
    )


def test_export_of_a_run(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main_ok(["export", str(finished.folder), str(tmp_path / "sims.nc")])
    with xr.open_dataset(tmp_path / "sims.nc", engine="h5netcdf") as dataset:
        np.testing.assert_array_equal(dataset["x"], finished.simulations.read_array("x"))
    main_ok(["export", str(finished.folder), str(tmp_path / "posterior.nc"), "--what", "posterior"])
    with xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf") as results:
        assert set(results.children) == set(finished.results.children)
        for name, values in finished.results["posterior"].data_vars.items():
            np.testing.assert_array_equal(results["posterior"][name], values)
    assert "did you mean `posterior`" in main_fails(
        ["export", str(finished.folder), str(tmp_path / "x.nc"), "--what", "posteriors"], capsys
    )
    assert ".h5, .hdf5, .nc" in main_fails(["export", str(finished.folder), str(tmp_path / "x.npz")], capsys)
    store = str(finished.folder / "simulations.zarr")
    assert "needs a run" in main_fails(["export", store, str(tmp_path / "x.nc"), "--what", "posterior"], capsys)


@pytest.mark.slow
def test_export_of_a_program(finished: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, x = tmp_path / "log_prob.pt2", torch.tensor([[0.0, 0.1], [0.2, 0.0]])
    main_ok(["export", str(finished.folder), str(out), "--what", "log_prob"])
    theta = torch.zeros(4, 2, 2, dtype=torch.float64)
    got = torch.export.load(out).module()({"x": x}, theta)
    torch.testing.assert_close(got, finished.posterior.log_prob_batched(theta, x), atol=1e-4, rtol=1e-4)
    assert "must be free" in main_fails(["export", str(finished.folder / "model"), str(out)], capsys)
    assert "`--what sampler` must go to a file of its kind" in main_fails(
        ["export", str(finished.folder), str(tmp_path / "x.nc"), "--what", "sampler"], capsys
    )
    assert "no model at" in main_fails(["export", str(tmp_path), str(tmp_path / "x.pt2")], capsys)


def test_nothing_to_merge_is_said(tmp_path: Path) -> None:
    from simfer.pipelines.exchange import merge_stores

    with pytest.raises(MissingFileError):
        merge_stores([tmp_path / "a.zarr", tmp_path / "b.zarr"], tmp_path / "out.zarr")
