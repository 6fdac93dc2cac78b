"""Campaigns of a run: extended, retried, verified, repaired, and asked how far they are."""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simfer
from simfer.data.store import SimulationStore
from simfer.pipelines.api import Run
from simfer.pipelines.cli import main
from simfer.pipelines.tables import console
from simfer.pipelines.yaml_file import read_source
from simfer.simulators.campaign import simulate
from simfer.simulators.progress import progress_of
from simfer.simulators.two_moons import TwoMoons

LUCK = """\
import numpy as np
from simfer.simulators.two_moons import TwoMoons

class Luck(TwoMoons):
    def simulate(self, theta, rng, context=None):
        if rng.random() < 0.3:
            raise RuntimeError("bad luck")
        return super().simulate(theta, rng)
"""


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(console, "width", 200)
        with contextlib.suppress(SystemExit):  # Typer's way to end well
            main(arguments)
    return capsys.readouterr().out


@pytest.fixture
def unlucky(tmp_path: Path, tiny: dict[str, Any]) -> tuple[Path, Run]:
    (tmp_path / "luck.py").write_text(LUCK)
    config = {**tiny, "simulator": f"{tmp_path / 'luck.py'}:Luck", "simulate": {"rows": 2000, "block": 10}}
    return tmp_path, simfer.run(config, workdir=tmp_path / "run", quiet=True)


def test_more_rows_are_added_to_the_campaign_and_less_start_another(tiny: dict[str, Any], copy: Path) -> None:
    first = simfer.load(copy).simulations.read()
    run = simfer.run({**tiny, "simulate": {"rows": 4000}}, workdir=copy, quiet=True)
    assert run.simulations.rows == 4000
    np.testing.assert_array_equal(run.simulations.read(slice(0, 3000))[0], first[0])
    assert run.summary["stages"]["train"]["rows_train"] > 3000
    assert "more is wanted than is there (rows: 3000 → 4000)" not in (copy / "logs" / "simulate.log").read_text()
    less = simfer.run({**tiny, "simulate": {"rows": 2500}}, workdir=copy, quiet=True)
    assert less.simulations.rows == 2500


def test_status_tells_counts_reasons_and_size(unlucky: tuple[Path, Run], capsys: pytest.CaptureFixture[str]) -> None:
    folder, run = unlucky
    for path in (folder / "run", folder / "run" / "simulations.zarr"):
        out = said(capsys, "status", str(path))
        failed = run.simulations.counts()["failed"]
        assert re.search(rf"failed +│ +{failed:,} ", out)
        assert "RuntimeError: bad luck" in out
        assert "on disk" in out


@pytest.mark.slow
def test_retry_mends_rows_and_outdates_what_was_made_without_them(
    unlucky: tuple[Path, Run], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, run = unlucky
    before, draws = run.simulations.counts(), run.draws
    out = said(capsys, "retry", str(folder / "run" / "config.yaml"), "--workdir", str(folder / "run"))
    after = SimulationStore.open(folder / "run" / "simulations.zarr").counts()
    mended = after["ok"] - before["ok"]
    assert mended > before["failed"] / 2
    assert f"{mended:,} of {before['failed']:,} rows mended" in out
    assert not (folder / "run" / "model").exists()
    again = simfer.run(folder / "run" / "config.yaml", workdir=folder / "run", quiet=True)
    assert again.summary["stages"]["simulate"]["rows_ok"] == after["ok"]
    assert (again.draws != draws).any()


@pytest.mark.slow
def test_verify_names_damage_and_repairs_it(
    finished: Run, copy: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "every byte that is marked done is whole (3,000 ok)" in said(capsys, "verify", str(copy))
    file = copy / "simulations.zarr" / "theta" / "c" / "3" / "0"
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(bytes(raw))
    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(copy)])
    assert "damaged: shard 3, array `theta`" in capsys.readouterr().err
    shutil.rmtree(copy / "model")
    with pytest.raises(simfer.SimferError, match="damaged: shard 3, array `theta`"):  # training does not learn from it
        simfer.run(tiny, workdir=copy, quiet=True)
    assert "shard 3 was damaged and is pending again" in said(capsys, "verify", "--repair", str(copy))
    run = simfer.run(tiny, workdir=copy, quiet=True)
    assert run.simulations.digest() == finished.simulations.digest()


def test_progress_of_a_campaign_that_is_half_done(tmp_path: Path) -> None:
    store = simulate(TwoMoons(), 6400, tmp_path / "s.zarr", block=200)
    for shard in (1, 5, 9):
        store.discard(shard)
    found = progress_of(store)
    assert found.counts["pending"] == 3 * 400
    assert found.rate > 0
    assert found.seconds_left == pytest.approx(1200 / found.rate)
    assert found.bytes > 6400 * 8
    assert progress_of(simulate(TwoMoons(), 6400, store.path, block=200)).seconds_left is None


def test_what_was_set_aside_before_a_retry_does_not_come_back(unlucky: tuple[Path, Run]) -> None:
    folder, run = unlucky
    config = read_source(folder / "run" / "config.yaml").values
    other = {**config, "train": {**config["train"], "epochs": 2}}
    simfer.run(other, workdir=folder / "run", quiet=True)
    rows = run.summary["stages"]["train"]["rows_train"]
    job_config = folder / "other.yaml"
    job_config.write_text((folder / "run" / "config.yaml").read_text())
    with contextlib.suppress(SystemExit):
        main(["retry", str(job_config), "--workdir", str(folder / "run")])
    again = simfer.run(config, workdir=folder / "run", quiet=True)
    assert again.summary["stages"]["train"]["rows_train"] > rows


def test_an_interrupted_extension_does_not_pass_for_the_former_store(tiny: dict[str, Any], copy: Path) -> None:
    class StopError(Exception):
        pass

    def stop(*_: Any) -> None:
        raise StopError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("simfer.simulators.campaign._fill", stop)
        with pytest.raises(StopError):
            simfer.run({**tiny, "simulate": {"rows": 6000}}, workdir=copy, quiet=True)
    run = simfer.run(tiny, workdir=copy, quiet=True)
    assert run.simulations.rows == 3000


def test_a_mended_simulator_keeps_its_campaign(unlucky: tuple[Path, Run], tmp_path: Path) -> None:
    folder, run = unlucky
    theta = run.simulations.read()[0]
    (tmp_path / "luck.py").write_text(LUCK.replace("0.3", "0.0"))
    arguments = ["retry", str(folder / "run" / "config.yaml"), "--workdir", str(folder / "run")]
    code = subprocess.run([sys.executable, "-m", "simfer.pipelines.cli", *arguments], check=False).returncode
    assert code == 0
    store = SimulationStore.open(folder / "run" / "simulations.zarr")
    assert store.counts()["ok"] == 2000
    np.testing.assert_array_equal(store.read()[0], theta)
    command = ["run", str(folder / "run" / "config.yaml"), "--workdir", str(folder / "run"), "--to", "simulate"]
    subprocess.run([sys.executable, "-m", "simfer.pipelines.cli", *command], check=True)
    assert not list((folder / "run" / "superseded").glob("simulate-*"))
