r"""Predators and prey, and epidemics: the two systems that several simulators share.

.. math:: \dot X = \alpha X - \beta X Y, \quad \dot Y = \delta X Y - \gamma Y \qquad \text{(Lotka 1925; Volterra 1926)}
.. math:: \dot S = -\beta S I / N, \quad \dot I = \beta S I / N - \gamma I \qquad \text{(Kermack and McKendrick 1927)}
"""

from __future__ import annotations

import numpy as np

from .ode import solve


def predator_prey(rates: np.ndarray, start: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Prey X and predators Y.

    Args:
        rates: alpha, beta, gamma, delta; shape ``(rows, 4)``.
        start: X and Y at time 0, shape ``(2,)`` or ``(rows, 2)``.
        times: Increasing, from 0.

    Returns:
        Shape ``(rows, 2, time)``; NaN where a row could not be integrated. Relative error below 1e-6.
    """

    def derivative(state: np.ndarray, rates: np.ndarray) -> np.ndarray:
        alpha, beta, gamma, delta = rates
        return np.stack([(alpha - beta * state[1]) * state[0], (delta * state[0] - gamma) * state[1]])

    state = np.broadcast_to(start, (len(rates), 2)).T.astype(float)
    return solve(derivative, state, rates.T, times).transpose(2, 1, 0)


def infected(rates: np.ndarray, start: tuple[float, float], population: float, times: np.ndarray) -> np.ndarray:
    """The infected I of an epidemic.

    Args:
        rates: beta and gamma, shape ``(rows, 2)``.
        start: S and I at time 0.
        population: N.
        times: Increasing, from 0.

    Returns:
        Shape ``(rows, time)``; NaN where a row could not be integrated. Relative error below 1e-6.
    """

    def derivative(state: np.ndarray, rates: np.ndarray) -> np.ndarray:
        infections, recoveries = rates[0] / population * state[0] * state[1], rates[1] * state[1]
        return np.stack([-infections, infections - recoveries])

    state = np.repeat(np.array(start)[:, None], len(rates), axis=1)
    return solve(derivative, state, rates.T, times)[:, 1].T
