r"""Where a signal is, by a filter matched to what training rows have in common.

Rows whose pose is taken out, with the theta that they were simulated from, have principal directions :math:`b_1 \dots b_r`, not centred.
For a displacement a the share of the energy of x that they explain there, and the pose that is made of it, are

.. math:: e(a) = \frac{1}{|x|^2} \sum_k \langle T_a b_k, x \rangle^2, \qquad w(a) \propto (1 - e(a))^{-\kappa}, \qquad
    \hat a = \frac{L}{2 \pi} \arg \sum_a w(a)\, e^{2 \pi i a / L}.

With :math:`\kappa` half the number of entries w is the profile likelihood of a signal of these directions in white noise of unknown level.
e is computed for parts of a bin, from the Fourier transform without its Nyquist frequency, and :math:`\kappa` is kept so small that w is
no sharper than these parts: then the sum is an integral, to 1e-8, and :math:`\hat a` moves along with displacements by parts of a bin as
well. A factor before x leaves it alone. r is chosen by how well it finds the poses of rows that the directions were not taken from.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Complex, Float
from torch import Tensor, nn

from ...data.batch import Batch
from ...data.variables import Variable
from .base import Symmetry

_DIRECTIONS = 8
_ROWS = 1000  # that directions are taken from, and as many to choose between them
_FINER = {1: 8, 2: 2}  # parts of a bin, by the number of axes
_TINY = 1e-300
_MOST = 1 - 1e-12  # of the energy


class MatchedFilter(nn.Module):
    """The pose of one observable under displacements along one or two of its axes.

    Args:
        of: The observable.
        axes: Counted with the rows as axis 0.
        spacing: Of neighbouring entries, in the units of the group.
        symmetry: Of displacements.
        middle: Displacements are looked for within half a window of it.
    """

    directions: Tensor
    sharpness: Tensor
    middle: Tensor

    def __init__(
        self,
        of: Variable,
        axes: tuple[int, ...],
        spacing: float,
        symmetry: Symmetry,
        middle: Float[Tensor, "coordinate"],
    ) -> None:
        super().__init__()
        self._name, self._axes, self._spacing, self._symmetry = of.name, axes, spacing, symmetry
        self._finer = _FINER[len(axes)]
        self._periods = torch.tensor([of.shape[axis - 1] * spacing for axis in axes], dtype=torch.float64)
        self.register_buffer("directions", torch.zeros(_DIRECTIONS, *of.shape, dtype=torch.float64))
        self.register_buffer("sharpness", torch.tensor(1.0, dtype=torch.float64))
        self.register_buffer("middle", middle.clone())

    def forward(self, x: dict[str, Tensor]) -> Float[Tensor, "rows element"]:
        values = x[self._name].double()
        many = int((self.directions.flatten(1) != 0).any(1).sum())
        explained = sum((self._explained(values, b) for b in self.directions[: max(many, 1)]), torch.zeros(()))
        return self._pose(_profile(values, explained), self.sharpness)

    @torch.no_grad()
    def fit(self, rows: Batch) -> None:
        """Directions from the first rows, how many and how sharp by others."""
        rows = rows.select(slice(2 * _ROWS))
        half = rows.rows // 2
        found = self._principal(rows.select(slice(half)))
        others = rows.select(slice(half, None))
        values, truth = others.x[self._name].double(), self._symmetry.pose(others.theta)
        explained, best = torch.zeros((), dtype=torch.float64), math.inf
        for many in range(1, len(found) + 1):
            explained = explained + self._explained(values, found[many - 1])
            profile = _profile(values, explained)
            sharpness = torch.minimum(torch.tensor(values[0].numel() / 2), 1 / self._curvature(profile))
            error = float((self._pose(profile, sharpness) - truth).square().mean())
            if error < best:
                best, chosen = error, many
                self.sharpness.copy_(sharpness)
        self.directions.zero_()[:chosen] = found[:chosen]

    def _principal(self, rows: Batch) -> Float[Tensor, "direction *shape"]:
        back = self._symmetry.group.inverse(self._symmetry.pose(rows.theta))
        aligned = self._symmetry.act_x(back, {self._name: rows.x[self._name].double()} | _others(rows, self._name))
        values = aligned[self._name]
        rows_by_entries = torch.linalg.svd(values.flatten(1), full_matrices=False).Vh
        return rows_by_entries[:_DIRECTIONS].reshape(-1, *values.shape[1:])

    def _explained(
        self, x: Float[Tensor, "rows *shape"], direction: Float[Tensor, "*shape"]
    ) -> Float[Tensor, "rows *bins"]:
        """Of the energy of x that a direction explains, for all displacements."""
        others = tuple(i for i in range(1, x.ndim) if i not in self._axes)
        spectrum = torch.fft.fftn(x, dim=self._axes) * torch.fft.fftn(direction[None], dim=self._axes).conj()
        for axis in self._axes:
            spectrum = _finer(spectrum, axis, self._finer)
        overlap = torch.fft.ifftn(spectrum, dim=self._axes).real * self._finer ** len(self._axes)
        return (overlap.sum(others) if others else overlap).square()

    def _curvature(self, profile: Float[Tensor, "rows *bins"]) -> Tensor:
        """Largest second difference, of all rows."""
        each = [2 * profile - profile.roll(1, axis) - profile.roll(-1, axis) for axis in range(1, profile.ndim)]
        return torch.stack(each).amax().clamp(min=_TINY)

    def _pose(self, profile: Float[Tensor, "rows *bins"], sharpness: Tensor) -> Float[Tensor, "rows element"]:
        weights = (sharpness * profile).flatten(1).softmax(1).view_as(profile)
        order = sorted(self._axes)
        found = [self._centre(weights, 1 + order.index(axis)) for axis in self._axes]
        period, middle = self._periods.to(profile.device), self.middle
        fraction = torch.stack(found, 1) - middle / period
        return middle + period * (fraction - torch.round(fraction))

    def _centre(self, weights: Float[Tensor, "rows *bins"], axis: int) -> Float[Tensor, "rows"]:
        """Circular mean along an axis, in periods."""
        others = tuple(i for i in range(1, weights.ndim) if i != axis)
        along = weights.sum(others) if others else weights
        angle = 2 * math.pi / along.shape[1] * torch.arange(along.shape[1], device=along.device, dtype=along.dtype)
        return torch.atan2((along * angle.sin()).sum(1), (along * angle.cos()).sum(1)) / (2 * math.pi)


def _profile(x: Float[Tensor, "rows *shape"], explained: Float[Tensor, "rows *bins"]) -> Float[Tensor, "rows *bins"]:
    """-log(1 - e), of the energy that is explained."""
    energy = x.flatten(1).square().sum(1).clamp(min=_TINY)
    share = explained / energy.reshape(-1, *[1] * (explained.ndim - 1))
    return -torch.log1p(-share.clamp(max=_MOST))


def _finer(spectrum: Complex[Tensor, "*shape"], axis: int, parts: int) -> Complex[Tensor, "*fine"]:
    """The spectrum of as many more bins, without the Nyquist frequency, which has no phase."""
    size = spectrum.shape[axis]
    kept = (size + 1) // 2
    zeros = list(spectrum.shape)
    zeros[axis] = parts * size - 2 * kept + 1
    first, last = spectrum.narrow(axis, 0, kept), spectrum.narrow(axis, size - kept + 1, kept - 1)
    return torch.cat([first, spectrum.new_zeros(zeros), last], axis)


def _others(rows: Batch, name: str) -> dict[str, Tensor]:
    return {other: values for other, values in rows.x.items() if other != name}
