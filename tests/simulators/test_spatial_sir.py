"""The epidemic on a grid: its neighbourhood, its limits and its reading."""

from __future__ import annotations

import numpy as np
from scipy.ndimage import convolve

from simfer.simulators.spatial_sir import SpatialSIR, infected_cells, neighbours


def test_neighbours_are_the_eight_around() -> None:
    cells = np.random.default_rng(0).random((3, 30, 30)) < 0.3
    kernel = np.ones((3, 3), int)
    kernel[1, 1] = 0
    for one, counted in zip(cells, neighbours(cells), strict=True):
        np.testing.assert_array_equal(counted, convolve(one.astype(int), kernel, mode="constant"))


def test_without_infection_or_recovery_only_the_seeds_stay() -> None:
    cells = infected_cells(np.zeros((20_000, 2)), np.random.default_rng(1))
    assert abs(cells.mean() - 4 / 900) < 5 * np.sqrt(4 / 900 / cells.size)


def test_certain_infection_fills_the_block_around_each_seed() -> None:
    """With beta = 8 one infected neighbour is enough: after ten steps every cell within ten of a seed."""
    infection = infected_cells(np.tile([8.0, 0.0], (20, 1)), np.random.default_rng(2))
    seeds = infected_cells(np.zeros((20, 2)), np.random.default_rng(2))
    for grown, seeded in zip(infection, seeds, strict=True):
        np.testing.assert_array_equal(grown, convolve(seeded.astype(int), np.ones((21, 21), int), mode="constant") > 0)


def test_certain_recovery_lasts_two_steps() -> None:
    """A cell that recovers in a step is still infected in the next: without contacts nobody is left after ten."""
    assert not infected_cells(np.tile([0.0, 1.0], (100, 1)), np.random.default_rng(3)).any()


def test_cells_are_read_as_beta_of_their_state() -> None:
    """Beta(I + .05, 1 − I + .05) has mean (I + .05) / 1.1."""
    x = SpatialSIR().simulate(np.tile([1e-9, 1e-9], (2000, 1)), np.random.default_rng(4))["x"]
    share = 4 / 900
    sd = np.sqrt(x.var() / x.size)
    assert abs(x.mean() - (share + 0.05) / 1.1) < 5 * sd
    assert (x > 0).all()
    assert (x < 1).all()
    assert np.isfinite(np.log(x) - np.log1p(-x)).all()


def test_rows_have_noise_of_their_own_and_nan_stays_alone() -> None:
    theta = np.tile([2.0, 0.3], (5, 1))
    x = SpatialSIR().simulate(theta, np.random.default_rng(5))["x"]
    assert len(np.unique(x, axis=0)) == 5
    theta[2] = np.nan
    spoilt = SpatialSIR().simulate(theta, np.random.default_rng(5))["x"]
    np.testing.assert_array_equal(np.delete(spoilt, 2, 0), np.delete(x, 2, 0))
    assert np.isnan(spoilt[2]).all()
