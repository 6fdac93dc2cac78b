r"""Simulation-based calibration: ranks of the truth among posterior draws, one parameter at a time.

If q is the posterior, the rank of :math:`\theta^*_i` among S draws from :math:`q(\cdot | x_i)` is uniform on
:math:`\{0, \dots, S\}`. Talts et al. (2018), https://arxiv.org/abs/1804.06788. Ranks are made continuous,
:math:`u = (r + v) / (S + 1)` with :math:`v \sim U(0, 1)`, so that u is uniform exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import CheckResult, says_p, verdict
from .calibration import CalibrationSet
from .plots import draw_ecdf_difference
from .uniformity import Uniformity, uniformity_test

BLIND_TO = "SBC looks at one parameter at a time: it cannot see wrong correlations, nor a posterior that ignores x, such as the prior."


@dataclass(frozen=True, slots=True)
class SBC:
    """Ranks of every parameter.

    Args:
        alpha: A correct posterior fails this often, whatever the number of parameters.
        seed: Of the tie-breaking.
    """

    alpha: float = 1e-3
    seed: int = 0
    name: ClassVar[str] = "sbc"

    def __call__(self, calibration: CalibrationSet) -> CheckResult:
        u = ranks(calibration, self.seed)
        names = calibration.parameters.names
        tests = {n: uniformity_test(u[:, i], alpha=self.alpha / len(names)) for i, n in enumerate(names)}
        worst = min(names, key=lambda name: tests[name].p_value)
        p_value = min(1.0, len(names) * tests[worst].p_value)
        finding, advice = _words(worst, u[:, names.index(worst)], p_value, self.alpha)
        return CheckResult(
            name=self.name,
            title="SBC: ranks of each parameter",
            verdict=verdict(p_value, self.alpha),
            p_value=p_value,
            threshold=self.alpha,
            statistics={f"p_{name}": test.p_value for name, test in tests.items()},
            finding=finding,
            advice=advice,
            blind_to=BLIND_TO,
            curves=_curves(tests),
            draw=draw_ecdf_difference,
        )


def ranks(calibration: CalibrationSet, seed: int) -> np.ndarray:
    """Continuous ranks in (0, 1), shape ``(pair, parameter)``."""
    below = (calibration.draws < calibration.theta[:, None]).sum(1)
    # (seed, k): a stream of its own, whatever seed the pairs were made with
    jitter = np.random.default_rng((seed, 1)).uniform(size=below.shape)
    return np.asarray((below + jitter) / (calibration.draws.shape[1] + 1))


def _curves(tests: dict[str, Uniformity]) -> dict[str, np.ndarray]:
    first = next(iter(tests.values()))
    shared = {"levels": first.levels, "lower": first.lower, "upper": first.upper}
    return {**shared, **{f"ecdf:{name}": test.ecdf for name, test in tests.items()}}


def _words(name: str, u: np.ndarray, p_value: float, alpha: float) -> tuple[str, str]:
    if p_value >= alpha:
        return f"ranks of every parameter are uniform ({says_p(p_value)})", "Nothing to do."
    bias, excess = u.mean() - 0.5, 12 * u.var() - 1
    if abs(bias) > 0.25 * abs(excess):
        side = "too high" if bias < 0 else "too low"
        return (
            f"the posterior of `{name}` lies {side} ({says_p(p_value)}, mean rank {u.mean():.2f})",
            "Look for a summary that loses information, train longer, or simulate more.",
        )
    side, cure = _width(excess)
    return f"the posterior of `{name}` is {side} ({says_p(p_value)})", cure


def _width(excess: float) -> tuple[str, str]:
    if excess > 0:
        return "too narrow", "Simulate more, raise `weight_decay`, or make the network smaller: it is overconfident."
    return "too wide", "Train longer or make the network larger: it has not learned all that x says."
