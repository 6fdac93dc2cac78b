r"""Is a sample uniform? One exact test and one simultaneous band, shared by SBC, coverage and TARP.

The empirical distribution function of N values is looked at on a grid :math:`z_k = k / K`, where the counts are
binomial. The statistic is the smallest two-sided binomial tail over the grid; its exact null distribution comes from
the counts being a Poisson process conditioned on its total, which turns the probability of staying inside a band into
a chain of convolutions. The band that a correct sample stays inside with probability :math:`1 - \alpha`, everywhere at
once, is the set of counts whose tail is above the statistic's :math:`\alpha` quantile. Säilynoja, Bürkner & Vehtari
(2022), "Graphical test for discrete uniformity", https://arxiv.org/abs/2103.10522, section 2, whose null is simulated.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import scipy
from jaxtyping import Float


@dataclass(frozen=True, slots=True)
class Uniformity:
    """The test's outcome.

    Attributes:
        p_value: Exact; below 1e-12 it is rounding.
        levels: The grid.
        ecdf: Fraction of values at or below each level.
        lower: Simultaneous band, lower edge.
        upper: Simultaneous band, upper edge.
    """

    p_value: float
    levels: Float[np.ndarray, "level"]
    ecdf: Float[np.ndarray, "level"]
    lower: Float[np.ndarray, "level"]
    upper: Float[np.ndarray, "level"]


def uniformity_test(u: Float[np.ndarray, "value"], *, alpha: float = 1e-3) -> Uniformity:
    """Test that independent values in [0, 1] are uniform.

    Args:
        u: The values.
        alpha: The band holds with probability ``1 - alpha``; it is left somewhere if and only if p < alpha.
    """
    n, k = len(u), min(100, len(u))
    levels = np.arange(1, k) / k
    counts = np.searchsorted(np.sort(u), levels, side="right")
    cdf, sf = _tails(n, k)
    rows = np.arange(k - 1)
    gamma = float(np.minimum(cdf[rows, counts], sf[rows, counts]).min())
    low, high = _band(n, k, _critical(n, k, alpha))
    return Uniformity(_p_value(n, k, gamma), levels, counts / n, low / n, high / n)


@lru_cache(maxsize=16)
def _tails(n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """P(C ≤ c) and P(C ≥ c) for every grid point and count, each ``(k - 1, n + 1)``."""
    counts, levels = np.arange(n + 1), (np.arange(1, k) / k)[:, None]
    cdf = scipy.stats.binom.cdf(counts, n, levels)
    return np.asarray(cdf), np.asarray(scipy.stats.binom.sf(counts - 1, n, levels))


def _band(n: int, k: int, gamma: float) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest count at each level whose tails both exceed gamma."""
    cdf, sf = _tails(n, k)
    return (cdf <= gamma).sum(1), (sf > gamma).sum(1) - 1


def _p_value(n: int, k: int, gamma: float) -> float:
    """P(smallest tail ≤ gamma) for n uniform values."""
    low, high = _band(n, k, gamma)
    step = scipy.stats.poisson.pmf(np.arange(n + 1), n / k)
    step = step[: np.flatnonzero(step > 1e-300)[-1] + 1]
    inside, start = np.ones(1), 0
    for bottom, top in zip([*low, n], [*high, n], strict=True):
        if bottom > top:
            return 1.0
        spread = np.convolve(inside, step)
        left, right = max(bottom, start), min(top, start + len(spread) - 1)
        if left > right:
            return 1.0
        inside, start = spread[left - start : right - start + 1], left
    return float(np.clip(1 - inside[0] / scipy.stats.poisson.pmf(n, n), 0.0, 1.0))


@lru_cache(maxsize=16)
def _critical(n: int, k: int, alpha: float) -> float:
    """The largest gamma whose p-value is below alpha, by bisection: p-values rise with gamma, in steps."""
    below, above = np.log(alpha / (4 * k)), 0.0  # the union bound holds below; above, every sample is extreme
    while above - below > 1e-9:
        middle = (below + above) / 2
        if _p_value(n, k, float(np.exp(middle))) < alpha:
            below = middle
        else:
            above = middle
    return float(np.exp(below))
