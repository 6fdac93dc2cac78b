"""What a posterior by chains cannot do is refused before a chain is run, with a remedy; a network without training tells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simfer.data.errors import UnsupportedError
from simfer.diagnostics.attacks import attack
from simfer.estimators.model import Model, build_estimator
from simfer.estimators.settings import EstimatorSettings, SymmetrySettings
from simfer.estimators.symmetry.posterior import GNPEPosterior
from simfer.simulators.damped_oscillator import DampedOscillator

X = DampedOscillator.observations["example"]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """Untrained; chains must not run."""
    symmetry = SymmetrySettings(kernel=0.1, declared=DampedOscillator.symmetry)
    prior, settings = DampedOscillator.prior, EstimatorSettings(symmetry=symmetry)

    def chains(*arguments: Any) -> Any:
        raise AssertionError("a chain was run")

    monkeypatch.setattr(GNPEPosterior, "_chains", chains)
    return Model(build_estimator(prior, DampedOscillator.observables, settings), prior)


ASKED: dict[str, Callable[[Model, Path], Any]] = {
    "map": lambda model, _: model.posterior.map(X),
    "conditional": lambda model, _: model.posterior.conditional({"tau": 3.0}, X),
    "marginal": lambda model, _: model.posterior.marginal(["tau"], X),
    "an attack": lambda model, _: attack(model.posterior, X),
    "export": lambda model, path: model.export(path / "posterior.pt2"),
}


@pytest.mark.parametrize("what", ASKED)
def test_what_chains_cannot_do_is_refused_before_they_run(what: str, model: Model, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as refused:
        ASKED[what](model, tmp_path)
    (line,) = str(refused.value).splitlines()
    assert what in line
    assert "without" in line
    assert "augmentation" in line
    assert not list(tmp_path.iterdir())
