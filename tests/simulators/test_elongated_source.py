"""The comet: where its light goes, and that the image moves and turns with it."""

from __future__ import annotations

import math

import numpy as np
import pytest

from simfer.simulators.elongated_source import ElongatedSource, surface_brightness

CENTRES = np.arange(32) + 0.5


def source(column: float = 15.0, row: float = 17.0, angle: float = 0.5, length: float = 2.0) -> np.ndarray:
    return np.array([[300.0, 1.5, length, column, row, angle]])


def test_light_is_conserved_and_its_mean_lies_one_length_down_the_tail() -> None:
    image = surface_brightness(source())[0]
    mean = image.sum(0) @ CENTRES / image.sum(), image.sum(1) @ CENTRES / image.sum()
    np.testing.assert_allclose(image.sum(), 300.0, rtol=1e-3)
    np.testing.assert_allclose(mean, (15 + 2 * math.cos(0.5), 17 + 2 * math.sin(0.5)), atol=0.02)


def test_variance_is_that_of_the_blur_and_along_the_tail_of_the_exponential_too() -> None:
    image = surface_brightness(source(angle=0.0, length=1.5))[0]
    along, across = image.sum(0) / image.sum(), image.sum(1) / image.sum()
    np.testing.assert_allclose(along @ (CENTRES - along @ CENTRES) ** 2, 1.5**2 + 1.5**2, rtol=0.01)
    np.testing.assert_allclose(across @ (CENTRES - across @ CENTRES) ** 2, 1.5**2, rtol=1e-3)


def test_it_is_the_blurred_exponential() -> None:
    """By a sum of Gaussians along the tail."""
    t = np.linspace(0, 60, 60_001)
    weight = np.exp(-t / 2) / 2 * (t[1] - t[0])
    u, v = np.cos(0.5) * (18.5 - 15) + np.sin(0.5) * (16.5 - 17), np.cos(0.5) * (16.5 - 17) - np.sin(0.5) * (18.5 - 15)
    blurred = np.trapezoid(weight * np.exp(-((u - t) ** 2 + v**2) / (2 * 1.5**2)), dx=1.0) / (2 * np.pi * 1.5**2)
    np.testing.assert_allclose(surface_brightness(source())[0, 16, 18], 300 * blurred, rtol=1e-5)


def test_moved_by_whole_pixels_and_turned_by_a_quarter() -> None:
    here = surface_brightness(source())[0]
    np.testing.assert_allclose(surface_brightness(source(17.0, 14.0))[0, 2:-4, 3:-3], here[5:-1, 1:-5], atol=1e-12)
    turned = surface_brightness(source(16 - 1.0, 16 - 1.0, 0.5 + math.pi / 2))[0]
    np.testing.assert_allclose(turned, np.rot90(here, axes=(1, 0)), atol=1e-12)


def test_half_a_turn_is_another_image() -> None:
    image = ElongatedSource().prior.sample(200, np.random.default_rng(0))
    half = image + np.array([0, 0, 0, 0, 0, math.pi])
    apart = np.sqrt(((surface_brightness(image) - surface_brightness(half)) ** 2).sum((1, 2)))
    assert (apart > 2).all()


@pytest.mark.parametrize("noise", [0.5, 2.0])
def test_noise_is_white_and_as_asked_for(noise: float) -> None:
    theta = np.repeat(source(), 300, axis=0)
    left = ElongatedSource(noise).simulate(theta, np.random.default_rng(1))["image"] - surface_brightness(theta)
    np.testing.assert_allclose(left.std(), noise, rtol=0.01)
    assert abs((left[:, 1:] * left[:, :-1]).mean()) < 0.01 * noise**2
