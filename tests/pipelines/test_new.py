"""`simfer new simulator`: what it writes passes its own tests and runs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from simfer.data.errors import ConfigError
from simfer.pipelines import cli
from simfer.pipelines.new import new_simulator

SMALL = ("simulate.rows=300", "train.epochs=2", "infer={draws: 50, predictive: 20}", "diagnose={pairs: 20, draws: 20}")


def environment(package: Path) -> dict[str, str]:
    """As if the package were installed."""
    paths = [str(package / "src"), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def test_the_entry_point_names_what_is_there(tmp_path: Path) -> None:
    made = new_simulator("bent_line", tmp_path)
    project = tomllib.loads((made / "pyproject.toml").read_text())["project"]
    assert project["entry-points"]["simfer.simulators"] == {"bent_line": "bent_line:BentLine"}
    assert "class BentLine" in (made / "src" / "bent_line" / "simulator.py").read_text()
    assert not [path for path in tmp_path.rglob("*") if "{" in path.name or "{{" in path.name]


@pytest.mark.slow
def test_its_tests_pass(tmp_path: Path) -> None:
    made = new_simulator("bent_line", tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests"]
    done = subprocess.run(command, cwd=made, env=environment(made), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout
    assert "failed" not in done.stdout


@pytest.mark.slow
def test_its_recipe_runs(tmp_path: Path) -> None:
    made = new_simulator("bent_line", tmp_path)
    sets = [word for item in SMALL for word in ("--set", item)]
    command = [sys.executable, "-m", "simfer.pipelines.cli", "run", "recipes/bent_line.yaml", "--workdir", "out", *sets]
    done = subprocess.run(command, cwd=made, env=environment(made), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads((made / "out" / "summary.json").read_text())["checks"]


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    new_simulator("bent_line", tmp_path)
    mine = tmp_path / "bent_line" / "src" / "bent_line" / "simulator.py"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match="is there already, and nothing is overwritten"):
        new_simulator("bent_line", tmp_path)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("Bent", "lower-case Python identifier"),
        ("bent-line", "lower-case Python identifier"),
        ("../bent", "lower-case Python identifier"),
        ("class", "lower-case Python identifier"),
        ("two_moons", "there is a simulator `two_moons` already"),
        ("json", "there is a module `json` already"),
    ],
)
def test_names_that_cannot_be(name: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=match):
        new_simulator(name, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_to_do_next(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["new", "simulator", "bent_line", "--folder", str(tmp_path)])
    assert ended.value.code == 0
    assert f"simfer run {tmp_path}/bent_line/recipes/bent_line.yaml" in capsys.readouterr().out
