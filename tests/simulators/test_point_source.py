"""The point source: where its light goes, and what the context changes."""

from __future__ import annotations

import numpy as np
import pytest

from simfer.data.errors import ContractError
from simfer.simulators.point_source import PointSource, expected_image


def _context(rows: int, width: float = 1.2, background: float = 20.0) -> dict[str, np.ndarray]:
    return {"psf_width": np.full(rows, width), "background": np.full(rows, background)}


def test_light_is_conserved_and_centred() -> None:
    """Rows and columns in pixels, a pixel's centre at a half; a narrow source near the middle loses nothing."""
    image = expected_image(np.array([[1000.0, 7.3, 9.1]]), _context(1, width=0.8))[0] - 20.0
    centres = np.arange(16) + 0.5
    np.testing.assert_allclose(image.sum(), 1000.0, rtol=1e-6)
    np.testing.assert_allclose((image.sum(0) @ centres, image.sum(1) @ centres), (7300.0, 9100.0), rtol=1e-6)


def test_width_is_that_of_the_point_spread_function_and_the_pixel() -> None:
    """The variance along an axis is w² + 1/12, the second term for a pixel of width one (Sheppard)."""
    image = expected_image(np.array([[1.0, 8.0, 8.0]]), _context(1, width=1.2, background=0.0))[0]
    centres = np.arange(16) + 0.5
    np.testing.assert_allclose(image.sum(0) @ (centres - 8) ** 2, 1.2**2 + 1 / 12, rtol=1e-4)


def test_counts_are_poisson() -> None:
    theta, context = np.tile([2000.0, 7.3, 9.1], (5000, 1)), _context(5000)
    image = PointSource().simulate(theta, np.random.default_rng(0), context)["image"].astype(float)
    mean = expected_image(theta[:1], _context(1))[0]
    assert (np.abs(image.mean(0) - mean) < 5 * np.sqrt(mean / 5000)).all()
    np.testing.assert_allclose(image.var(0), mean, rtol=0.15)


def test_rows_are_apart_whatever_their_neighbours() -> None:
    theta, context = PointSource.prior.sample(6, np.random.default_rng(1)), _context(6)
    whole = PointSource().simulate(theta, np.random.default_rng(2), context)["image"]
    theta[1], theta[2] = np.nan, PointSource.prior.sample(1, np.random.default_rng(3))
    spoilt = PointSource().simulate(theta, np.random.default_rng(2), context)["image"]
    np.testing.assert_array_equal(spoilt[[0, 3, 4, 5]], whole[[0, 3, 4, 5]])
    assert np.isnan(spoilt[1]).all()


def test_context_is_required() -> None:
    with pytest.raises(ContractError, match="`context` of PointSource must give psf_width and background; got None"):
        PointSource().simulate(np.array([[1000.0, 8.0, 8.0]]), np.random.default_rng(0))


def test_a_wrong_width_is_less_likely() -> None:
    theta = PointSource.prior.sample(200, np.random.default_rng(4))
    x = PointSource().simulate(theta, np.random.default_rng(5), _context(200))
    right, wrong = (PointSource().log_likelihood(theta, x, _context(200, width=w)).mean() for w in (1.2, 1.8))
    assert right > wrong + 5
