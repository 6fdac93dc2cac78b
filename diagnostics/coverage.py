r"""Expected coverage of highest-posterior-density regions.

:math:`u_i = P_{\theta \sim q(\cdot | x_i)}[q(\theta | x_i) > q(\theta^*_i | x_i)]` is the credibility of the smallest
region that holds the truth; if q is the posterior it is uniform, and a region of credibility :math:`1 - \alpha` covers
the truth with that frequency. Hermans et al. (2022), https://arxiv.org/abs/2110.06581.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from .base import CheckResult, says_p, verdict
from .calibration import CalibrationSet
from .plots import draw_ecdf_difference
from .uniformity import Uniformity, uniformity_test

LEVELS = (0.5, 0.8, 0.9, 0.95)
BLIND_TO = (
    "Coverage averages over all x: it cannot see a posterior that ignores x, such as the prior, "
    "nor a shift that is small beside the width; SBC and TARP can."
)


@dataclass(frozen=True, slots=True)
class Coverage:
    """Coverage of HPD regions at every level.

    Args:
        alpha: A correct posterior fails this often.
        seed: Of the tie-breaking.
    """

    alpha: float = 1e-3
    seed: int = 0
    name: ClassVar[str] = "coverage"

    def __call__(self, calibration: CalibrationSet) -> CheckResult:
        u = credibilities(calibration, self.seed)
        test = uniformity_test(u, alpha=self.alpha)
        covered = {level: float((u <= level).mean()) for level in LEVELS}
        finding, advice = _words(test, covered, self.alpha)
        return CheckResult(
            name=self.name,
            title="Expected coverage of HPD regions",
            verdict=verdict(test.p_value, self.alpha),
            p_value=test.p_value,
            threshold=self.alpha,
            statistics={f"coverage_{level:g}": value for level, value in covered.items()},
            finding=finding,
            advice=advice,
            blind_to=BLIND_TO,
            curves={"levels": test.levels, "lower": test.lower, "upper": test.upper, "ecdf:coverage": test.ecdf},
            draw=draw_ecdf_difference,
        )


def credibilities(calibration: CalibrationSet, seed: int) -> np.ndarray:
    """Credibility of the smallest HPD region that holds the truth, one per pair."""
    above = (calibration.log_q_draws > calibration.log_q_theta[:, None]).sum(1)
    jitter = np.random.default_rng((seed, 2)).uniform(size=len(above))
    return np.asarray((above + jitter) / (calibration.log_q_draws.shape[1] + 1))


def _words(test: Uniformity, covered: dict[float, float], alpha: float) -> tuple[str, str]:
    if test.p_value >= alpha:
        return _said(0.9, covered[0.9], test.p_value), "Nothing to do."
    worst = int(np.abs(test.ecdf - test.levels).argmax())
    level, share = float(test.levels[worst]), float(test.ecdf[worst])
    if share < level:
        advice = "The posterior is overconfident: simulate more, raise `weight_decay`, or make the network smaller."
    else:
        advice = (
            "The posterior is underconfident: train longer or make the network larger; if it is `fisher` that makes it wide, "
            "a smaller `beta` does less."
        )
    return _said(level, share, test.p_value), advice


def _said(level: float, share: float, p_value: float) -> str:
    return f"regions of credibility {100 * level:.0f} % hold the truth in {share:.1%} of cases ({says_p(p_value)})"
