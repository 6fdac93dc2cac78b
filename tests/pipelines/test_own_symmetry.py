"""A symmetry of the user's own: named in a configuration, kept by name in a model, handed over by whoever loads one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import simfer
from simfer.data.errors import ConfigError, ModelFormatError, SymmetryError
from simfer.estimators.model import Model, build_estimator, load_model
from simfer.estimators.settings import EstimatorSettings, SymmetrySettings, TrainingSettings
from simfer.estimators.symmetry import build_symmetry
from simfer.estimators.symmetry.base import Symmetry
from simfer.estimators.symmetry.own import own_symmetry
from simfer.simulators.damped_oscillator import DampedOscillator
from simfer.simulators.symmetry import NamedSymmetry

PRIOR, OBSERVABLES = DampedOscillator.prior, DampedOscillator.observables
MINE = """
from simfer.estimators.symmetry.composed import PosedSymmetry
from simfer.estimators.symmetry.poses import CoordinatePose
from simfer.estimators.symmetry.shifts import ShiftSignal
from simfer.estimators.symmetry.translations import Translations

def later(prior, observables):
    tau = prior.names.index("tau")
    pose = CoordinatePose(Translations(1), ("tau",), (tau,), (2.0,), (0.0,))
    return PosedSymmetry(Translations(1), pose, {"x": ShiftSignal(1, 0.05)})

def nothing(prior, observables):
    return None

def alone():
    return None

number = 3
"""
CONFIG: dict[str, Any] = {
    "name": "struck",
    "seed": 1,
    "simulator": "damped_oscillator",
    "observation": "example",
    "simulate": {"rows": 300},
    "train": {
        "embedding": {"kind": "mlp", "features": 4, "hidden": [16]},
        "flow": {"kind": "maf", "transforms": 1, "hidden": [16]},
        "symmetry": {"declared": "mine.py:later", "kernel": 0.2, "iterations": 2},
        "epochs": 1,
    },
    "diagnose": {"checks": ["sbc"], "pairs": 20, "draws": 20},
    "infer": {"draws": 50},
}


@pytest.fixture
def written(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "struck.yaml").write_text(json.dumps(CONFIG))
    return tmp_path / "struck.yaml"


def shift(prior: Any = PRIOR, observables: Any = OBSERVABLES) -> Symmetry:
    return build_symmetry(prior, observables, DampedOscillator.symmetry)


def same(first: Model, second: Model) -> bool:
    x = DampedOscillator.observations["example"]["x"]
    draws = [model.posterior.sample((20,), x, seed=1) for model in (first, second)]
    return torch.equal(*draws)


@pytest.mark.slow
def test_a_run_names_it_and_a_model_keeps_the_name(written: Path) -> None:
    run = simfer.run(written, workdir=written.parent / "run", quiet=True)
    name = f"{written.parent / 'mine.py'}:later"
    assert run.model.estimator.settings.symmetry.model_dump()["declared"] == name
    assert same(simfer.load(written.parent / "run").model, run.model)
    with pytest.raises(
        ModelFormatError, match=r"the symmetry `.*mine.py:later` is your own, .* hand it over, load\(folder"
    ):
        simfer.load(written.parent / "run" / "model")
    for key in ("later", name):
        assert same(simfer.load(written.parent / "run" / "model", modules={key: shift}), run.model)


def test_the_command_line_checks_it(simfer_cli: Any, written: Path) -> None:
    code, out, _ = simfer_cli("check-symmetry", written.name, "--rows", "200")
    assert code == 0
    assert "symmetric under moving tau" in out
    written.write_text(json.dumps(CONFIG).replace("mine.py:later", "mine.py:latter"))
    code, _, err = simfer_cli("plan", written.name)
    assert code == 2
    assert "`train.symmetry`: `mine.py` has no `latter`; did you mean `later`" in err


@pytest.mark.parametrize(
    ("declared", "says"),
    [
        ("mine.py:nothing", "must give a Symmetry; NoneType has no act_theta"),
        ("mine.py:alone", r"must take \(prior, observables\)"),
        ("mine.py:number", "must be a Symmetry, or a function that makes one; got int"),
        ("other.py:later", "no file"),
        ("no_such_module:later", "no module `no_such_module`"),
        ("later", "must be declarations, module:Object or file.py:Object; got `later`"),
    ],
)
def test_what_is_no_symmetry_is_named_before_anything_runs(declared: str, says: str, written: Path) -> None:
    written.write_text(json.dumps(CONFIG).replace("mine.py:later", declared))
    with pytest.raises(ConfigError, match=says):
        simfer.run(written, workdir=written.parent / "run", quiet=True)
    assert not (written.parent / "run").exists()


@pytest.mark.parametrize("source", [shift, shift(), DampedOscillator.symmetry])
def test_objects_functions_and_declarations_may_be_handed_over(source: Any, tmp_path: Path) -> None:
    """In Python the object itself takes the place of its name; it is saved by where it is defined."""
    settings = EstimatorSettings(symmetry=SymmetrySettings(kernel=0.1, iterations=2, declared=source))
    model = Model(build_estimator(PRIOR, OBSERVABLES, settings), PRIOR)
    model.save(tmp_path / "model")
    if isinstance(source, dict):
        assert same(load_model(tmp_path / "model"), model)
        return
    with pytest.raises(ModelFormatError, match="hand it over"):
        load_model(tmp_path / "model")
    assert settings.symmetry is not None
    assert same(load_model(tmp_path / "model", modules={settings.symmetry.declared.name: source}), model)


def test_training_imports_what_its_settings_name(written: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(written.parent)
    rng = np.random.default_rng(0)
    theta = PRIOR.sample(200, rng)
    x = DampedOscillator().simulate(theta, rng)
    estimator = EstimatorSettings(symmetry=SymmetrySettings(by="augmentation", declared="mine.py:later"))
    training = TrainingSettings(epochs=1)
    model = simfer.train(theta, x, PRIOR, estimator=estimator, training=training, observables=OBSERVABLES)
    assert isinstance(model.estimator.settings.symmetry.declared, NamedSymmetry)


def test_a_name_alone_is_not_imported() -> None:
    with pytest.raises(SymmetryError, match="a model imports nothing"):
        own_symmetry(PRIOR, OBSERVABLES, "os:system")
