r"""Where an attack may go: a ball in the units of the data, within the data's range, some entries held fixed.

.. math:: \tilde x = \mathrm{clip}(x + L u), \qquad \|u\| \le r = \epsilon s

``global``, as published: L = I and s is the mean over observations of the standard deviation of the entries within one.
``feature``: L is diagonal, of the standard deviations of each entry over observations, and s as before, of :math:`L^{-1} x`:
what an entry is measured in does not matter. With the covariance of measurement errors :math:`\Sigma = L L^T`, s = 1: then
ε counts standard deviations of the noise, and the exact posterior of a linear Gaussian model moves by no more than
:math:`\epsilon^2 / 2` nats.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ...data.errors import ConfigError, ShapeError, UnknownNameError
from ...data.variables import Arrays, Variable, Variables
from ...estimators.robust.balls import Ball

UNITS = ("global", "feature")
_MOST_COUNTS = 256  # that are rounded up one after another


@dataclass(frozen=True, slots=True)
class Region:
    """Perturbations of some observations.

    Attributes:
        observables: What x consists of.
        x: All entries of each observation.
        factor: L, or its diagonal.
        unit: s.
        low: Least value of each entry.
        high: Largest.
        free: Which entries may change.
        integer: Which are counts.
    """

    observables: Variables
    x: Float[Tensor, "rows entry"]
    factor: Float[Tensor, "entry *entry"]
    unit: float
    low: Float[Tensor, "entry"]
    high: Float[Tensor, "entry"]
    free: Bool[Tensor, "entry"]
    integer: Bool[Tensor, "entry"]

    def at(self, u: Float[Tensor, "rows entry"]) -> Float[Tensor, "rows entry"]:
        """x~, clipped to the range of the data."""
        delta = (u @ self.factor.T if self.factor.dim() == 2 else u * self.factor) * self.free
        return (self.x + delta).clamp(self.low, self.high)

    def gradient(self, in_x: Float[Tensor, "*rows entry"]) -> Float[Tensor, "*rows entry"]:
        """Of a function of `at`, in u, from that in x: clipping is not looked at."""
        free = in_x * self.free
        factor = self.factor.to(in_x)
        return free @ factor if factor.dim() == 2 else free * factor

    def named(self, x: Float[Tensor, "rows entry"]) -> dict[str, Tensor]:
        """Entries as the observables they belong to."""
        parts = x.split([v.size for v in self.observables], 1)
        return {v.name: part.reshape(-1, *v.shape) for v, part in zip(self.observables, parts, strict=True)}

    def settled(self, x: Float[Tensor, "rows entry"], ball: Ball, radius: float) -> Float[Tensor, "rows entry"]:
        """A perturbed observation as it may be: in the ball, which clipping may have left, and counts whole.

        Clipped anew, for sums are rounded: an entry next to 0 may come out as 0. No further than to x, which may lie outside.
        """
        delta = x - self.x
        delta = delta * (radius / self.length(delta, ball).clamp(min=radius))
        moved = self.x + (self._whole(delta, ball, radius) if self.integer.any() else delta)
        return moved.clamp(torch.minimum(self.low, self.x), torch.maximum(self.high, self.x))

    def length(self, delta: Float[Tensor, "rows entry"], ball: Ball) -> Float[Tensor, "rows 1"]:
        """The norm of u, of a perturbation."""
        return ball.norm(torch.linalg.solve(self.factor, delta.T).T if self.factor.dim() == 2 else delta / self.factor)

    def _whole(self, delta: Float[Tensor, "rows entry"], ball: Ball, radius: float) -> Float[Tensor, "rows entry"]:
        """Counts move by whole numbers: those that were to move most by one more, as long as the ball holds them."""
        whole = torch.where(self.integer, delta.trunc(), delta)
        rest = torch.where(self.integer, delta - whole, 0.0)
        order = rest.abs().argsort(1, descending=True)[:, : min(_MOST_COUNTS, int(self.integer.sum()))]
        for entry in order.T[..., None]:
            more = whole.scatter_add(1, entry, rest.gather(1, entry).sign())
            inside = (self.x + more).clamp(self.low, self.high) == self.x + more
            fits = (self.length(more, ball) <= radius) & inside.gather(1, entry)
            whole = torch.where(fits, more, whole)
        return whole


def region(
    observables: Variables,
    x: Arrays,
    *,
    units: str = "global",
    noise: Any = None,
    fixed: Collection[str] = (),
    clip: bool = True,
) -> Region:
    """Around given observations.

    Args:
        observables: What x consists of.
        x: One row per observation.
        units: ``global`` or ``feature``; not looked at with ``noise``.
        noise: Standard deviation of the measurement errors, one number or one for each entry, flattened, or their covariance.
        fixed: Observables that no perturbation may touch, such as context.
        clip: Whether to stay between the least and the largest value of an observable in all observations, in units of
            features those of each entry.

    Raises:
        ConfigError: Nothing may change, or nothing varies.
        ShapeError: ``noise`` of another size, or that is no covariance.
        UnknownNameError: ``fixed`` names no observable, or no such units.
    """
    if unknown := set(fixed) - set(observables.names):
        raise UnknownNameError(
            f"`fixed` must name observables, {', '.join(observables.names)}; got {', '.join(sorted(unknown))}"
        )
    if units not in UNITS:
        raise UnknownNameError(f"`units` must be global or feature, or `noise` given; got `{units}`")
    rows = np.concatenate([x[v.name].reshape(-1, v.size) for v in observables], 1).astype(np.float64)
    free = np.repeat([v.name not in fixed for v in observables], [v.size for v in observables])
    if not free.any():
        raise ConfigError("`fixed` must leave something to be perturbed; got all observables")
    factor, unit = _units(rows, free, units) if noise is None else (_factor(np.asarray(noise), free), 1.0)
    each = units == "feature" and noise is None
    bounds = np.concatenate([_bounds(v, x[v.name].reshape(-1, v.size), clip, each) for v in observables], 1)
    whole = np.repeat([v.support.integer for v in observables], [v.size for v in observables])
    numbers = (torch.from_numpy(part.astype(np.float32)) for part in (rows, factor, *bounds))
    around, scale, low, high = numbers
    return Region(observables, around, scale, unit, low, high, torch.from_numpy(free), torch.from_numpy(whole))


def _units(rows: np.ndarray, free: np.ndarray, units: str) -> tuple[np.ndarray, float]:
    spread = rows.std(0) if units == "feature" else np.ones(rows.shape[1])
    factor = np.where(spread > 0, spread, 1.0)
    measured = (rows / factor)[:, free]
    unit = float(measured.std(1, ddof=1).mean() if measured.shape[1] > 1 else measured.std())
    if not unit > 0:
        raise ConfigError("`x` must vary, or `noise` be given, for ε to have a unit; all entries are the same")
    return factor, unit


def _factor(noise: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Standard deviations, or the Cholesky factor of the covariance of the entries that may change."""
    entries = len(free)
    if noise.shape in ((), (entries,)) and (noise > 0).all():
        return np.broadcast_to(noise, entries).astype(float)
    if noise.shape == (entries, entries):
        both = free[:, None] & free
        try:
            return np.linalg.cholesky(np.where(both, noise, np.eye(entries)))
        except np.linalg.LinAlgError:
            pass
    raise ShapeError(
        f"`noise` must be positive, one number or {entries}, or a covariance of {entries} × {entries}; "
        f"got shape {noise.shape}"
    )


def _bounds(variable: Variable, values: np.ndarray, clip: bool, each: bool) -> np.ndarray:
    """Least and largest value of every entry: of all entries of the observable together, unless they are of several kinds."""
    support, axis = variable.support, 0 if each else None
    low, high = (values.min(axis), values.max(axis)) if clip else (support.low, support.high)
    limits = np.maximum(low, support.low), np.minimum(high, support.high)
    return np.stack([np.broadcast_to(limit, variable.size) for limit in limits])
