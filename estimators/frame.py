r"""Coordinates in which theta is of unit size where the rows are, for rows that fill little of the prior.

.. math:: y = W^\top (z - m), \qquad \log q(z) = \log q(y) + \log |\det W|,

with m the mean and :math:`W W^\top` the inverse covariance of the training rows in the prior's unconstrained space.
After truncation a density that is narrow in units of the prior is of unit width here, and all of its capacity is used.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

_LEAST_VARIANCE = 1e-12  # of a parameter that all rows share


class Frame(nn.Module):
    """z of the prior ↔ y of the rows; the identity until it is fitted.

    Args:
        dim: Number of parameters.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean: Tensor
        self.axes: Tensor
        self.register_buffer("mean", torch.zeros(dim, dtype=torch.float64))
        self.register_buffer("axes", torch.eye(dim, dtype=torch.float64))

    def fit(self, parts: Iterable[Tensor]) -> None:
        """Take mean and principal axes from all rows, portions ``(rows, parameter)``, in one pass in float64."""
        dim = len(self.mean)
        rows, total, products = 0, torch.zeros(dim).double(), torch.zeros(dim, dim).double()
        for z in parts:
            rows, total, products = rows + len(z), total + z.double().sum(0), products + z.double().T @ z.double()
        mean = total / rows
        variances, axes = torch.linalg.eigh(products / rows - mean[:, None] * mean)
        self.mean.copy_(mean)
        self.axes.copy_(axes / variances.clamp(min=_LEAST_VARIANCE).sqrt())

    def forward(self, z: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch parameter"]:
        return (z.double() - self.mean) @ self.axes

    def inverse(self, y: Float[Tensor, "*batch parameter"]) -> Float[Tensor, "*batch parameter"]:
        return y.double() @ torch.linalg.inv(self.axes) + self.mean

    @property
    def log_abs_det(self) -> Float[Tensor, ""]:
        """log |dy / dz|."""
        return torch.linalg.slogdet(self.axes).logabsdet


class Framed:
    """A density of y as one of z, with what posteriors ask of a density.

    Args:
        density: Over y; torch's, or zuko's.
        frame: Gives y.
    """

    def __init__(self, density: Any, frame: Frame) -> None:
        self.density, self.frame = density, frame
        self.has_rsample: bool = density.has_rsample
        self.batch_shape, self.event_shape = density.batch_shape, density.event_shape
        if hasattr(density, "rsample_and_log_prob"):
            self.rsample_and_log_prob = self._rsample_and_log_prob

    def log_prob(self, z: Float[Tensor, "*batch parameter"]) -> Tensor:
        return self.density.log_prob(self.frame(z).float()) + self.frame.log_abs_det.float()

    def sample(self, shape: Sequence[int] = ()) -> Tensor:
        return self.frame.inverse(self.density.sample(torch.Size(shape)))

    def rsample(self, shape: Sequence[int] = ()) -> Tensor:
        return self.frame.inverse(self.density.rsample(torch.Size(shape)))

    def _rsample_and_log_prob(self, shape: Sequence[int] = ()) -> tuple[Tensor, Tensor]:
        y, log_prob = self.density.rsample_and_log_prob(torch.Size(shape))
        return self.frame.inverse(y), log_prob + self.frame.log_abs_det.float()
