r"""Posterior predictive check: does the model, with parameters from the posterior, produce data like the observation?

The discrepancy is :math:`T(x) = \sum_j ((g(x_j) - m_j) / s_j)^2` with :math:`g = \operatorname{arcsinh}` and m, s the
mean and standard deviation of replicated data; the p-value is the fraction of replicates with a larger T.
Gelman, Meng & Stern (1996), Statistica Sinica 6, 733.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..data.errors import SimulatorError
from ..data.records import OK
from ..data.variables import Arrays, Variables
from ..simulators.base import Simulator
from ..simulators.block import BlockSimulator, Protection
from .base import CheckResult, says_p, verdict
from .plots import draw_predictive

BLIND_TO = (
    "A predictive check cannot see a posterior that is too narrow, nor a wrong model that is flexible enough to fit."
)


def replicate(
    simulator: Simulator,
    theta: np.ndarray,
    seed: int,
    context: Arrays | None = None,
    protection: Protection | None = None,
    trials: int | None = None,
) -> Arrays:
    """One simulated data set per row of theta, all with the observation's context; those with rows that are not ok left out.

    With ``trials`` a data set is of many independent observations, ``(trials, *shape)``, and so is its context.

    Raises:
        SimulatorError: Not one row is ok.
    """
    sets, each = len(theta), trials or 1
    one_set = {name: values[None] if trials is None else values for name, values in (context or {}).items()}
    known = {name: np.concatenate([values] * sets) for name, values in one_set.items()}
    rows = np.repeat(theta, each, axis=0)
    records = BlockSimulator(simulator, simulator.prior, (seed, 5), protection or Protection()).at(rows, known)
    ok = (records.status == OK).reshape(sets, each).all(1)
    if not ok.any():
        assert records.reason is not None
        raise SimulatorError(
            f"none of {sets} simulations at posterior draws is usable; the first: {records.reason[records.status != OK][0]}"
        )
    shape = (sets,) if trials is None else (sets, trials)
    return {name: values.reshape(*shape, *values.shape[1:])[ok] for name, values in records.x.items()}


def predictive_check(
    replicates: Mapping[str, np.ndarray],
    observed: Mapping[str, np.ndarray],
    observables: Variables,
    *,
    alpha: float = 0.01,
) -> CheckResult:
    """Compare one observation with replicates.

    Args:
        replicates: Observable → ``(replicate, *shape)``.
        observed: Observable → ``shape``.
        observables: What x consists of.
        alpha: Threshold on the p-value.
    """
    flat = {v.name: np.asarray(replicates[v.name], dtype=float).reshape(-1, v.size) for v in observables}
    truth = {v.name: np.asarray(observed[v.name], dtype=float).reshape(v.size) for v in observables}
    simulated = np.arcsinh(np.concatenate(list(flat.values()), axis=1))
    seen = np.arcsinh(np.concatenate(list(truth.values())))
    mean, sd = simulated.mean(0), simulated.std(0)
    sd = np.where(sd > 0, sd, 1.0)
    discrepancy = (((simulated - mean) / sd) ** 2).sum(1)
    own = float((((seen - mean) / sd) ** 2).sum())
    p_value = float((1 + (discrepancy >= own).sum()) / (1 + len(discrepancy)))
    low, high = np.quantile(simulated, [0.05, 0.95], axis=0)
    inside = float(((seen >= low) & (seen <= high)).mean())
    failed = p_value < alpha
    return CheckResult(
        name="predictive",
        title="Posterior predictive check at the observation",
        verdict=verdict(p_value, alpha),
        p_value=p_value,
        threshold=alpha,
        statistics={"discrepancy": own, "inside_90": inside},
        finding=f"{inside:.0%} of the observation lies inside the 90 % band of replicated data ({says_p(p_value)})",
        advice=(
            "The model does not produce data like these: question the simulator, the prior's range or the observation."
            if failed
            else "Nothing to do."
        ),
        blind_to=BLIND_TO,
        curves={f"replicates:{n}": v for n, v in flat.items()} | {f"observed:{n}": v for n, v in truth.items()},
        draw=draw_predictive,
    )
