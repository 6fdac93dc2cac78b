"""Checks on an exact posterior and on posteriors broken on purpose: theta ~ N(0, I), x = theta + N(0, s²)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from simfer.data import registry
from simfer.data.errors import ShapeError
from simfer.data.variables import Variable, Variables
from simfer.diagnostics.base import CheckResult
from simfer.diagnostics.calibration import CalibrationSet
from simfer.diagnostics.coverage import Coverage
from simfer.diagnostics.sbc import SBC
from simfer.diagnostics.tarp import TARP, fractions, references
from simfer.estimators.base import Posterior
from simfer.simulators.prior import Prior

PAIRS, DRAWS, DIM, NOISE = 2000, 500, 3, 0.5
SHRINK = 1 / (1 + NOISE**2)
SD = NOISE * SHRINK**0.5


def pairs(
    sd: float = 1.0, shift: float = 0.0, prior: bool = False, seed: int = 0, many: tuple[int, int] = (PAIRS, DRAWS)
) -> CalibrationSet:
    """The exact posterior with its sd multiplied, or shifted by so many sd, or replaced by the prior."""
    rng = np.random.default_rng(seed)
    theta = rng.standard_normal((many[0], DIM))
    x = theta + NOISE * rng.standard_normal(theta.shape)
    mean, width = (0 * x, 1.0) if prior else (SHRINK * x + shift * SD, sd * SD)
    draws = mean[:, None] + width * rng.standard_normal((*many, DIM))

    def log_q(values: np.ndarray, centre: np.ndarray) -> np.ndarray:
        return scipy.stats.norm.logpdf(values, centre, width).sum(-1)

    parameters = Variables(Variable(name) for name in "abc")
    return CalibrationSet(parameters, theta, x, draws, log_q(theta, mean), log_q(draws, mean[:, None]))


CHECKS = {"sbc": SBC(), "coverage": Coverage(), "tarp": TARP()}
EVERY = pytest.mark.parametrize("name", list(CHECKS))


def test_every_registered_check_is_tested_here() -> None:
    assert set(registry.names("checks")) == {*CHECKS, "attack"}  # which reads no calibration set: test_attacks.py


@pytest.mark.slow
@EVERY
def test_an_exact_posterior_passes_and_its_p_values_are_uniform(name: str) -> None:
    p = np.array([CHECKS[name](pairs(seed=seed, many=(600, 200))).p_value for seed in range(40)])
    assert (p > 1e-3 / 40).all()
    if name == "sbc":  # Bonferroni over parameters is conservative: p-values may only be too large
        assert scipy.stats.kstest(p, "uniform", alternative="greater").pvalue > 1e-3
    else:
        assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


@EVERY
def test_too_narrow_by_0_7_fails_every_check(name: str) -> None:
    result = CHECKS[name](pairs(sd=0.7))
    assert result.p_value < 1e-3
    assert result.verdict == "fail"
    assert "narrow" in result.finding or "simulate more" in result.advice or name == "tarp"


def test_too_wide_is_told_from_too_narrow() -> None:
    assert "too wide" in SBC()(pairs(sd=1.5)).finding
    assert "too narrow" in SBC()(pairs(sd=0.7)).finding
    assert "underconfident" in Coverage()(pairs(sd=1.5)).advice
    assert "overconfident" in Coverage()(pairs(sd=0.7)).advice


def test_a_shift_of_0_3_sd_fails_sbc_and_the_others_say_what_they_cannot_see() -> None:
    result = SBC()(pairs(shift=0.3))
    assert result.p_value < 1e-3
    assert "too high" in result.finding
    assert "a shift that is small" in Coverage()(pairs(shift=0.3)).blind_to
    assert "a small shift of one parameter" in TARP()(pairs(shift=0.3)).blind_to


def test_only_tarp_sees_the_prior_posing_as_posterior() -> None:
    broken = pairs(prior=True)
    assert SBC()(broken).passed
    assert Coverage()(broken).passed
    result = TARP()(broken)
    assert result.p_value < 1e-3
    assert "ignores part of x" in result.advice
    assert "ignores x" in SBC()(broken).blind_to
    assert "ignores x" in Coverage()(broken).blind_to


def test_x_independent_references_cannot_see_the_prior() -> None:
    """Lemos et al. (2023), section 4.2: why the references must depend on x."""
    broken = pairs(prior=True)
    independent = np.random.default_rng(99).standard_normal(broken.theta.shape)
    assert scipy.stats.kstest(fractions(broken, independent), "uniform").pvalue > 1e-3
    dependent = references(broken, noise=0.5, seed=0)
    assert scipy.stats.kstest(fractions(broken, dependent), "uniform").pvalue < 1e-3


@pytest.mark.parametrize(("guess", "statistic"), [("range", None), ("x0+u", 0.398), ("x0", 0.832)])
def test_tarp_of_the_published_uninformative_estimator(guess: str, statistic: float | None) -> None:
    """theta ~ N(0, 1), 50 observations N(theta, 0.1), prior draws as posterior; KS statistics by reference law."""
    rng = np.random.default_rng(0)
    n = 500
    theta = rng.standard_normal((n, 1))
    x = theta + 0.1 * rng.standard_normal((n, 50))
    draws = rng.standard_normal((n, 1000, 1))
    dummy = np.zeros((n, 1000))
    calibration = CalibrationSet(Variables([Variable("mu")]), theta, x, draws, dummy[:, 0], dummy)
    scale = np.subtract(*np.quantile(theta, [0.75, 0.25])) / 1.349
    raw = {"range": rng.uniform(-3, 3, n), "x0+u": x[:, 0] + rng.uniform(-1, 1, n), "x0": x[:, 0]}[guess]
    found = scipy.stats.kstest(fractions(calibration, (raw[:, None] - np.median(theta)) / scale), "uniform")
    if statistic is None:
        assert found.pvalue > 1e-3
    else:
        assert found.statistic == pytest.approx(statistic, abs=0.06)


def test_references_do_not_look_at_their_own_truth() -> None:
    """Changing a pair's theta must not move its own reference, nor an earlier one."""
    first = pairs()
    changed = CalibrationSet(
        first.parameters, first.theta.copy(), first.x, first.draws, first.log_q_theta, first.log_q_draws
    )
    changed.theta[1500] = changed.theta[1501]
    before, after = (references(c, noise=0.5, seed=0) for c in (first, changed))
    np.testing.assert_allclose(
        before[:1501], after[:1501], atol=0.02
    )  # the common scale moves by rounding of quantiles
    assert not np.allclose(before[1500:], after[1500:], atol=0)


