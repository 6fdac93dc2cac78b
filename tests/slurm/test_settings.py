"""What needs no cluster: settings, scripts, ledgers, and what is told where Slurm is not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simfer.data.errors import ConfigError, RunFolderError
from simfer.data.store import SimulationStore
from simfer.pipelines.config import LocalConfig
from simfer.pipelines.folder import RunFolder
from simfer.pipelines.job import make_job
from simfer.pipelines.progress import Reporter
from simfer.pipelines.slurm.checks import file_system
from simfer.pipelines.slurm.ledger import Ledger, dealt, shards_of
from simfer.pipelines.slurm.script import Array, script
from simfer.pipelines.slurm.settings import SlurmConfig, minutes_of
from simfer.pipelines.slurm.submit import resume, submit
from simfer.pipelines.yaml_file import read_source

QUIET = Reporter(None)
TINY: dict[str, Any] = {"name": "tiny", "simulator": "two_moons", "simulate": {"rows": 640, "shards": 64}}


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 90.5), ("1:30:00", 90), ("1-0", 1440), ("1-12:30", 2190), ("1-0:0:30", 1440.5)],
)
def test_times_are_those_of_sbatch(text: str, minutes: float) -> None:
    assert minutes_of(text) == minutes


@pytest.mark.parametrize("text", ["1h", "1:2", "tomorrow", "", "0", "1:00:00:00", "-5"])
def test_a_malformed_time_says_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="hours:minutes:seconds"):
        SlurmConfig(time=text)


def test_a_bad_key_is_named_with_its_place() -> None:
    source = read_source({**TINY, "local": {"slurm": {"train": {"tme": "1:00:00"}, "memory": "lots"}}})
    with pytest.raises(ConfigError) as error:
        make_job(source)
    text = str(error.value)
    assert "`local.slurm.train.tme`: unknown key; did you mean `time`?" in text
    assert "`local.slurm.memory`" in text
    assert "`8G`" in text


def test_a_warning_needs_time_to_come() -> None:
    with pytest.raises(ValueError, match="at most half of every time limit"):
        SlurmConfig(train={"time": 3})
    assert SlurmConfig(train={"time": 3}, warning=60).of("train").time == "3"


def test_stages_have_what_all_have_and_what_is_their_own() -> None:
    slurm = SlurmConfig(
        partition="cpu", time=60, setup="module load a\nmodule load b", train={"partition": "gpu", "gpus": 2}
    )
    assert (slurm.of("train").partition, slurm.of("train").time, slurm.of("train").gpus) == ("gpu", "60", 2)
    assert (slurm.of("infer").partition, slurm.of("infer").gpus) == ("cpu", None)
    assert slurm.of("train").setup == ("module load a", "module load b")
    with pytest.raises(ValueError, match="`nodes` must be 1 for `simulate`"):
        SlurmConfig(nodes=2)


@pytest.mark.parametrize("stage", ["simulate", "train", "report"])
def test_scripts_are_shell_and_say_what_was_asked(stage: str) -> None:
    slurm = SlurmConfig(
        account="astro",
        setup=["module load python"],
        extra=["#SBATCH --mail-type=END"],
        umask="0027",
        train={"gpus": 2, "nodes": 3, "cpus": 8},
        simulate={"parallel": 32},
    )
    text = script(
        "run", stage, LocalConfig(slurm=slurm), Array(200, "slurm/shards-1.json") if stage == "simulate" else None
    )
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert {"#SBATCH --account=astro", "#SBATCH --mail-type=END", "#SBATCH --requeue", "umask 0027"} <= set(
        text.splitlines()
    )
    assert ("#SBATCH --array=0-199%32" in text) == (stage == "simulate")
    of_training = ("#SBATCH --nodes=3", "#SBATCH --ntasks-per-node=2", "#SBATCH --gpus-per-node=2", "\nsrun ")
    assert all((part in text) == (stage == "train") for part in of_training)
    assert str(Path.cwd()) not in text.replace(sys.executable, "")  # the folder can be moved


@pytest.mark.parametrize(("shards", "tasks"), [(64, 8), (10, 3), (3, 3)])
def test_shards_are_dealt_in_order_and_evenly(shards: int, tasks: int) -> None:
    parts = dealt(range(shards), tasks)
    assert [shard for part in parts for shard in part] == list(range(shards))
    assert {len(part) for part in parts} <= {shards // tasks, shards // tasks + 1}


def test_a_dry_run_needs_no_slurm_and_submits_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    config = {**TINY, "local": {"slurm": {"simulate": {"array": 8}}}}
    assert submit(make_job(read_source(config)), RunFolder(tmp_path / "run"), QUIET, dry=True) == []
    written = sorted(file.name for file in (tmp_path / "run/slurm").glob("*.sbatch"))
    assert written == ["diagnose.sbatch", "infer.sbatch", "report.sbatch", "simulate.sbatch", "train.sbatch"]
    tasks = shards_of(tmp_path / "run", "slurm/shards-1.json")
    assert [shard for task in tasks for shard in task] == list(range(64))
    assert len(tasks) == 8
    assert not Ledger.there(tmp_path / "run")


def test_without_slurm_the_way_out_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"needs Slurm's `sbatch` on the path: run it on a login node.*--dry-run.*simfer run"
    ):
        submit(make_job(read_source(TINY)), RunFolder(tmp_path / "run"), QUIET)
    assert not (tmp_path / "run").exists()


def test_a_folder_without_jobs_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"no run at .*simfer submit CONFIG"):
        resume(tmp_path, QUIET)
    with pytest.raises(RunFolderError, match="no jobs were submitted from"):
        Ledger.read(tmp_path)
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/jobs.json").write_text("{")
    with pytest.raises(RunFolderError, match=r"damaged.*squeue --me"):
        Ledger.read(tmp_path)


def test_simulations_stay_where_the_simulator_was_mended(tmp_path: Path) -> None:
    source = tmp_path / "mine.py"
    source.write_text((Path(__file__).parent / "own.py").read_text())
    config = {**TINY, "simulator": f"{source}:Line"}
    submit(make_job(read_source(config)), RunFolder(tmp_path / "run"), QUIET, dry=True)
    store = SimulationStore.open(tmp_path / "run/simulations.zarr")
    made = store.path.stat().st_ino
    source.write_text(source.read_text().replace("0.5 *", "0.50 *"))
    with pytest.raises(RunFolderError, match=r"another simulator \(simulator.source.*resume --keep.*simfer submit"):
        _fresh(resume, tmp_path / "run")
    _fresh(resume, tmp_path / "run", keep=True)
    assert store.path.stat().st_ino == made  # not set aside
    assert SimulationStore.open(store.path).attributes["campaign"] != store.attributes["campaign"]


def _fresh(function: Callable[..., Any], run: Path, **more: Any) -> None:
    """As another process, which has not yet imported the simulator."""
    for name in [
        name for name, module in sys.modules.items() if str(run.parent) in str(getattr(module, "__file__", ""))
    ]:
        del sys.modules[name]
    function(run, QUIET, dry=True, **more)


@pytest.mark.slow
def test_another_simfer_on_the_node_is_refused(tmp_path: Path) -> None:
    submit(make_job(read_source(TINY)), RunFolder(tmp_path / "run"), QUIET, dry=True)
    Ledger(tmp_path / "run", "0.0.1").add("train", "7")
    done = _task(tmp_path / "run", "train")
    assert done.returncode == 2
    assert "simfer 0.0.1 submitted this run, and this node has simfer" in done.stderr
    note = json.loads((tmp_path / "run/slurm/tasks/train-7.json").read_text())
    assert (note["state"], note["node"]) == ("failed", "n9")
    assert "0.0.1" in note["error"]


@pytest.mark.slow
def test_a_node_that_does_not_see_the_folder_says_so(tmp_path: Path) -> None:
    done = _task(tmp_path, "train")
    assert done.returncode == 2
    assert "n9" in done.stderr
    assert "must be on a file system that all nodes share" in done.stderr


def test_file_systems_are_told_apart(tmp_path: Path) -> None:
    assert file_system(Path("/proc/self")) == "proc"
    assert file_system(tmp_path)


def _task(folder: Path, stage: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "simfer.pipelines.cli", "slurm-task", stage]
    variables = {**os.environ, "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n9"}
    return subprocess.run(command, cwd=folder, env=variables, capture_output=True, text=True, check=False)
