"""A weight of the Fisher information found by a run, and what its report shows of it."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import simfer
from simfer.data.errors import ConfigError


def test_a_run_finds_the_weight_and_shows_the_curve(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = copy.deepcopy(tiny)
    config["train"]["fisher"] = {"beta": "auto", "trainings": 3}
    run = simfer.run(config, workdir=tmp_path / "run", quiet=True)
    found = run.summary["stages"]["train"]["fisher"]
    assert [point["beta"] for point in found["curve"]] == sorted(point["beta"] for point in found["curve"])
    assert len(found["curve"]) == 3
    assert found["loss"] <= found["limit"]
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "Robustness against accuracy" in page
    assert "[{" not in page, "the curve is drawn, not listed"


@pytest.mark.parametrize(
    ("fisher", "says"),
    [
        ({"beta": "automatic"}, "auto"),
        ({"beta": "auto", "price": -1}, "price"),
        ({"beta": "auto", "trainings": 1}, "trainings"),
    ],
)
def test_bad_settings_are_named(tiny: dict[str, Any], tmp_path: Path, fisher: dict[str, Any], says: str) -> None:
    config = copy.deepcopy(tiny)
    config["train"]["fisher"] = fisher
    with pytest.raises(ConfigError, match=says):
        simfer.run(config, workdir=tmp_path / "run", quiet=True)
