"""Random numbers that are a function of (seed, step, row, column): no generator, no global state, nothing to save.

SplitMix64 of a counter: Steele, Lea & Flood (2014), Fast splittable pseudorandom number generators, OOPSLA, 453.
Integer arithmetic on tensors: the same on every device, and it can be compiled and vectorised.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

_STEP = -7046029254386353131  # 2^64 / golden ratio, as a signed integer
_FIRST, _SECOND = -4658895280553007687, -7723592293110705685


def uniform_noise(
    seed: Int[Tensor, ""], step: Int[Tensor, ""], rows: int, columns: int
) -> Float[Tensor, "rows columns"]:
    """Independent numbers between 0 and 1, both excluded, in float64."""
    counter = torch.arange(1, rows * columns + 1, device=seed.device).reshape(rows, columns)
    bits = _mixed(_mixed(seed + _STEP * (step + 1)) + _STEP * counter)
    return (_shifted(bits, 11).double() + 0.5) * 2.0**-53


def _mixed(bits: Tensor) -> Tensor:
    bits = (bits ^ _shifted(bits, 30)) * _FIRST
    bits = (bits ^ _shifted(bits, 27)) * _SECOND
    return bits ^ _shifted(bits, 31)


def _shifted(bits: Tensor, by: int) -> Tensor:
    """To the right, as if unsigned."""
    return (bits >> by) & ((1 << (64 - by)) - 1)
