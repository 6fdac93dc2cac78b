r"""Ordinary differential equations over a batch: no row can depend on another.

`solve` is the explicit Runge-Kutta method of order 8 of Dormand and Prince with a step size per row; `rk4` is the
classical method of order 4 with one fixed step. Hairer, Nørsett and Wanner, *Solving Ordinary Differential Equations I*
(2nd ed., 1993), sections II.4, II.5 and II.10.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import numpy as np
from jaxtyping import Float
from scipy.integrate import DOP853

Derivative = Callable[[np.ndarray, np.ndarray], np.ndarray]

_STAGES, _ORDER = 12, 8
_A, _B, _E3, _E5 = (np.asarray(getattr(DOP853, key)) for key in ("A", "B", "E3", "E5"))  # the published tableau
_TINY = 1e-300
_CHUNK = 16_384  # rows at once: all stages of a few variables stay below 100 MB


def solve(
    derivative: Derivative,
    state: Float[np.ndarray, "variable rows"],
    parameters: Float[np.ndarray, "parameter rows"],
    times: Float[np.ndarray, " time"],
    *,
    rtol: float = 1e-9,
    atol: float = 0.0,
    most_steps: int = 20_000,
) -> Float[np.ndarray, "time variable rows"]:
    r"""Integrate an autonomous system from time 0, every row with steps of its own.

    A step is accepted where the error estimate of Hairer et al., eq. II.10.17, is at most 1 with each variable scaled by
    atol + rtol · max(\|y\|, \|y'\|). Steps end on the ``times`` wanted, so that nothing is interpolated. A right-hand
    side that switches at known times is integrated piece by piece.

    Args:
        derivative: (state, parameters) → d state / dt, for any number of rows; column by column.
        state: State at time 0.
        parameters: What the derivative depends on besides.
        times: Increasing times, the first not below 0, at which the state is wanted.
        rtol: Relative error allowed in one step.
        atol: Absolute error allowed in one step. With 0 a positive variable that decays stays positive.
        most_steps: Steps after which a row is given up.

    Returns:
        The state at ``times``. From where a row could not be integrated (its derivative is not finite, or ``most_steps``
        were not enough) it is NaN.
    """
    saved = np.full((len(times), *state.shape), np.nan)
    control = _Control(derivative, times, rtol, atol)
    with np.errstate(all="ignore"):  # a trial step may overflow; it is rejected
        for first in range(0, state.shape[1], _CHUNK):
            part = slice(first, first + _CHUNK)
            _solve(control, state[:, part], parameters[:, part], saved[..., part], most_steps)
    return saved


@dataclass(frozen=True, slots=True)
class _Control:
    derivative: Derivative
    times: np.ndarray
    rtol: float
    atol: float

    def scale(self, *states: np.ndarray) -> np.ndarray:
        largest = np.maximum.reduce([np.abs(state) for state in states])
        return np.maximum(self.atol + self.rtol * largest, _TINY)


@dataclass(slots=True)
class _Rows:
    """The rows still under way; rows are the last axis of every field."""

    index: np.ndarray
    parameters: np.ndarray
    state: np.ndarray
    slope: np.ndarray
    time: np.ndarray
    step: np.ndarray
    goal: np.ndarray  # index of the next of the times wanted

    def only(self, kept: np.ndarray) -> _Rows:
        return _Rows(*(getattr(self, field.name)[..., kept] for field in fields(self)))


def _solve(control: _Control, state: np.ndarray, parameters: np.ndarray, saved: np.ndarray, most_steps: int) -> None:
    rows = _start(control, state, parameters)
    if control.times[0] == 0:
        saved[0] = state
        rows.goal += 1
    for _ in range(most_steps):
        going = (rows.goal < len(control.times)) & (rows.step > 1e-14 * control.times[-1])
        rows = rows if going.all() else rows.only(going)
        if not rows.index.size:
            break
        _advance(control, rows, saved)


def _start(control: _Control, state: np.ndarray, parameters: np.ndarray) -> _Rows:
    """The first step changes the state by about one per cent (Hairer et al., II.4, step a)."""
    slope, scale = control.derivative(state, parameters), control.scale(state)
    size, speed = (np.abs(value / scale).max(0) for value in (state, slope))
    step = np.minimum(0.01 * size / np.maximum(speed, _TINY), control.times[-1])
    step = np.where(size > 0, step, 1e-6 * control.times[-1])
    rows = state.shape[1]
    return _Rows(np.arange(rows), parameters, state, slope, np.zeros(rows), step, np.zeros(rows, dtype=np.intp))


def _advance(control: _Control, rows: _Rows, saved: np.ndarray) -> None:
    """One trial step of every row."""
    gap = control.times[rows.goal] - rows.time
    landing = rows.step >= gap
    step = np.where(landing, gap, rows.step)
    state, slope, error = _trial(control, rows, step)
    accepted = error <= 1
    wanted = step * np.where(np.isfinite(error), np.clip(0.9 * error ** (-1 / _ORDER), 0.2, 6.0), 0.2)
    landed = landing & accepted
    rows.step = np.where(landed, np.maximum(rows.step, wanted), wanted)  # a step cut short says little of the next
    rows.time = np.where(landed, control.times[rows.goal], np.where(accepted, rows.time + step, rows.time))
    rows.state, rows.slope = np.where(accepted, state, rows.state), np.where(accepted, slope, rows.slope)
    saved[rows.goal[landed], :, rows.index[landed]] = rows.state[:, landed].T
    rows.goal = rows.goal + landed


def _trial(control: _Control, rows: _Rows, step: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """State and slope after the step, and its error in units of what is allowed."""
    slopes = np.empty((_STAGES + 1, *rows.state.shape))
    slopes[0] = rows.slope
    for stage in range(1, _STAGES):
        inner = rows.state + step * _combined(_A[stage, :stage], slopes)
        slopes[stage] = control.derivative(inner, rows.parameters)
    state = rows.state + step * _combined(_B, slopes)
    slopes[-1] = control.derivative(state, rows.parameters)
    scale = control.scale(rows.state, state)
    third, fifth = (((_combined(weights, slopes) / scale) ** 2).sum(0) for weights in (_E3, _E5))
    error = step * fifth / np.sqrt(np.maximum((fifth + 0.01 * third) * len(state), _TINY))
    return state, slopes[-1], error


def _combined(weights: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Weighted sum of stages; einsum, unlike BLAS, gives a row the same bits whatever its neighbours and threads."""
    return np.einsum("s,svr->vr", weights, slopes[: len(weights)])


def rk4(
    derivative: Callable[[np.ndarray], np.ndarray], state: np.ndarray, times: np.ndarray, step: float
) -> np.ndarray:
    """Integrate an autonomous system from time 0 with one fixed step for all rows.

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
