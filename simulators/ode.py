"""Fixed-step Runge-Kutta 4 over a batch: rows never share a step size, so no row can depend on another."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def rk4(
    derivative: Callable[[np.ndarray], np.ndarray], state: np.ndarray, times: np.ndarray, step: float
) -> np.ndarray:
    """Integrate an autonomous system from time 0.

    Args:
        derivative: state → d state / dt, both ``(variable, rows)``.
        state: State at time 0.
        times: Increasing times at which the state is wanted.
        step: Largest step; the error of the result is O(step⁴).

    Returns:
        The state at ``times``, shape ``(time, variable, rows)``.
    """
    saved, now = [], 0.0
    for time in times:
        steps = max(1, int(np.ceil((time - now) / step - 1e-9)))
        h = (time - now) / steps
        for _ in range(steps):
            k1 = derivative(state)
            k2 = derivative(state + h / 2 * k1)
            k3 = derivative(state + h / 2 * k2)
            k4 = derivative(state + h * k3)
            state = state + h / 6 * (k1 + 2 * (k2 + k3) + k4)
        saved.append(state)
        now = float(time)
    return np.stack(saved)
