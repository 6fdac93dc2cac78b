"""What the coverage check says is what its curve shows where it departs most."""

from __future__ import annotations

import numpy as np
import pytest

from simfer.diagnostics.coverage import _words
from simfer.diagnostics.uniformity import Uniformity

LEVELS = np.linspace(0, 1, 11)
BUMP = 0.1 * np.sin(np.pi * LEVELS)


@pytest.mark.parametrize(
    ("ecdf", "finding", "advice"),
    [
        (LEVELS - BUMP, "50 % hold the truth in 40.0% of cases", "overconfident"),
        (LEVELS + BUMP, "50 % hold the truth in 60.0% of cases", "underconfident"),
    ],
)
def test_words_are_of_the_largest_departure(ecdf: np.ndarray, finding: str, advice: str) -> None:
    test = Uniformity(p_value=1e-6, levels=LEVELS, ecdf=ecdf, lower=LEVELS, upper=LEVELS)
    said = _words(test, {0.9: 0.95}, 0.01)
    assert finding in said[0]
    assert f" {advice}" in said[1]
