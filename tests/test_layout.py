"""The house: links, import direction, a light front, a README whose links resolve."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import simfer

ROOT = Path(__file__).parents[1]
ROOMS = ("data", "simulators", "estimators", "diagnostics", "pipelines")
HEAVY = ("torch", "lightning", "zarr", "xarray", "matplotlib", "scipy", "sbi", "numpy", "pydantic")


@pytest.mark.parametrize("room", ROOMS)
def test_links_lead_to_the_rooms(room: str) -> None:
    assert (ROOT / "src" / "simfer" / room).resolve() == ROOT / room


def test_imports_run_downward() -> None:
    done = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_import_relatively(room: str) -> None:
    """`import data` works by accident where the repository is the working directory."""
    absolute = re.compile(rf"^\s*(from|import) ({'|'.join(ROOMS)}|simfer)\b", re.MULTILINE)
    for file in (ROOT / room).rglob("*.py"):
        assert not absolute.search(file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize("code", ["import simfer", "from simfer.pipelines.cli import main; main(['--help'])"])
def test_the_front_imports_nothing_heavy(code: str) -> None:
    spy = f"import sys, contextlib\nwith contextlib.suppress(SystemExit):\n    {code}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", spy], capture_output=True, text=True, check=True).stdout.split()
    assert not set(HEAVY) & set(loaded)


def test_a_task_of_an_array_imports_only_what_it_needs() -> None:
    """An array starts Python hundreds of times; these would add a second to each."""
    spy = """
import sys, simfer.pipelines.slurm.task
from simfer.pipelines.job import make_job
from simfer.pipelines.yaml_file import read_source
make_job(read_source({"simulator": "two_moons", "observation": "origin"}))
print(*sys.modules)
"""
    loaded = subprocess.run([sys.executable, "-c", spy], capture_output=True, text=True, check=True).stdout.split()
    assert not {"scipy.stats", "xarray", "pandas", "lightning", "sbi", "matplotlib"} & set(loaded)


def test_public_names_exist_and_are_few() -> None:
    assert len(simfer.__all__) <= 12
    for name in simfer.__all__:
        assert getattr(simfer, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        simfer.nothing  # noqa: B018


def test_every_pinned_dependency_is_met_and_torch_is_the_tested_one() -> None:
    pins = dict(
        line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line
    )
    assert pins["torch"] == "2.13.0"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        assert name[0].lower() in pins, f"{name[0]} is not pinned"


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_in_documents_resolve(document: str) -> None:
    text = (ROOT / document).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)]+)\)", text):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for target in re.findall(r"`((?:tests|simulators|estimators|pipelines|data|diagnostics|notebooks)/[\w./]+)`", text):
        assert (ROOT / target).exists() or "NAME" in target, target
