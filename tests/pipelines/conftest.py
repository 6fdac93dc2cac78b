from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import simfer
from simfer.pipelines import cli
from simfer.pipelines.api import Run

TINY: dict[str, Any] = {
    "name": "tiny",
    "seed": 3,
    "simulator": "two_moons",
    "observation": "origin",
    "simulate": {"rows": 3000},
    "train": {
        "flow": {"kind": "maf", "transforms": 2, "hidden": [16]},
        "embedding": {"kind": "none"},
        "epochs": 4,
        "batch_size": 100,
    },
    "diagnose": {"pairs": 100, "draws": 50},
    "infer": {"draws": 200, "predictive": 100},
}


@pytest.fixture
def tiny() -> dict[str, Any]:
    return TINY


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """One finished tiny run; tests that change it make a copy."""
    return simfer.run(TINY, workdir=tmp_path_factory.mktemp("runs") / "tiny", quiet=True)


@pytest.fixture
def copy(finished: Run, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(finished.folder, tmp_path / "tiny"))


@pytest.fixture
def simfer_cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The command line in an empty folder: arguments → exit code, output, errors."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call
