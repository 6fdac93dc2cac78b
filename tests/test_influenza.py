"""The demo, as `make demo` runs it, against 12,768 MCMC draws of the exact posterior of the real outbreak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import simfer
from simfer.pipelines.api import Run

REFERENCE = Path(__file__).parent / "reference" / "influenza_1978_reference.npz"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return simfer.run("influenza_1978", workdir=tmp_path_factory.mktemp("influenza") / "run", quiet=True)


@pytest.fixture(scope="module")
def exact() -> np.ndarray:
    with np.load(REFERENCE) as file:
        assert file["names"].tolist() == ["beta", "gamma", "phi_inv"]
        return np.asarray(file["samples"], dtype=float)


@pytest.mark.slow
def test_medians_are_within_a_tenth_of_a_standard_deviation(run: Run, exact: np.ndarray) -> None:
    off = (np.median(run.draws, axis=0) - np.median(exact, axis=0)) / exact.std(0)
    assert (np.abs(off) <= 0.1).all(), off


@pytest.mark.slow
def test_central_80_percent_intervals_have_the_right_width(run: Run, exact: np.ndarray) -> None:
    ours, theirs = (np.diff(np.quantile(draws, [0.1, 0.9], axis=0), axis=0)[0] for draws in (run.draws, exact))
    assert ((ours / theirs >= 0.85) & (ours / theirs <= 1.15)).all(), ours / theirs


@pytest.mark.slow
def test_every_check_passes(run: Run) -> None:
    assert {name: check.verdict for name, check in run.checks.items()} == dict.fromkeys(
        ("sbc", "coverage", "tarp", "predictive"), "pass"
    )


@pytest.mark.slow
def test_the_observation_is_the_published_one(run: Run) -> None:
    assert run.observation is not None
    with np.load(REFERENCE) as file:
        np.testing.assert_array_equal(run.observation["in_bed"], file["in_bed"])