@EVERY
def test_figures_and_json_of_every_check(name: str, tmp_path: Path) -> None:
    import json

    import matplotlib as mpl

    mpl.use("Agg")
    result: CheckResult = CHECKS[name](pairs())
    axes = result.plot()
    axes.figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 5000
    json.dumps(result.to_json(), allow_nan=False)


def test_calibration_set_survives_the_disk(tmp_path: Path) -> None:
    first = pairs()
    first.save(tmp_path / "c.zarr")
    again = CalibrationSet.load(tmp_path / "c.zarr")
    for name in ("theta", "x", "draws", "log_q_theta", "log_q_draws"):
        np.testing.assert_array_equal(getattr(first, name), getattr(again, name))
    assert again.parameters == first.parameters
    assert SBC()(first).p_value == SBC()(again).p_value


class Standard(Posterior):
    """N(x, 1) of one parameter."""

    observables = Variables([Variable("x")])
    prior = Prior({"a": {"dist": "Normal", "loc": 0.0, "scale": 1.0}})

    def __init__(self, at_once: int | None) -> None:
        self.at_once = at_once

    def sample_with_log_prob(self, sample_shape, x, *, seed=None):
        torch.manual_seed(seed)
        noise = torch.randn(*sample_shape, len(x["x"]), 1).double()
        return noise + torch.as_tensor(x["x"])[:, None], -0.5 * noise[..., 0] ** 2

    def log_prob_batched(self, theta, x, track_gradients=False):
        return -0.5 * (theta[..., 0] - torch.as_tensor(x["x"])) ** 2

    sample_batched = rsample = to = sample_with_log_prob  # type: ignore[assignment]


@pytest.mark.parametrize(("at_once", "portions"), [(None, [70]), (30, [30, 30, 10]), (70, [70])])
def test_pairs_are_asked_in_portions_that_share_no_random_numbers(at_once: int | None, portions: list[int]) -> None:
    x = np.arange(70.0)
    told: list[int] = []
    found = CalibrationSet.draw(Standard(at_once), x[:, None] + 1.0, x, draws=25, seed=3, progress=told.append)
    assert told == portions
    np.testing.assert_allclose(found.log_q_theta, -0.5)
    noise = found.draws[..., 0] - x[:, None]
    np.testing.assert_allclose(found.log_q_draws, -0.5 * noise**2, atol=1e-6)
    assert len(np.unique(noise.round(6))) > 0.99 * noise.size
    whole = CalibrationSet.draw(Standard(None), x[:, None], x, draws=25, seed=3).draws
    assert np.array_equal(found.draws, whole) == (len(portions) == 1)


def test_shapes_that_do_not_fit_are_named() -> None:
    good = pairs()
    with pytest.raises((ShapeError, TypeError)):  # TypeError where shapes are checked by annotation, as in these tests
        CalibrationSet(good.parameters, good.theta[:, :2], good.x, good.draws, good.log_q_theta, good.log_q_draws)
    with pytest.raises(ShapeError, match="at least 20 pairs"):
        CalibrationSet(
            good.parameters, good.theta[:5], good.x[:5], good.draws[:5], good.log_q_theta[:5], good.log_q_draws[:5]
        )
