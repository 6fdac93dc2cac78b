"""The whole job, small: what it leaves, what it skips, what it rebuilds."""

from __future__ import annotations

import copy as copying
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr

import simfer
from simfer.data.errors import MissingFileError, RunFolderError, SimulatorError
from simfer.pipelines.api import Run
from simfer.pipelines.engine import plan
from simfer.pipelines.folder import RunFolder, differences
from simfer.pipelines.job import make_job
from simfer.pipelines.stages import STAGES
from simfer.pipelines.yaml_file import read_source


def changed(config: dict[str, Any], **parts: Any) -> dict[str, Any]:
    made = copying.deepcopy(config)
    for key, value in parts.items():
        made[key] = {**made[key], **value} if isinstance(value, dict) else value
    return made


def actions(config: dict[str, Any], folder: Path) -> dict[str, str]:
    steps = plan(make_job(read_source(config)), RunFolder(folder), list(STAGES))
    return {step.stage.name: step.action for step in steps}


def test_a_run_leaves_everything_the_design_names(finished: Run) -> None:
    names = {path.name for path in finished.folder.iterdir()} - {".stages"}
    assert names == {
        "config.yaml", "provenance.json", "simulations.zarr", "model", "checkpoints", "calibration.zarr",
        "posterior.zarr", "summary.json", "report.html", "logs",
    }  # fmt: skip
    logs = {path.name for path in (finished.folder / "logs").iterdir()}
    assert {name for name in logs if name.endswith(".log")} == {f"{stage}.log" for stage in STAGES}
    assert "metrics.csv" in logs


def test_the_run_object_gives_parts(finished: Run) -> None:
    assert finished.posterior.sample((5,)).shape == (5, 2)
    assert set(finished.checks) == {"sbc", "coverage", "tarp", "predictive"}
    assert finished.observation is not None
    assert finished.observation["x"].tolist() == [0.0, 0.0]
    assert finished.draws.shape == (200, 2)
    assert finished.simulations.rows == 3000
    assert "Run tiny" in repr(finished)
    for name, check in finished.summary["checks"].items():
        assert check == finished.checks[name].to_json()


def test_results_have_arviz_groups(finished: Run) -> None:
    groups = {"posterior", "prior", "posterior_predictive", "observed_data", "sample_stats"}
    assert set(finished.results.children) == groups
    with xr.open_datatree(finished.folder / "posterior.zarr", engine="zarr") as tree:
        assert set(tree.children) == groups
        assert tree["posterior"]["t1"].dims == ("chain", "draw")


def test_the_report_is_self_contained_and_says_every_verdict(finished: Run) -> None:
    page = finished.report.read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert page.count("data:image/png;base64,") == 6  # corner, four checks, losses
    for check in finished.checks.values():
        assert check.title in page
    assert 'src="data:' in page


def test_the_model_loads_alone(finished: Run) -> None:
    model = simfer.load(finished.folder / "model")
    draws = finished.posterior.sample((20,), seed=0)
    assert torch.equal(model.posterior.sample((20,), finished.observation, seed=0), draws)


def test_a_run_loads_without_its_simulator(tiny: dict[str, Any], tmp_path: Path) -> None:
    class Mine:
        prior = simfer.Prior({"a": torch.distributions.Normal(0.0, 1.0)})
        observables = simfer.Variables([simfer.Variable("x", (2,))])

        def simulate(self, theta: Any, rng: Any, context: Any = None) -> dict[str, np.ndarray]:
            return {"x": np.repeat(theta, 2, axis=1) + rng.standard_normal((len(theta), 2))}

    config = {key: value for key, value in tiny.items() if key != "simulator"} | {"observation": {"values": [1.0, 1.0]}}
    run = simfer.run(config, simulator=Mine(), workdir=tmp_path / "run", quiet=True)
    again = simfer.load(tmp_path / "run")
    assert isinstance(again, Run)
    assert torch.equal(again.draws, run.draws)
    assert set(again.checks) == set(run.checks)
    assert torch.equal(again.posterior.sample((3,), seed=0), run.posterior.sample((3,), seed=0))


def test_a_finished_run_is_skipped(finished: Run, tiny: dict[str, Any]) -> None:
    assert set(actions(tiny, finished.folder).values()) == {"skip"}
    assert set(
        actions(
            changed(tiny, local={"executor": "processes"}) if "local" in tiny else {**tiny, "local": {"workers": 7}},
            finished.folder,
        ).values()
    ) == {"skip"}


@pytest.mark.parametrize(
    ("parts", "rebuilt"),
    [
        ({"seed": 4}, ["simulate", "train", "diagnose", "infer", "report"]),
        ({"simulate": {"rows": 3100}}, ["simulate", "train", "diagnose", "infer", "report"]),
        ({"train": {"epochs": 5}}, ["train", "diagnose", "infer", "report"]),
        ({"diagnose": {"draws": 60}}, ["diagnose", "report"]),
        ({"infer": {"draws": 300}}, ["infer", "report"]),
        ({"observation": {"values": [0.1, 0.0]}}, ["infer", "report"]),
    ],
)
def test_a_change_rebuilds_what_depends_on_it(
    finished: Run, tiny: dict[str, Any], parts: dict[str, Any], rebuilt: list[str]
) -> None:
    base = {**tiny, "observation": parts["observation"]} if "observation" in parts else changed(tiny, **parts)
    found = actions(base, finished.folder)
    assert [name for name, action in found.items() if action != "skip"] == rebuilt


