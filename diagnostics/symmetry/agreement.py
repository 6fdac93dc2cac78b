"""Moved data against data at moved parameters, with the same noise: how far apart, in how many rows, and where."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from ...data.variables import Variables
from .noise import SharedNoise, lengths
from .pairs import Data, flat, minus, rms, spread
from .result import Finding

_SHARE = 0.05  # of the rows may differ by more than the noise can hide


def same_noise(shared: SharedNoise, observables: Variables) -> Finding:
    """Compare row by row, where noise drops out."""
    if shared.kind == "other":
        return Finding(
            "same noise",
            "not tested",
            "the noise is not added to a signal: with the same random numbers x does not move exactly",
            advice="The comparison in distribution has to do.",
        )
    deviation = shared.deviation
    scale = 100.0 / flat(deviation).shape[1] ** 0.5 if shared.kind == "none" else 1.0
    far = lengths(deviation) * scale
    off = minus(shared.acted, shared.anew)
    numbers = {
        "rms": rms(off, spread(shared.x)),
        "largest": float(flat({n: v / spread(shared.x)[n] for n, v in off.items()}).abs().max()),
        "median": float(far.median()),
        "quantile_99": float(far.quantile(0.99)),
        "share_visible": float((far > 1).double().mean()),
    }
    than = "1 % of the spread of x" if shared.kind == "none" else "1 sd of the noise"
    finding = (
        f"off by {numbers['rms']:.2g} of the spread of x (rms; at most {numbers['largest']:.2g}); {numbers['share_visible']:.1%} "
        f"of {len(far)} rows by more than {than}; half of it in {where(deviation, observables)}"
    )
    if numbers["share_visible"] <= _SHARE:
        return Finding("same noise", "pass", finding, numbers)
    return Finding(
        "same noise",
        "fail",
        finding,
        numbers,
        "Look where it is off: everywhere, and the sign, `spacing` or axis may be wrong; at the edges of the window, and signals "
        "leave it: a narrower prior, or a wider window; at what is sharp, and the sampling is too coarse.",
    )


def where(x: Data, observables: Variables) -> str:
    """Along each axis of the observable that is off most, the shortest range with half of the squares."""
    squares = {name: values.square().mean(0).numpy() for name, values in x.items()}
    name = max(squares, key=lambda key: squares[key].sum())
    sums = {
        axis: squares[name].sum(tuple(j for j in range(squares[name].ndim) if j != i))
        for i, axis in enumerate(observables[name].axes)
    }
    inside = ", ".join(f"{axis}={_shortest(values)}" for axis, values in sums.items())
    return f"{name}[{inside}]" if inside else name


def _shortest(values: Float[np.ndarray, "entry"]) -> str:
    """The shortest run of entries that hold half of the sum, such as ``3..7``."""
    total = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.minimum(np.searchsorted(total, total[:-1] + total[-1] / 2 * (1 - 1e-12)), len(values))
    reached = total[ends] - total[:-1] >= total[-1] / 2 * (1 - 1e-9)
    lengths_of = np.where(reached, ends - np.arange(len(values)), len(values) + 1)
    first = int(lengths_of.argmin())
    return f"{first}..{int(ends[first]) - 1}"


def entry_name(name: str, place: tuple[int, ...], observables: Variables) -> str:
    """Such as ``x[time=3]``."""
    axes = observables[name].axes
    inside = ", ".join(f"{axis}={index}" for axis, index in zip(axes, place, strict=True))
    return f"{name}[{inside}]" if inside else name
