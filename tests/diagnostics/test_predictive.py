from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from simfer.data.errors import SimulatorError
from simfer.data.variables import Variable, Variables
from simfer.diagnostics.predictive import predictive_check, replicate

OBSERVABLES = Variables([Variable("y", (5,)), Variable("n", (), "int32")])


def replicates(rng: np.random.Generator, n: int) -> dict[str, np.ndarray]:
    return {"y": rng.normal(0, 2, (n, 5)), "n": rng.poisson(6, n)}


def test_p_values_of_data_from_the_model_are_uniform(rng: np.random.Generator) -> None:
    made = replicates(rng, 2000)
    p = [
        predictive_check(made, {k: v[0] for k, v in replicates(rng, 1).items()}, OBSERVABLES).p_value
        for _ in range(500)
    ]
    assert scipy.stats.kstest(p, "uniform").pvalue > 1e-3


def test_data_from_elsewhere_fail_with_advice(rng: np.random.Generator) -> None:
    result = predictive_check(replicates(rng, 1000), {"y": np.full(5, 9.0), "n": np.array(6)}, OBSERVABLES)
    assert result.verdict == "fail"
    assert "question the simulator" in result.advice


def test_replicates_leave_out_rows_that_are_not_finite(line, rng) -> None:
    theta = line.prior.sample(100, rng)
    theta[::2] = np.nan
    assert len(replicate(line, theta, seed=0)["x"]) == 50
    with pytest.raises(SimulatorError, match="none of 100 simulations"):
        replicate(line, theta * np.nan, seed=0)
