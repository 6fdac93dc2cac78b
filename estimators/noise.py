"""Random numbers that are a function of a key: the same wherever, whenever and in whatever order they are asked for.

A counter is scrambled by the finaliser of SplitMix64 (Steele, Lea & Flood 2014, https://doi.org/10.1145/2660193.2660195).
A torch generator would do neither under `torch.func.vmap` nor inside a compiled graph, and would have to be copied from
the CPU to the device.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def _signed(bits: int) -> int:
    """The int64 with the bits of an unsigned number."""
    return bits - 2**64 if bits >= 2**63 else bits


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FACTORS = (_signed(0xBF58476D1CE4E5B9), _signed(0x94D049BB133111EB))


def key_of_rows(values: Float[Tensor, "rows column"]) -> Int[Tensor, "rows"]:
    """One key per row of float64 numbers, from all their bits."""
    columns = torch.arange(1, values.shape[1] + 1, device=values.device)
    return _mix((_mix(values.view(torch.int64) + columns * _GOLDEN)).sum(1))


def combine(key: Int[Tensor, "*key"], other: Int[Tensor, "*other"]) -> Int[Tensor, "*both"]:
    """A key for each pair of keys, or of a key and a number."""
    return _mix(key ^ _mix(other + _GOLDEN))


def uniform(key: Int[Tensor, "*key"], count: int) -> Float[Tensor, "*key count"]:
    """``count`` numbers for each key, strictly between 0 and 1, float64."""
    counter = torch.arange(1, count + 1, device=key.device)
    bits = _shift(_mix(key[..., None] + counter * _GOLDEN), 12)
    return bits.double() * 2.0**-52 + 2.0**-53


def normal(key: Int[Tensor, "*key"], count: int) -> Float[Tensor, "*key count"]:
    """``count`` standard normal numbers for each key, float64."""
    return torch.special.ndtri(uniform(key, count))


def _mix(bits: Tensor) -> Tensor:
    bits = (bits ^ _shift(bits, 30)) * _FACTORS[0]
    bits = (bits ^ _shift(bits, 27)) * _FACTORS[1]
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, places: int) -> Tensor:
    """To the right, filled with zeros: torch copies the sign."""
    return (bits >> places) & (2 ** (64 - places) - 1)
