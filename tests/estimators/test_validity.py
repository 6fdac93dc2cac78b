"""A simulator that fails with a known probability: it is learned, and restricts the prior as Bayes' rule says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from simfer.data.errors import ShapeError
from simfer.estimators.validity import Validity, learn_validity
from simfer.simulators.campaign import simulate
from simfer.simulators.gaussian_linear import GaussianLinear


class Fragile(GaussianLinear):
    """x is NaN with probability 1 / (1 + exp(1 + 8 theta_1))."""

    def simulate(self, theta, rng, context=None):
        x = super().simulate(theta, rng)["x"]
        x[rng.random(len(theta)) < 1 - truth(theta)] = np.nan
        return {"x": x}


def truth(theta: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-(1 + 8 * theta[:, 0]))))


@pytest.fixture(scope="module")
def validity(tmp_path_factory: pytest.TempPathFactory) -> Validity:
    return learn_validity(simulate(Fragile(), 20_000, tmp_path_factory.mktemp("v") / "s.zarr", seed=1), seed=2)


def test_the_probability_is_learned(validity: Validity) -> None:
    theta = validity.prior.sample(5000, np.random.default_rng(3))
    learned = validity.log_prob(torch.from_numpy(theta)).exp().detach().numpy()
    assert np.abs(learned - truth(theta)).mean() < 0.03


def test_the_restricted_prior_is_prior_times_probability(validity: Validity) -> None:
    rng = np.random.default_rng(4)
    restricted, prior = validity.sample(20_000, rng), validity.prior.sample(20_000, rng)
    weight = truth(prior) / truth(prior).sum()
    expected = weight @ prior
    assert abs(expected[0]) > 0.1  # it is another distribution than the prior
    np.testing.assert_allclose(restricted.mean(0), expected, atol=0.03)


def test_there_must_be_something_to_learn(tmp_path: Path) -> None:
    store = simulate(GaussianLinear(), 100, tmp_path / "s.zarr")
    with pytest.raises(ShapeError, match=r"of 100 in .* all are valid"):
        learn_validity(store)
