"""`simfer search`: simulates, searches, prints what to put under `train:`, and goes on."""

from __future__ import annotations

import copy
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from simfer.data.errors import ConfigError
from simfer.pipelines import cli
from simfer.pipelines.config import Config
from simfer.pipelines.job import make_job
from simfer.pipelines.yaml_file import read_source

SEARCH = {"trials": 2, "space": {"learning_rate": [1e-4, 1e-2, "log"], "flow.transforms": [1, 2]}}


def with_search(tiny: dict[str, Any], **search: Any) -> dict[str, Any]:
    return {**copy.deepcopy(tiny), "search": {**SEARCH, **search}}


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    return int(ended.value.code or 0)


def test_search_prints_and_writes_the_best_settings_and_goes_on(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "tiny.yaml").open("w") as stream:
        YAML().dump(with_search(tiny), stream)
    assert call("search", "tiny.yaml", "--set", "simulate.rows=1000") == 0
    out = capsys.readouterr().out
    best = (tmp_path / "runs/tiny/search/best.yaml").read_text()
    assert best in out
    assert out.count("search: finished at") + out.count("search: pruned at") == 2
    assert set(YAML(typ="safe").load(best)["train"]) == {"learning_rate", "flow"}
    assert not (tmp_path / "runs/tiny/model").exists()
    assert call("search", "tiny.yaml", "--set", "simulate.rows=1000") == 0
    out = capsys.readouterr().out
    assert "search: finished at" not in out
    assert best in out


def test_mistakes_in_the_space_are_named_with_their_line(tiny: dict[str, Any], tmp_path: Path) -> None:
    space = {"learning_rate": [1e-2, 1e-4], "flow.transfroms": [1, 2]}
    with (tmp_path / "c.yaml").open("w") as stream:
        YAML().dump(with_search(tiny, space=space), stream)
    with pytest.raises(ConfigError) as caught:
        make_job(read_source(tmp_path / "c.yaml"))
    first, second = caught.value.problems
    assert "`search.space.learning_rate`: `learning_rate` must have low < high" in first
    assert "did you mean `transforms`" in second


def test_no_space_is_told_before_anything_is_simulated(
    tiny: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "tiny.yaml").open("w") as stream:
        YAML().dump(tiny, stream)
    assert call("search", "tiny.yaml") == 2
    assert "`search.space` must name something to search for" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_an_ensemble_is_a_key_of_train() -> None:
    config = Config.model_validate({"simulator": "two_moons", "train": {"ensemble": 3}})
    assert config.train.estimator(impute=False).ensemble == 3


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "simfer.pipelines.cli", "search", "tiny.yaml", "--workdir", "run"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, start_new_session=True)


def wait_for(process: subprocess.Popen[bytes], seen: Path, pattern: str) -> None:
    while process.poll() is None and not list(seen.glob(pattern)):
        time.sleep(0.02)
    assert process.poll() is None


@pytest.mark.slow
def test_after_kill_9_the_same_command_finds_the_same(tiny: dict[str, Any], tmp_path: Path) -> None:
    settings = with_search(tiny, trials=3)
    settings["train"] |= {"epochs": 12, "patience": 1000}
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
        with (tmp_path / name / "tiny.yaml").open("w") as stream:
            YAML().dump(settings, stream)
    assert start(tmp_path / "whole").wait(timeout=600) == 0
    process, made = start(tmp_path / "killed"), tmp_path / "killed" / "run" / "search"
    wait_for(process, made, "best.yaml")  # the first trial is done
    wait_for(process, made, "trials/*/last.ckpt")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert start(tmp_path / "killed").wait(timeout=600) == 0
    assert (made / "best.yaml").read_text() == (tmp_path / "whole/run/search/best.yaml").read_text()
