"""What goes through a training step: rows of theta and x as tensors."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from torch import Tensor

from .errors import NotFiniteError


class Batch(NamedTuple):
    """Rows of simulations, row i of ``x`` simulated at row i of ``theta``.

    ``theta`` is float64, as on disk, because the bijection to unconstrained space needs its tails; ``x`` maps the
    name of an observable to a float32 tensor of shape ``(rows, *shape)``. What depends on theta alone may have been computed
    ahead: ``z``, theta in the prior's unconstrained space, float32, and ``log_abs_det``, log |dz / dtheta|, float64.
    """

    theta: Float[Tensor, "rows parameter"]
    x: dict[str, Tensor]
    z: Float[Tensor, "rows parameter"] | None = None
    log_abs_det: Float[Tensor, "rows"] | None = None

    @property
    def rows(self) -> int:
        return len(self.theta)

    @property
    def nbytes(self) -> int:
        return self.theta.nbytes + sum(values.nbytes for values in self.x.values())

    def select(self, index: Tensor | slice) -> Batch:
        return self._each(lambda values: values[index])

    def to(self, device: object) -> Batch:
        return self._each(lambda values: values.to(device))  # type: ignore[call-overload]

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        x = {name: change(values) for name, values in self.x.items()}
        if self.z is None or self.log_abs_det is None:
            return Batch(change(self.theta), x)
        return Batch(change(self.theta), x, change(self.z), change(self.log_abs_det))


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
