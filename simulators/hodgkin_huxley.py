r"""A Hodgkin-Huxley neuron with Pospischil's kinetics under a current step, for attacks on a posterior.

.. math:: \dot V = C\, [g_{Na} m^3 h (E_{Na} - V) + g_K n^4 (E_K - V) + g_M p (E_K - V) + 0.1 (E_{leak} - V) + I(t)]

(times C: as in the reference implementation of the task), :math:`\dot q = \alpha_q (1 - q) - \beta_q q` for
q = n, m, h and :math:`\dot p = (p_\infty - p) / \tau_p`; V(0) = -70 mV with the gates in their steady state; I(t) is
:math:`5 \cdot 10^{-4} / A`, :math:`A = \pi (70 \cdot 10^{-4})^2`, between 10 and 50 ms, else 0. x is V at 200 times from 0 to
60 ms with noise N(0, 0.5²). Kinetics: Pospischil et al., Biological Cybernetics 99 (2008), 427–441. Task: Gloeckler,
Deistler and Macke (ICML 2023), https://arxiv.org/abs/2305.14984.
"""

from __future__ import annotations

import numpy as np
import scipy.stats
from torch.distributions import Uniform

from ..data.variables import Variable, Variables
from .ode import solve
from .prior import Prior

_TIMES = np.linspace(0.0, 60.0, 200)
_ON, _OFF = 10.0, 50.0  # ms
_CURRENT = 5e-4 / (np.pi * 70e-4**2)
_REST, _THRESHOLD, _LEAK, _TAU_MAX = -70.0, -60.0, 0.1, 600.0
_NOISE = 0.5
# alpha_n, alpha_m, beta_m (of the form z / (exp z - 1)), alpha_h, beta_n, beta_h, p's steady state and time constant
_CENTRES = np.array([15.0, 13.0, 40.0, 17.0, 10.0, 40.0, 25.0, 25.0])[:, None]
_WIDTHS = np.array([-5.0, -4.0, 5.0, -18.0, -40.0, -5.0, -10.0, 20.0])[:, None]
_RTOL, _ATOL = 1e-6, 1e-8  # V within 0.02 mV over the prior, far below the noise


class HodgkinHuxley:
    """A voltage trace; conductances, capacity and reversal potentials."""

    prior = Prior(
        {
            "g_na": Uniform(1.0, 100.0),
            "g_k": Uniform(1e-4, 5.0),
            "g_m": Uniform(1e-4, 0.5),
            "c": Uniform(0.9, 1.2),
            "e_leak": Uniform(-80.0, -50.0),
            "e_na": Uniform(10.0, 80.0),
            "e_k": Uniform(-120.0, -90.0),
        },
        units={"e_leak": "mV", "e_na": "mV", "e_k": "mV"},
        labels={
            "g_na": "$g_{Na}$",
            "g_k": "$g_K$",
            "g_m": "$g_M$",
            "c": "$C$",
            "e_leak": "$E_{leak}$",
            "e_na": "$E_{Na}$",
            "e_k": "$E_K$",
        },
    )
    observables = Variables([Variable("x", (200,), units="mV", label="voltage", dims=("time",))])

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        noise = rng.standard_normal((len(theta), 200))
        return {"x": voltage(theta) + _NOISE * noise}

    def log_likelihood(
        self, theta: np.ndarray, x: dict[str, np.ndarray], context: dict[str, np.ndarray] | None = None
    ) -> np.ndarray:
        """log p(x | theta), shape ``(rows,)``; NaN where the neuron cannot be integrated."""
        return np.asarray(scipy.stats.norm.logpdf(x["x"], voltage(theta), _NOISE)).sum(1)


def voltage(theta: np.ndarray, rtol: float = _RTOL) -> np.ndarray:
    """V without noise, shape ``(rows, 200)``: three pieces, for the current switches."""
    state = np.repeat(_rest()[:, None], len(theta), axis=1)
    pieces = []
    for start, end, current in ((0.0, _ON, 0.0), (_ON, _OFF, _CURRENT), (_OFF, 60.0, 0.0)):
        first, last = np.searchsorted(_TIMES, (start, end))
        times = np.append(_TIMES[first:last], end) - start
        parameters = np.vstack([theta.T, np.full(len(theta), current)])
        trace = solve(derivative, state, parameters, times, rtol=rtol, atol=_ATOL)
        pieces.append(trace[:-1, 0])
        state = trace[-1]
    return np.vstack([*pieces, state[:1]]).T


def derivative(state: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    """State V, n, m, h, p and parameters theta, current; both with rows last."""
    v, n, m, h, p = state
    g_na, g_k, g_m, c, e_leak, e_na, e_k, current = parameters
    opening, closing, p_infinity, tau_p = _rates(v)
    ionic = g_na * m**3 * h * (e_na - v) + (g_k * n**4 + g_m * p) * (e_k - v) + _LEAK * (e_leak - v)
    gates = opening * (1 - state[1:4]) - closing * state[1:4]
    return np.vstack([c * (ionic + current), gates, (p_infinity - p) / tau_p])


def _rest() -> np.ndarray:
    opening, closing, p_infinity, _ = _rates(np.array([_REST]))
    return np.concatenate([[_REST], (opening / (opening + closing))[:, 0], p_infinity])


def _rates(v: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """alpha and beta of n, m, h, ``(3, rows)``, and the steady state and time constant of p."""
    z = (v - _THRESHOLD - _CENTRES) / _WIDTHS
    exp = np.exp(z)  # all at once: small batches spend their time between the calls
    linear = np.where(np.abs(z[:3]) < 1e-4, 1 - z[:3] / 2, z[:3] / (exp[:3] - 1))
    opening = np.stack([0.16 * linear[0], 1.28 * linear[1], 0.128 * exp[3]])
    closing = np.stack([0.5 * exp[4], 1.4 * linear[2], 4 / (1 + exp[5])])
    return opening, closing, 1 / (1 + exp[6]), _TAU_MAX / (3.3 * exp[7] + 1 / exp[7])
