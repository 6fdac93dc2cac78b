"""What goes through a training step: rows of theta and x as tensors."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


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
