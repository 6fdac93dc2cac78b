"""What goes through a training step: rows of theta and x as tensors."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from .errors import NotFiniteError


class Batch(NamedTuple):
    """Rows of simulations, row i of ``x`` simulated at row i of ``theta``.

    ``theta`` is float64, as on disk, because the bijection to unconstrained space needs its tails; ``x`` maps the
    name of an observable to a float32 tensor of shape ``(rows, *shape)``.
    """

    theta: Float[Tensor, "rows parameter"]
    x: dict[str, Tensor]

    @property
    def rows(self) -> int:
        return len(self.theta)

    @property
    def nbytes(self) -> int:
        return self.theta.nbytes + sum(values.nbytes for values in self.x.values())

    def select(self, index: Tensor | slice) -> Batch:
        return Batch(self.theta[index], {name: values[index] for name, values in self.x.items()})

    def to(self, device: object) -> Batch:
        return Batch(self.theta.to(device), {name: values.to(device) for name, values in self.x.items()})  # type: ignore[call-overload]


def require_float32(name: str, values: np.ndarray, cast: np.ndarray) -> None:
    """Raise NotFiniteError where float32 turned finite numbers infinite, or all that is not 0 to 0."""
    if cast.dtype == values.dtype or not cast.size:
        return
    lost = np.isinf(cast).any() and np.isfinite(values[np.isinf(cast)]).any()
    if lost or (not cast.any() and values.any()):
        raise NotFiniteError(
            f"`x[{name!r}]` must be numbers that float32 can hold, from 1e-45 to 3e38 in size; got "
            f"{np.nanmax(np.abs(values[np.isfinite(values)])):.3g}: choose another unit"
        )
