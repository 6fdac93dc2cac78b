"""The demo, as `make demo` runs it, against 12,768 MCMC draws of the exact posterior of the real outbreak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import simfer
from simfer.pipelines.api import Run
from simfer.simulators.influenza_1978 import Influenza1978

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
def test_the_network_alone_is_within_half_a_standard_deviation_here(run: Run, exact: np.ndarray) -> None:
    """100,000 simulations do not pin down this outbreak, whose residuals are smoother than the model's: 0.1 to 0.4 sd."""
    amortised = np.array([row["median"] for row in run.summary["amortised"].values()])
    off = (amortised - np.median(exact, axis=0)) / exact.std(0)
    assert (np.abs(off) <= 0.5).all(), off


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


@pytest.mark.slow
def test_outbreaks_like_it_are_inferred_to_a_fraction_of_a_standard_deviation(run: Run, exact: np.ndarray) -> None:
    """100 data sets simulated at exact posterior draws, against importance sampling with the exact likelihood."""
    theta = exact[np.random.default_rng(5).choice(len(exact), 100)]
    counts = Influenza1978().simulate(theta, np.random.default_rng(6))["in_bed"]
    draws, log_q = run.posterior.sample_with_log_prob((2000,), {"in_bed": counts}, seed=0)
    off = np.array([_off(draws[:, i].numpy(), log_q[:, i].numpy(), counts[i]) for i in range(len(counts))])
    assert (np.abs(off.mean(0)) < 0.06).all(), off.mean(0)
    assert (np.sqrt((off**2).mean(0)) < 0.2).all(), np.sqrt((off**2).mean(0))


def _off(draws: np.ndarray, log_q: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """(mean of q − exact mean) / exact sd, the exact ones by weighting the draws with likelihood × prior / q."""
    log_likelihood = Influenza1978().log_likelihood(draws, {"in_bed": counts[None]})
    log_weight = log_likelihood + Influenza1978.prior.log_prob(torch.from_numpy(draws)).numpy() - log_q
    weight = np.exp(log_weight - log_weight.max())
    weight /= weight.sum()
    assert 1 / (weight**2).sum() > 400  # effective draws: the weights can be trusted
    exact_mean = weight @ draws
    return np.asarray((draws.mean(0) - exact_mean) / np.sqrt(weight @ (draws - exact_mean) ** 2))
