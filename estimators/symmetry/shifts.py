r"""Shifts of sampled signals by any number of bins, by the phase of their Fourier transform.

.. math:: \widehat{(T_a x)}_k = e^{-2 \pi i k a / N}\, \hat x_k

The signal is taken as periodic: what leaves at one end comes in at the other. Whole bins are `torch.roll`. For even N the
Nyquist frequency of a real signal has no phase: there the factor is :math:`(-1)^{\mathrm{round}(|a|)}`, so that :math:`T_a` is
orthogonal, white noise stays white, and :math:`T_{-a} T_a = 1`; :math:`T_a T_b = T_{a + b}` holds in all other frequencies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Shaped
from torch import Tensor


@dataclass(frozen=True, slots=True)
class ShiftSignal:
    """Shifts an observable along one axis.

    Args:
        axis: Counted with the rows as axis 0.
        spacing: Of neighbouring entries, in the units of the group.
    """

    axis: int
    spacing: float

    def __call__(
        self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]
    ) -> Float[Tensor, "rows *shape"]:
        bins = (g[:, 0] / self.spacing).reshape(-1, *[1] * (x.ndim - 1))
        return shifted(x, bins, self.axis)

    def log_det(self, g: Float[Tensor, "rows element"], x: Float[Tensor, "rows *shape"]) -> Float[Tensor, "rows"]:
        return torch.zeros_like(g[:, 0])


def shifted(x: Float[Tensor, "*shape"], bins: Float[Tensor, "..."], axis: int) -> Float[Tensor, "*shape"]:
    """x shifted along an axis, by as many bins as ``bins`` says, which has length 1 along that axis."""
    size = x.shape[axis]
    spectrum = torch.fft.rfft(x, dim=axis)
    return torch.fft.irfft(spectrum * _phase(bins.to(x.device), size, axis).to(spectrum), n=size, dim=axis)


def _phase(bins: Float[Tensor, "..."], size: int, axis: int) -> Shaped[Tensor, "..."]:
    count = size // 2 + 1
    angle = -2 * math.pi / size * bins
    phase = _powers(torch.polar(torch.ones_like(angle), angle), count, axis)
    if size % 2 == 0:
        sign = 1 - 2 * (bins.detach().abs().round() % 2)  # steps have no gradient
        return torch.cat([phase.narrow(axis, 0, count - 1), sign.to(phase)], axis)
    return phase


def _powers(z: Shaped[Tensor, "..."], count: int, axis: int) -> Shaped[Tensor, "..."]:
    """1, z, z², … along an axis: each doubling takes one product, where a cosine and a sine of all would take ten times as long."""
    powers, power = torch.ones_like(z), z
    while powers.shape[axis] < count:
        powers = torch.cat([powers, powers * power], axis)
        power = power * power
    return powers.narrow(axis, 0, count)
