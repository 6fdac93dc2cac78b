"""The batch integrator beside scipy's `solve_ivp` row by row: speed, and the largest relative difference.

Both systems of the SBI benchmark, theta from the prior. `solve_ivp` (DOP853, rtol 1e-12, atol 1e-300) is the reference;
it integrates random rows and, apart, the fastest-moving ones of all; its time for all rows is
extrapolated from the random ones at our tolerance, rtol 1e-9.

    python tests/benchmarks/ode.py [--rows 100000] [--checked 300]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.integrate import solve_ivp

from simfer.simulators.lotka_volterra import LotkaVolterra
from simfer.simulators.populations import infected, predator_prey
from simfer.simulators.prior import Prior
from simfer.simulators.sir import SIR

Slope = Callable[..., list[float]]


@dataclass(frozen=True)
class System:
    """One system: our solution ``(rows, variable, time)``, scipy's right-hand side, and how fast a row moves."""

    name: str
    prior: Prior
    ours: Callable[[np.ndarray], np.ndarray]
    slope: Slope
    start: tuple[float, float]
    times: np.ndarray
    kept: list[int]
    speed: Callable[[np.ndarray, np.ndarray], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--checked", type=int, default=300)
    arguments = parser.parse_args()
    print(
        f"{'system':15} {'rows':>8} {'seconds':>8} {'rows/s':>8}  {'solve_ivp, rows/s':>17}  {'its seconds':>11}  "
        f"{'NaN':>4} {'largest relative difference':>27} {'stiffest rows':>14}"
    )
    for system in (lotka_volterra(), epidemic()):
        compare(system, arguments.rows, arguments.checked)


def compare(system: System, rows: int, checked: int) -> None:
    """Print one line of the table."""
    theta = system.prior.sample(rows, np.random.default_rng(0))
    started = time.perf_counter()
    ours = system.ours(theta)
    seconds = time.perf_counter() - started
    some = np.random.default_rng(1).choice(rows, checked, replace=False)
    stiffest = np.argsort(-system.speed(theta, ours))[: max(checked // 10, 1)]
    started = time.perf_counter()
    for i in some:
        scipy_row(system, theta[i], rtol=1e-9)
    rate = checked / (time.perf_counter() - started)
    differences = [max(difference(system, theta[i], ours[i]) for i in chosen) for chosen in (some, stiffest)]
    print(
        f"{system.name:15} {rows:8,} {seconds:8.2f} {rows / seconds:8,.0f}  {rate:17,.0f}  {rows / rate:11,.0f}  "
        f"{int(np.isnan(ours).any((1, 2)).sum()):4} {differences[0]:27.1e} {differences[1]:14.1e}",
        flush=True,
    )


def difference(system: System, theta: np.ndarray, ours: np.ndarray) -> float:
    """Largest relative difference of one row from the reference."""
    return float(np.abs(ours / scipy_row(system, theta, rtol=1e-12) - 1).max())


def scipy_row(system: System, theta: np.ndarray, rtol: float) -> np.ndarray:
    """One row by scipy."""
    span = (0.0, float(system.times[-1]))
    rates = tuple(float(rate) for rate in theta)
    done = solve_ivp(
        system.slope, span, system.start, method="DOP853", t_eval=system.times, args=rates, rtol=rtol, atol=1e-300
    )
    return np.asarray(done.y[system.kept])


def lotka_volterra() -> System:
    """sbibm's Lotka-Volterra."""

    def slope(time: float, state: np.ndarray, alpha: float, beta: float, gamma: float, delta: float) -> list[float]:
        return [(alpha - beta * state[1]) * state[0], (delta * state[0] - gamma) * state[1]]

    times, start = 2.1 * np.arange(10), (30.0, 1.0)
    return System(
        "lotka_volterra",
        LotkaVolterra.prior,
        lambda theta: predator_prey(theta, np.array(start), times),
        slope,
        start,
        times,
        [0, 1],
        lambda theta, ours: theta[:, 1] * ours[:, 1].max(1) + theta[:, 3] * ours[:, 0].max(1),
    )


def epidemic() -> System:
    """sbibm's SIR, S and I as shares of the population."""

    def slope(time: float, state: np.ndarray, beta: float, gamma: float) -> list[float]:
        infections = beta * state[0] * state[1]
        return [-infections, infections - gamma * state[1]]

    times, start = 17.0 * np.arange(10), (1 - 1e-6, 1e-6)
    return System(
        "sir",
        SIR.prior,
        lambda theta: infected(theta, start, 1.0, times)[:, None],
        slope,
        start,
        times,
        [1],
        lambda theta, ours: theta.max(1),
    )


if __name__ == "__main__":
    main()
