"""All checks on one set of draws, in one call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..estimators.base import Posterior, XLike
from ..estimators.interop import from_sbi
from .attacks.check import Attack, ask
from .base import Check, CheckResult
from .calibration import CalibrationSet
from .coverage import Coverage
from .sbc import SBC
from .tarp import TARP

STANDARD: tuple[Check, ...] = (SBC(), Coverage(), TARP())


def check(
    posterior: Any,
    theta: Any,
    x: XLike,
    *,
    draws: int = 1000,
    checks: Sequence[Check] = STANDARD,
    seed: int = 0,
) -> dict[str, CheckResult]:
    """Check a posterior on simulated pairs that it was not trained on.

    Args:
        posterior: The one to be checked; one of sbi's will do, for which x is one tensor.
        theta: Truths from the prior, shape ``(pair, parameter)``; a thousand pairs see errors of a few percent.
        x: One row per pair, simulated at ``theta``.
        draws: Posterior draws per pair, taken once and read by every check.
        checks: Which; SBC, coverage and TARP when not given; `Attack` besides looks for perturbations.
        seed: Of the draws.

    Returns:
        Name of the check → its result.
    """
    asked = posterior if isinstance(posterior, Posterior) else from_sbi(posterior, theta, x)
    calibration = CalibrationSet.draw(asked, np.asarray(theta), x, draws=draws, seed=seed)
    results = {}
    for each in checks:
        attacked = each.attack(asked, np.asarray(theta), x, seed=seed) if isinstance(each, Attack) else None
        results[each.name] = ask(each, calibration, attacked)
    return results
