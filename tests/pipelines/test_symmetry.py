"""Symmetries from YAML: the whole run, and what does not go together."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

import simfer
from simfer.data.errors import ConfigError
from simfer.estimators.model import Model, build_estimator
from simfer.estimators.settings import EstimatorSettings, SymmetrySettings
from simfer.estimators.symmetry.posterior import GNPEPosterior
from simfer.estimators.symmetry.restricted import RestrictedPosterior
from simfer.pipelines.api import Run
from simfer.simulators.damped_oscillator import DampedOscillator

CONFIG: dict[str, Any] = {
    "name": "struck",
    "seed": 1,
    "simulator": "damped_oscillator",
    "observation": "example",
    "simulate": {"rows": 1200},
    "train": {
        "embedding": {"kind": "mlp", "features": 8, "hidden": [32]},
        "flow": {"kind": "nsf", "transforms": 2, "hidden": [32]},
        "symmetry": {"kernel": {"time": 0.2}, "iterations": 4},
        "epochs": 8,
        "batch_size": 50,
    },
    "diagnose": {"checks": ["sbc", "coverage"], "pairs": 60, "draws": 50},
    "infer": {"draws": 400, "refine": "importance"},
}


def changed(**sections: Any) -> dict[str, Any]:
    config = copy.deepcopy(CONFIG)
    for name, values in sections.items():
        config[name] = {**config.get(name, {}), **values}
    return config


@pytest.mark.slow
def test_a_run_with_a_symmetry(tmp_path: Path) -> None:
    run = simfer.run(CONFIG, workdir=tmp_path / "run", quiet=True)
    assert isinstance(run.model.posterior, GNPEPosterior)
    sampler = run.summary["stages"]["infer"]["sampler"]
    assert sampler["iterations"] == 4
    assert run.draws.shape == (400, 3)
    assert run.summary["refine"]["proposals"] > 0
    log = (tmp_path / "run" / "logs" / "diagnose.log").read_text()
    assert "diagnose 60/60" in log
    assert "pairs/s" in log
    again = simfer.load(tmp_path / "run")
    assert isinstance(again, Run)
    assert again.summary == run.summary


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"train": {"symmetry": {"kernel": {"tim": 0.1}}}}, "time"),
        ({"train": {"symmetry": {"kernle": {"time": 0.1}}}}, "kernel"),
        ({"train": {"symmetry": {"kernel": {"time": -0.1}}}}, "kernel"),
        ({"train": {"symmetry": {"exact": True}}}, "kernel"),
        ({"train": {"rounds": 2}}, "rounds"),
        ({"simulate": {"on_invalid": "impute"}}, "impute"),
        ({"diagnose": {"checks": ["attack"]}}, "attack"),
        ({"train": {"method": "nle"}}, "npe"),
    ],
)
def test_what_does_not_go_together_is_named(sections: dict[str, Any], says: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=says):
        simfer.run(changed(**sections), workdir=tmp_path / "run", quiet=True)


def test_the_command_line_refuses_in_one_line_before_anything_runs(simfer_cli: Any, tmp_path: Path) -> None:
    config = changed(diagnose={"checks": ["sbc", "attack"]})
    (tmp_path / "struck.yaml").write_text(json.dumps(config))
    for command in ("plan", "run"):
        code, _, err = simfer_cli(command, "struck.yaml")
        assert code == 2
        assert len(err.strip().splitlines()) == 1
        assert (
            "the check `attack` needs gradients, which Gibbs chains have not, and `by: canonical` and `by: augmentation` have"
            in err
        )
    assert not (tmp_path / "runs").exists()


def test_a_program_of_chains_is_refused_in_one_line(simfer_cli: Any, tmp_path: Path) -> None:
    symmetry = SymmetrySettings(kernel=0.1, declared=DampedOscillator.symmetry)
    prior, observables = DampedOscillator.prior, DampedOscillator.observables
    Model(build_estimator(prior, observables, EstimatorSettings(symmetry=symmetry)), prior).save(tmp_path / "model")
    code, _, err = simfer_cli("export", "model", "posterior.pt2")
    assert code == 2
    assert len(err.strip().splitlines()) == 1
    assert "with `symmetry` draws come from Gibbs chains: train with `symmetry: {by: augmentation}`" in err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_simulator_without_a_symmetry_is_named(tmp_path: Path) -> None:
    config = changed() | {"simulator": "two_moons", "observation": "origin"}
    with pytest.raises(ConfigError, match="declares a symmetry"):
        simfer.run(config, workdir=tmp_path / "run", quiet=True)


POSES = """
import torch

OFF = 3.0

def brightest(x):
    energy = x["x"].double().square()
    return 0.05 * (energy * torch.arange(200)).sum(1, keepdim=True) / energy.sum(1, keepdim=True)
"""


@pytest.mark.slow
def test_a_run_from_canonical_poses_may_be_attacked(tmp_path: Path) -> None:
    """A pose of one's own is found beside the configuration, and when the run is loaded."""
    (tmp_path / "poses.py").write_text(POSES)
    few = {"eps": [0.5], "steps": 3, "observations": 10, "predictive_draws": 0}
    symmetry = {"by": "canonical", "canonical": "poses.py:brightest"}
    config = changed(train={"symmetry": symmetry, "epochs": 3}, diagnose={"checks": ["coverage", {"attack": few}]})
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    run = simfer.run(tmp_path / "config.yaml", workdir=tmp_path / "run", quiet=True)
    assert isinstance(run.model.posterior, RestrictedPosterior)
    assert {"coverage", "attack"} <= set(run.summary["checks"])
    again = simfer.load(tmp_path / "run")
    assert isinstance(again, Run)
    assert isinstance(again.model.posterior, RestrictedPosterior)
    assert run.draws.shape == (400, 3)


@pytest.mark.parametrize(
    ("canonical", "says"),
    [("poses.py:brightes", "brightest"), ("poses.py:OFF", "must be a function"), ("y", "no observable `y`")],
)
def test_a_pose_that_is_none_is_named(tmp_path: Path, canonical: str, says: str) -> None:
    (tmp_path / "poses.py").write_text(POSES)
    config = changed(train={"symmetry": {"by": "canonical", "canonical": canonical}})
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=says):
        simfer.run(tmp_path / "config.yaml", workdir=tmp_path / "run", quiet=True)
