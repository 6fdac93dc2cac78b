"""The tasks of the SBI benchmark against independent formulas, moments, and what the benchmark ships."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.linalg
import scipy.special
import scipy.stats

from simfer.data.errors import UnknownNameError
from simfer.simulators.benchmark import observations
from simfer.simulators.bernoulli_glm import BernoulliGLM, design
from simfer.simulators.bernoulli_glm_raw import BernoulliGLMRaw
from simfer.simulators.campaign import Reference
from simfer.simulators.gaussian_linear import GaussianLinear
from simfer.simulators.gaussian_linear_uniform import GaussianLinearUniform
from simfer.simulators.gaussian_mixture import GaussianMixture
from simfer.simulators.slcp import SLCP
from simfer.simulators.slcp_distractors import SLCPDistractors, mixture

OURS = (
    "bernoulli_glm",
    "bernoulli_glm_raw",
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "slcp",
    "slcp_distractors",
    "two_moons",
)


def pairs(simulator: Any, rows: int = 5) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """theta, x and our log-likelihood."""
    rng = np.random.default_rng(0)
    theta = simulator.prior.sample(rows, rng)
    x = simulator.simulate(theta, rng)
    return theta, x, simulator.log_likelihood(theta, x)


def slcp_covariance(theta: np.ndarray) -> np.ndarray:
    s1, s2, rho = theta[2] ** 2, theta[3] ** 2, np.tanh(theta[4])
    return np.array([[s1**2 + 1e-6, rho * s1 * s2], [rho * s1 * s2, s2**2 + 1e-6]])


def slcp_density(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    return np.array(
        [
            scipy.stats.multivariate_normal.logpdf(points.reshape(4, 2), t[:2], slcp_covariance(t)).sum()
            for t, points in zip(theta, x, strict=True)
        ]
    )


@pytest.mark.parametrize("task", OURS)
def test_ten_observations_of_the_right_shape(task: str) -> None:
    simulator: Any = Reference(task).load()
    for k in range(1, 11):
        assert len(simulator.observations[f"observation_{k}"]["x"]) == simulator.observables["x"].size


@pytest.mark.parametrize(("task", "size"), [("sir", 10), ("lotka_volterra", 20)])
def test_observations_of_the_benchmarks_other_tasks(task: str, size: int) -> None:
    assert [len(x["counts"]) for x in observations(task, "counts").values()] == [size] * 10


def test_unknown_task_is_named() -> None:
    with pytest.raises(UnknownNameError, match="did you mean `slcp`"):
        observations("slpc")


@pytest.mark.parametrize("simulator", [GaussianLinear(), GaussianLinearUniform()], ids=["normal", "uniform"])
def test_gaussian_linear_density_is_scipys(simulator: Any) -> None:
    theta, x, density = pairs(simulator)
    expected = scipy.stats.norm.logpdf(x["x"], theta, np.sqrt(0.1)).sum(1)
    np.testing.assert_allclose(density, expected, rtol=1e-10)


def test_gaussian_linear_uniform_fills_the_box() -> None:
    theta = GaussianLinearUniform.prior.sample(20_000, np.random.default_rng(0))
    assert scipy.stats.kstest(theta.ravel(), scipy.stats.uniform(-1, 2).cdf).pvalue > 1e-3


def test_gaussian_mixture_density_is_scipys() -> None:
    theta, x, density = pairs(GaussianMixture())
    each = [scipy.stats.norm.pdf(x["x"], theta, sd).prod(1) for sd in (1, 0.1)]
    np.testing.assert_allclose(density, np.log(np.mean(each, axis=0)), rtol=1e-10)


def test_gaussian_mixture_draws_one_component_a_row() -> None:
    """Mean square (1 + 0.01) / 2; squares of the two coordinates go together, rows do not."""
    theta = np.zeros((50_000, 2))
    x = GaussianMixture().simulate(theta, np.random.default_rng(0))["x"]
    radius = (x**2).sum(1)
    np.testing.assert_allclose((x**2).mean(0), 0.505, rtol=0.03)
    np.testing.assert_allclose(np.cov(*(x.T**2))[0, 1], (1 + 1e-4) / 2 - 0.505**2, rtol=0.1)
    assert scipy.stats.kstest(radius, lambda r: 1 - (np.exp(-r / 2) + np.exp(-r / 0.02)) / 2).pvalue > 1e-3


def test_slcp_density_is_scipys() -> None:
    theta, x, density = pairs(SLCP())
    np.testing.assert_allclose(density, slcp_density(theta, x["x"]), rtol=1e-6)


def test_slcp_points_have_their_covariance() -> None:
    theta = np.array([0.7, -2.9, -1.0, -0.9, 0.6])
    x = SLCP().simulate(np.tile(theta, (20_000, 1)), np.random.default_rng(0))["x"].reshape(-1, 2)
    np.testing.assert_allclose(x.mean(0), theta[:2], atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), slcp_covariance(theta), rtol=0.03)


def test_slcp_points_of_a_row_are_independent() -> None:
    x = SLCP().simulate(np.tile([0.0, 0.0, 1.0, 1.0, 0.5], (20_000, 1)), np.random.default_rng(0))["x"]
    between = np.corrcoef(x.T)[:2, 2:]
    assert np.abs(between).max() < 0.03


def test_distractors_hide_the_benchmarks_slcp_observations() -> None:
    permutation = mixture().permutation
    assert permutation[:10].tolist() == [87, 47, 39, 9, 25, 21, 26, 94, 41, 30]
    assert np.argsort(permutation)[:8].tolist() == [22, 33, 23, 67, 42, 21, 16, 90]
    for name, x in observations("slcp").items():
        hidden = np.array(observations("slcp_distractors")[name]["x"])
        np.testing.assert_array_equal(hidden[np.argsort(permutation)[:8]], x["x"])


def test_distractors_density_is_that_of_the_numbers_that_matter() -> None:
    theta, x, density = pairs(SLCPDistractors())
    informative = x["x"][:, [22, 33, 23, 67, 42, 21, 16, 90]]
    np.testing.assert_allclose(density, slcp_density(theta, informative), rtol=1e-6)


def test_distractors_follow_their_mixture() -> None:
    """One distractor against its marginal, a mixture of univariate Student t."""
    loc, scale, permutation = mixture()
    theta = SLCPDistractors.prior.sample(20_000, np.random.default_rng(0))
    x = SLCPDistractors().simulate(theta, np.random.default_rng(1))["x"][:, np.argsort(permutation)][:, 8 + 30]
    sd = np.sqrt((scale[:, 30] ** 2).sum(1))
    assert scipy.stats.kstest(x, lambda v: scipy.stats.t.cdf(v, 2, loc[:, [30]], sd[:, None]).mean(0)).pvalue > 1e-3


def test_glm_design_links_the_benchmarks_two_observations() -> None:
    raw, statistics = (
        np.array([x["x"] for x in observations(task).values()]) for task in ("bernoulli_glm_raw", "bernoulli_glm")
    )
    np.testing.assert_allclose(raw @ design(), statistics, atol=1e-5)


def test_glm_prior_has_the_benchmarks_precision() -> None:
    difference = np.eye(9) - np.diag(np.ones(8), -1)
    penalty = difference @ difference + np.diag(np.sqrt(np.arange(9) / 9))
    precision = scipy.linalg.block_diag(np.array([[0.5]]), penalty.T @ penalty)
    theta = BernoulliGLM.prior.sample(200_000, np.random.default_rng(0))
    whitened = theta @ np.linalg.cholesky(precision)
    np.testing.assert_allclose(np.cov(whitened.T), np.eye(10), atol=0.02)


def test_glm_density_is_scipys_for_spikes_and_the_same_for_statistics() -> None:
    theta, x, density = pairs(BernoulliGLMRaw())
    rate = scipy.special.expit(theta @ design().T)
    np.testing.assert_allclose(density, scipy.stats.bernoulli.logpmf(x["x"], rate).sum(1), rtol=1e-10)
    statistics = {"x": x["x"] @ design()}
    np.testing.assert_allclose(BernoulliGLM().log_likelihood(theta, statistics), density, rtol=1e-10)