@pytest.mark.slow
def test_what_changed_is_said_and_nothing_is_lost(
    copy: Path, tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    before = simfer.load(copy)
    digest, draws = before.simulations.digest(), before.draws
    simfer.run(changed(tiny, seed=5), workdir=copy)
    said = capsys.readouterr().out
    assert "simulate: changed, running again (seed: 3 → 5)" in said
    assert "train: changed, running again (seed: 3 → 5)" in said
    assert "set aside in" in said
    assert len(list((copy / "superseded").iterdir())) == 2
    assert actions(tiny, copy)["simulate"] == "restore"
    back = simfer.run(tiny, workdir=copy)
    said = capsys.readouterr().out
    assert "simulate: these inputs were set aside before" in said
    assert "simulate 3,000/3,000" not in said
    assert back.simulations.digest() == digest
    assert torch.equal(back.draws, draws)


def test_an_interrupted_stage_continues(copy: Path, tiny: dict[str, Any]) -> None:
    before = simfer.load(copy)
    losses = before.model.facts["loss"]
    folder = RunFolder(copy)
    marker = folder.done("train")
    assert marker is not None
    folder.begin("train", marker.fingerprint, marker.inputs)
    assert actions(tiny, copy)["train"] == "resume"
    again = simfer.run(tiny, workdir=copy, quiet=True)
    assert again.model.facts["loss"] == losses


def test_a_missing_output_is_made_again(copy: Path, tiny: dict[str, Any]) -> None:
    (copy / "report.html").unlink()
    assert {k for k, v in actions(tiny, copy).items() if v != "skip"} == {"report"}
    simfer.run(tiny, workdir=copy, quiet=True)
    assert (copy / "report.html").exists()


def test_a_folder_has_one_user_at_a_time(copy: Path, tiny: dict[str, Any]) -> None:
    with RunFolder(copy).in_use(), pytest.raises(RunFolderError, match=r"in use by process .*--workdir"):
        simfer.run(tiny, workdir=copy, quiet=True)


def test_no_observation_no_inference(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = {key: value for key, value in tiny.items() if key != "observation"}
    run = simfer.run(config, workdir=tmp_path / "run", quiet=True)
    assert run.summary["posterior"] == {}
    assert set(run.checks) == {"sbc", "coverage", "tarp"}
    assert set(actions(config, run.folder).values()) == {"skip"}


@pytest.mark.parametrize("policy", ["mask", "impute"])
def test_invalid_rows_are_counted_and_left_out_or_imputed(tiny: dict[str, Any], tmp_path: Path, policy: str) -> None:
    run = simfer.run(
        {**changed(tiny, simulate={"on_invalid": policy}), "simulator": f"{_holes(tmp_path)}:Holes"},
        workdir=tmp_path / "run",
        quiet=True,
    )
    numbers = run.summary["stages"]
    bad = numbers["simulate"]["rows_invalid"]
    assert 100 < bad < 500
    used = numbers["train"]["rows_train"] + numbers["train"]["rows_validation"]
    assert (used == 2900) == (policy == "impute")


def test_streamed_training_uses_the_same_rows_and_is_a_choice_of_the_run(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = changed(
        {**tiny, "local": {}}, train={"loader": "stream"}, local={"memory": "100 MB"}, diagnose={"checks": []}
    )
    run = simfer.run(config, workdir=tmp_path / "run", quiet=True)
    numbers = run.summary["stages"]["train"]
    assert numbers["loader"] == "stream"
    assert (numbers["rows_train"], numbers["rows_validation"]) == (2700, 300)
    assert set(actions(changed(config, local={"memory": "1 GB"}), run.folder).values()) == {"skip"}
    assert actions(changed(config, train={"loader": "device"}), run.folder)["train"] == "rebuild"


def test_device_and_memory_are_one_choice(tiny: dict[str, Any], tmp_path: Path) -> None:
    inputs = [
        STAGES["train"].inputs(make_job(read_source(changed(tiny, train={"loader": loader}))))
        for loader in ("device", "memory")
    ]
    assert inputs[0] == inputs[1]


def test_invalid_rows_fail_when_told_to(tiny: dict[str, Any], tmp_path: Path) -> None:
    config = {**changed(tiny, simulate={"on_invalid": "fail"}), "simulator": f"{_holes(tmp_path)}:Holes"}
    with pytest.raises(SimulatorError, match=r"row 11 .*: not finite: x"):
        simfer.run(config, workdir=tmp_path / "run", quiet=True)


def _holes(folder: Path) -> Path:
    path = folder / "holes.py"
    path.write_text(
        "import numpy as np\nfrom simfer.simulators.two_moons import TwoMoons\n\n"
        "class Holes(TwoMoons):\n    def simulate(self, theta, rng, context=None):\n"
        "        x = super().simulate(theta, rng)['x']\n        x[theta[:, 0] < -0.8, 0] = np.nan\n        return {'x': x}\n"
    )
    return path


def test_nothing_to_load(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no run and no model"):
        simfer.load(tmp_path)


def test_differences_name_the_keys() -> None:
    old, new = {"a": {"b": 1, "c": 2}, "d": [1]}, {"a": {"b": 1, "c": 3}, "d": [1], "e": 0}
    assert differences(old, new) == ["a.c: 2 → 3", 'e: "nothing" → 0']


def test_summary_is_strict_json(finished: Run) -> None:
    json.loads((finished.folder / "summary.json").read_text(), parse_constant=lambda name: pytest.fail(name))
