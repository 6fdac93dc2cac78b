"""A simulator that fails with a known probability: it is learned, and restricts the prior as Bayes' rule says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simfer.data.errors import ShapeError, UnsupportedError
from simfer.estimators.settings import TrainingSettings
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


@pytest.mark.slow
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


class Fixed(Validity):
    """Valid with one probability everywhere."""

    def __init__(self, probability: float) -> None:
        self.prior, self.probability = GaussianLinear().prior, probability

    def log_prob(self, theta):
        return torch.full(theta.shape[:-1], np.log(self.probability))


def test_draws_are_refused_below_one_in_ten_thousand_and_not_above() -> None:
    assert Fixed(5e-4).sample(5, np.random.default_rng(5)).shape == (5, 10)
    with pytest.raises(UnsupportedError, match=r"almost nowhere valid: \d of 100000 draws"):
        Fixed(1e-6).sample(5, np.random.default_rng(6))


class Universes(Fragile):
    group_size = 4


def test_rows_of_one_theta_are_not_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr("simfer.estimators.validity.train_estimator", lambda network, *rows, **_: seen.extend(rows[:2]))
    learn_validity(
        simulate(Universes(), 1000, tmp_path / "s.zarr"), training=TrainingSettings(epochs=1, validation=0.111)
    )
    learn, validate = ({tuple(row) for row in rows.theta.tolist()} for rows in seen)
    assert (len(learn), len(validate)) == (222, 28)
    assert not learn & validate


def test_there_must_be_something_to_learn(tmp_path: Path) -> None:
    store = simulate(GaussianLinear(), 100, tmp_path / "s.zarr")
    with pytest.raises(ShapeError, match=r"of 100 in .* all are valid"):
        learn_validity(store)


@pytest.mark.slow
def test_a_sharp_border_is_learned_from_few_rows(tmp_path: Path) -> None:
    class Half(GaussianLinear):
        def simulate(self, theta, rng, context=None):
            x = super().simulate(theta, rng)["x"]
            return {"x": np.where(theta[:, :1] > 0, np.nan, x)}

    validity = learn_validity(simulate(Half(), 1000, tmp_path / "s.zarr", seed=1))
    draws = validity.sample(2000, np.random.default_rng(0))
    assert (draws[:, 0] > 0).mean() < 0.06
    assert validity.log_prob(draws[:5]).shape == (5,)
