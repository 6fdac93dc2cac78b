r"""TARP: tests of accuracy with random points.

:math:`f_i` is the fraction of draws from :math:`q(\cdot | x_i)` that are closer than the truth to a reference point
:math:`\theta_{r,i}`. If q is the posterior, f is uniform for every law of reference points that may depend on x but not
on the truth given x; if f is uniform for all of them, q is the posterior. Lemos, Coogan et al. (2023),
https://arxiv.org/abs/2302.03026.

References that do not depend on x cannot tell the posterior from the prior. Here they are guesses of theta from x by
ridge regression plus noise, and the guess of a pair is fitted to earlier pairs alone: given those and x, f is uniform
under the null, so all f are independent and the test is exact. Distances are Euclidean in units of each parameter's spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import scipy

from ..data.errors import ShapeError
from .base import CheckResult, says_p, verdict
from .calibration import CalibrationSet
from .plots import draw_ecdf_difference
from .uniformity import uniformity_test

BLIND_TO = (
    "TARP with one law of reference points is weaker than coverage on widths in many dimensions, and weaker than SBC on "
    "a small shift of one parameter."
)


@dataclass(frozen=True, slots=True)
class TARP:
    """Coverage of balls around guesses of theta.

    Args:
        alpha: A correct posterior fails this often.
        noise: Standard deviation of the noise on the guesses, in units of each parameter's spread.
        seed: Of the noise and the tie-breaking.
    """

    alpha: float = 1e-3
    noise: float = 0.5
    seed: int = 0
    name: ClassVar[str] = "tarp"

    def __call__(self, calibration: CalibrationSet) -> CheckResult:
        f = fractions(calibration, references(calibration, self.noise, self.seed), self.seed)
        test = uniformity_test(f, alpha=self.alpha)
        deviation = float(np.abs(test.ecdf - test.levels).max())
        return CheckResult(
            name=self.name,
            title="TARP: coverage of balls around guesses from x",
            verdict=verdict(test.p_value, self.alpha),
            p_value=test.p_value,
            threshold=self.alpha,
            statistics={"max_deviation": deviation},
            finding=f"coverage departs from nominal by {deviation:.3f} at most ({says_p(test.p_value)})",
            advice=_advice(test.p_value, self.alpha),
            blind_to=BLIND_TO,
            curves={"levels": test.levels, "lower": test.lower, "upper": test.upper, "ecdf:TARP": test.ecdf},
            draw=draw_ecdf_difference,
        )


def references(calibration: CalibrationSet, noise: float, seed: int) -> np.ndarray:
    """Reference points, shape ``(pair, parameter)``: noisy guesses of theta from x, in units of each spread."""
    theta, features = _scaled(calibration.theta, calibration.theta), _scores(calibration.x)
    guess = np.zeros_like(theta)
    first = max(16, len(theta) // 16)
    edges = [first * 2**i for i in range(64) if first * 2**i < len(theta)]
    for start, stop in zip(edges, [*edges[1:], len(theta)], strict=True):
        guess[start:stop] = _ridge(features[:start], theta[:start], features[start:stop])
    return np.asarray(guess + noise * np.random.default_rng((seed, 3)).standard_normal(theta.shape))


def fractions(calibration: CalibrationSet, references: np.ndarray, seed: int = 0) -> np.ndarray:
    """f of every pair, made continuous.

    Args:
        calibration: The pairs and draws.
        references: In units of each parameter's spread around its median, shape ``(pair, parameter)``.
        seed: Of the tie-breaking.

    Raises:
        ShapeError: References of another shape.
    """
    if references.shape != calibration.theta.shape:
        raise ShapeError(f"`references` must have shape {calibration.theta.shape}; got {references.shape}")
    to_truth = np.linalg.norm(_scaled(calibration.theta, calibration.theta) - references, axis=-1)
    to_draws = np.linalg.norm(_scaled(calibration.draws, calibration.theta) - references[:, None], axis=-1)
    closer = (to_draws < to_truth[:, None]).sum(1)
    jitter = np.random.default_rng((seed, 4)).uniform(size=len(closer))
    return np.asarray((closer + jitter) / (calibration.draws.shape[1] + 1))


def _scaled(values: np.ndarray, theta: np.ndarray) -> np.ndarray:
    """Around the median and in units of the interquartile range of theta: heavy tails do not matter."""
    spread = np.subtract(*np.quantile(theta, [0.75, 0.25], axis=0)) / 1.349
    return np.asarray((values - np.median(theta, axis=0)) / np.where(spread > 0, spread, 1.0))


def _scores(x: np.ndarray) -> np.ndarray:
    """Normal scores of each feature's ranks: monotone, so counts and heavy tails are alike. A function of all x alone."""
    ranks = scipy.stats.rankdata(np.nan_to_num(x), axis=0)
    return np.asarray(scipy.stats.norm.ppf(ranks / (len(x) + 1)))


def _ridge(features: np.ndarray, theta: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Ridge regression with one unit of prior precision per feature, by whichever system is smaller."""
    centre, mean = features.mean(0), theta.mean(0)
    a, b = features - centre, theta - mean
    if a.shape[1] <= len(a):
        weights = np.linalg.solve(a.T @ a + np.eye(a.shape[1]), a.T @ b)
    else:
        weights = a.T @ np.linalg.solve(a @ a.T + np.eye(len(a)), b)
    return np.asarray(mean + (wanted - centre) @ weights)


def _advice(p_value: float, alpha: float) -> str:
    if p_value >= alpha:
        return "Nothing to do."
    return "If SBC and coverage pass, the posterior ignores part of x: enlarge the embedding or train longer. If not, mend what they say."
