"""An ensemble from YAML: the whole run, and what is said of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import simfer
from simfer.estimators.ensemble import Ensemble
from simfer.pipelines.api import Run


@pytest.mark.slow
def test_a_run_with_an_ensemble(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = copy.deepcopy(tiny)
    config["train"]["ensemble"] = 2
    run = simfer.run(config, workdir=tmp_path / "run", quiet=True)
    found = run.summary["stages"]["train"]["ensemble"]
    assert sum(found["weights"]) == pytest.approx(1.0)
    assert found["loss"]["mixture"] <= min(found["loss"]["members"]) + 1e-6
    loaded = simfer.load(tmp_path / "run")
    assert isinstance(loaded, Run)
    assert isinstance(loaded.model.estimator, Ensemble)
    assert loaded.draws.shape == (200, 2)
    assert set(run.summary["checks"]) >= {"sbc", "coverage", "tarp"}
