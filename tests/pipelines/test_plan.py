"""`simfer plan` simulates a few rows: as well protected as the campaign, and at little cost."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from simfer.pipelines.folder import RunFolder
from simfer.pipelines.job import make_job
from simfer.pipelines.tables import show_plan
from simfer.pipelines.yaml_file import read_source
from simfer.simulators.two_moons import TwoMoons


class Crashes(TwoMoons):
    def simulate(self, theta, rng, context=None):
        os.kill(os.getpid(), signal.SIGKILL)


class Hangs(TwoMoons):
    def simulate(self, theta, rng, context=None):
        time.sleep(60)


class Raises(TwoMoons):
    def simulate(self, theta, rng, context=None):
        raise FloatingPointError("no convergence")


class FromU(TwoMoons):
    """Can be simulated from its base random numbers only."""

    u_shape = (2,)

    def sample_u(self, rows, rng):
        return rng.random((rows, 2))

    def simulate_from_u(self, theta, u, context=None):
        return {"x": theta + u}

    def simulate(self, theta, rng, context=None):
        raise AssertionError("`u` was left out")


class PerRow(TwoMoons):
    per_row, rows = True, 0

    def simulate(self, theta, rng, context=None):
        PerRow.rows += len(theta)
        return super().simulate(theta, rng)


def planned(simulator: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> str:
    config = {"simulator": "two_moons", "observation": "origin", "simulate": {"rows": 1200, **options}}
    (tmp_path / "c.yaml").write_text(json.dumps(config))
    show_plan(make_job(read_source(tmp_path / "c.yaml"), simulator), RunFolder(tmp_path / "run"))
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize(
    ("simulator", "options", "reason"),
    [
        (Crashes(), {"isolate": True}, "killed by SIGKILL"),
        (Hangs(), {"timeout": 0.5}, "no result within 0.5 s"),  # the time of one row
        (Raises(), {}, "no convergence"),
    ],
    ids=["crashes", "hangs", "raises"],
)
def test_a_simulator_that_fails_has_no_known_time(
    simulator: Any,
    options: dict[str, Any],
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("simfer.pipelines.tables.console", Console(width=400))
    out = planned(simulator, tmp_path, capsys, **options)
    assert "unknown: " in out
    assert reason in out


def test_base_random_numbers_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown" not in planned(FromU(), tmp_path, capsys)


def test_few_rows_are_simulated_where_each_is_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "unknown" not in planned(PerRow(), tmp_path, capsys)
    assert 0 < PerRow.rows <= 5


def test_a_disk_that_cannot_hold_the_simulations_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "are free at" not in planned(TwoMoons(), tmp_path, capsys)
    monkeypatch.setattr("simfer.pipelines.tables.console", Console(width=400))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert f"are free at {tmp_path}, fewer" in planned(TwoMoons(), tmp_path, capsys)
