"""Symmetries from YAML: the whole run, and what does not go together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest

import simfer
from simfer.data.errors import ConfigError
from simfer.estimators.symmetry.posterior import GNPEPosterior
from simfer.pipelines.api import Run

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


def test_a_run_with_a_symmetry(tmp_path: Path) -> None:
    run = simfer.run(CONFIG, workdir=tmp_path / "run", quiet=True)
    assert isinstance(run.model.posterior, GNPEPosterior)
    sampler = run.summary["stages"]["infer"]["sampler"]
    assert sampler["iterations"] == 4
    assert run.draws.shape == (400, 3)
    assert run.summary["refine"]["proposals"] > 0
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


def test_a_simulator_without_a_symmetry_is_named(tmp_path: Path) -> None:
    config = changed() | {"simulator": "two_moons", "observation": "origin"}
    with pytest.raises(ConfigError, match="declares a symmetry"):
        simfer.run(config, workdir=tmp_path / "run", quiet=True)
