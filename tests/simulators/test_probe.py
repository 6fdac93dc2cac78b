"""What is noticed before a campaign begins."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest

from simfer.data import registry
from simfer.simulators.base import Simulator
from simfer.simulators.campaign import Reference, simulate
from simfer.simulators.two_moons import TwoMoons


class Centred(TwoMoons):
    """Subtracts the mean of its batch."""

    def simulate(self, theta, rng, context=None):
        x = super().simulate(theta, rng)["x"]
        return {"x": x - x.mean(0)}


class CentredAfterRejection(Centred):
    """The same, with a use of the generator that depends on theta."""

    def simulate(self, theta, rng, context=None):
        rng.random(int(100 * abs(theta[1:, 0]).sum()))
        return super().simulate(theta, rng)


class Rejects(TwoMoons):
    """Independent rows, though no generator shows it."""

    def simulate(self, theta, rng, context=None):
        rng.random(int(100 * abs(theta[1:, 0]).sum()))
        return super().simulate(theta, rng)


class OwnSeed(TwoMoons):
    def simulate(self, theta, rng, context=None):
        return super().simulate(theta, np.random.default_rng())


def warnings_of(simulator: Simulator, path: Path, caplog: pytest.LogCaptureFixture) -> list[str]:
    with caplog.at_level(logging.WARNING, "simfer"):
        simulate(simulator, 50, path / "s.zarr")
    return [record.message for record in caplog.records]


@pytest.mark.parametrize("simulator", [Centred(), CentredAfterRejection()], ids=lambda s: type(s).__name__)
def test_rows_that_depend_on_each_other_are_noticed(
    simulator: Simulator, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (message,) = warnings_of(simulator, tmp_path, caplog)
    assert "lets rows of one batch depend on each other" in message


def test_a_generator_that_is_ignored_is_noticed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (message,) = warnings_of(OwnSeed(), tmp_path, caplog)
    assert "gives other data for the same `rng`" in message


def test_independent_rows_are_left_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(Rejects(), tmp_path, caplog) == []


@pytest.mark.parametrize("name", registry.names("simulators"))
def test_shipped_simulators_give_no_cause(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert warnings_of(Reference(name).load(), tmp_path, caplog) == []
