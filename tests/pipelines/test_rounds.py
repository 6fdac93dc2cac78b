"""`train: {rounds: …}` in whole runs: what is simulated, kept, skipped, set aside, killed and reported."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

import simfer
from simfer.data.errors import ConfigError
from simfer.data.proposals import inside, proposals
from simfer.data.splits import held_out
from simfer.data.store import SimulationStore
from simfer.pipelines import tables
from simfer.pipelines.api import Run
from simfer.pipelines.engine import plan
from simfer.pipelines.folder import RunFolder
from simfer.pipelines.job import make_job
from simfer.pipelines.progress import Reporter
from simfer.pipelines.stages import STAGES
from simfer.pipelines.upkeep import verify_or_repair
from simfer.pipelines.yaml_file import read_source
from simfer.simulators.campaign import verify

CONFIG: dict[str, Any] = {
    "name": "rounds",
    "seed": 2,
    "simulator": "two_moons",
    "observation": "origin",
    "simulate": {"rows": 800},
    "train": {
        "rounds": 2,
        "epsilon": 0.01,
        "flow": {"kind": "maf", "transforms": 2, "hidden": [16]},
        "embedding": {"kind": "none"},
        "epochs": 5,
        "batch_size": 50,
        "learning_rate": 5e-3,
    },
    "diagnose": {"pairs": 100, "draws": 50},
    "infer": {"draws": 200, "predictive": 50},
}


def with_train(**changes: Any) -> dict[str, Any]:
    return {**CONFIG, "train": {**CONFIG["train"], **changes}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simfer.run(CONFIG, workdir=tmp_path_factory.mktemp("rounds") / "run", quiet=True)


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def actions(config: dict[str, Any], folder: Path) -> dict[str, str]:
    return {
        step.stage.name: step.action for step in plan(make_job(read_source(config)), RunFolder(folder), list(STAGES))
    }


@pytest.mark.slow
def test_rounds_add_to_the_campaign_and_leave_the_first_store_alone(finished: Run) -> None:
    store, first = finished.simulations, SimulationStore.open(finished.folder / "simulations.zarr")
    assert (store.rows, first.rows) == (1600, 800)
    assert store.attributes["campaign_hash"] == first.attributes["campaign_hash"]
    np.testing.assert_array_equal(store.read_array("x")[:800], first.read_array("x"))
    assert len(proposals(store)) == 1
    verify(store)
    verify(first)


def test_checks_are_made_on_rows_of_the_last_round_that_were_not_learned_from(finished: Run) -> None:
    store = finished.simulations
    used = inside(store) & ~held_out(store, 100)
    train = finished.summary["stages"]["train"]
    assert train["rows_train"] + train["rows_validation"] == used.sum()
    assert finished.checks["sbc"].to_json() == finished.summary["checks"]["sbc"]


def test_summary_and_report_say_it(finished: Run) -> None:
    assert [item["round"] for item in finished.summary["rounds"]] == [1, 2]
    assert finished.summary["stages"]["train"]["simulations"] == 1600
    page = finished.report.read_text(encoding="utf-8")
    assert "The prior was truncated in 2 rounds at this observation" in page
    assert "inside the truncation" in page
    json.loads((finished.folder / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))


def test_a_finished_run_is_skipped_and_loads(finished: Run) -> None:
    assert set(actions(CONFIG, finished.folder).values()) == {"skip"}
    again = simfer.load(finished.folder)
    assert isinstance(again, Run)
    assert again.simulations.rows == 1600
    assert torch.equal(again.draws, finished.draws)


def test_an_observation_is_part_of_what_rounds_are_trained_for(finished: Run) -> None:
    other = {**CONFIG, "observation": {"values": [0.1, 0.0]}}
    found = actions(other, finished.folder)
    assert (found["simulate"], found["train"]) == ("skip", "rebuild")


@pytest.mark.slow
def test_rounds_are_set_aside_and_brought_back_with_their_model(copy: Path, finished: Run) -> None:
    simfer.run(with_train(rounds=1), workdir=copy, quiet=True)
    assert not (copy / "rounds").exists()
    assert simfer.load(copy).simulations.rows == 800
    assert actions(CONFIG, copy)["train"] == "restore"
    back = simfer.run(CONFIG, workdir=copy, quiet=True)
    assert back.simulations.digest() == finished.simulations.digest()
    assert torch.equal(back.draws, finished.draws)


def test_a_damaged_shard_of_a_later_round_is_simulated_anew(copy: Path, finished: Run) -> None:
    store = SimulationStore.open(copy / "rounds/simulations.zarr")
    file = next((store.path / "x/c").glob(f"{store.layout.shards - 1}/*"))
    damaged = bytearray(file.read_bytes())
    damaged[10] ^= 255
    file.write_bytes(damaged)
    verify_or_repair(copy, repair=True, reporter=Reporter(None))
    assert store.pending_shards() == [store.layout.shards - 1]
    assert actions(CONFIG, copy)["train"] == "resume"
    mended = simfer.run(CONFIG, workdir=copy, quiet=True)
    assert mended.simulations.digest() == finished.simulations.digest()
    assert mended.model.facts["loss"] == finished.model.facts["loss"]


def test_without_an_observation_the_remedy_is_named() -> None:
    config = {key: value for key, value in CONFIG.items() if key != "observation"}
    with pytest.raises(ConfigError, match=r"give `observation`, or leave `rounds` out"):
        make_job(read_source(config))


def test_the_plan_counts_all_rounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(record=True, width=200)
    monkeypatch.setattr(tables, "console", console)
    tables.show_plan(make_job(read_source(CONFIG)), RunFolder(tmp_path))
    assert "1 rounds more, 1,600 rows in all" in console.export_text()


def start(folder: Path) -> subprocess.Popen[str]:
    (folder / "rounds.yaml").write_text(json.dumps(CONFIG))  # JSON is YAML
    return subprocess.Popen(
        [sys.executable, "-m", "simfer.pipelines.cli", "run", "rounds.yaml", "--workdir", "run"],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
def test_killed_at_every_step_it_ends_the_same(finished: Run, tmp_path: Path) -> None:
    """kill -9 soon after each of these appears, and the same command again."""
    for sign in (
        "rounds/simulations.zarr",
        "checkpoints",
        "rounds/01/model",
        "rounds/simulations.zarr/proposals/1",
        "model",
    ):
        process, deadline = start(tmp_path), time.monotonic() + 120
        while not (tmp_path / "run" / sign).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    process = start(tmp_path)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    run = simfer.load(tmp_path / "run")
    assert isinstance(run, Run)
    assert run.simulations.digest() == finished.simulations.digest()
    assert run.model.facts["loss"] == finished.model.facts["loss"]
    assert run.summary["rounds"] == finished.summary["rounds"]
    assert torch.equal(run.draws, finished.draws)
