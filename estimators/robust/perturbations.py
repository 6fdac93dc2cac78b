r"""Perturbations of a batch: uniform in a ball, or the worst in it by projected gradient ascent.

The radius is :math:`\epsilon` times the mean over training rows of the standard deviation of the entries within one, as
Gloeckler, Deistler & Macke (2023), https://arxiv.org/abs/2305.14984, measure it. Context and masks have no errors and stay as
they are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ...data.batch import Batch
from .ascent import ascend
from .balls import Ball

Named = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class Space:
    """Where x may go.

    Attributes:
        fixed: Observables that stay as they are.
        spread: What ε = 1 is.
    """

    fixed: frozenset[str]
    spread: float

    @classmethod
    def of(cls, portions: Iterable[Batch], fixed: Collection[str]) -> Space:
        """Measured on training rows: within a row, or over them where x is one number."""
        within, squares, total, rows = 0.0, 0.0, 0.0, 0
        for batch in portions:
            flat = cls(frozenset(fixed), 1.0).flat(batch.x).double()
            if flat.shape[1] > 1:
                within += float(flat.std(1).sum())
            squares, total, rows = squares + float(flat.square().sum()), total + float(flat.sum()), rows + len(flat)
            single = flat.shape[1] == 1
        over = max(squares / rows - (total / rows) ** 2, 0.0) ** 0.5
        return cls(frozenset(fixed), over if single else within / rows)

    def flat(self, x: Named) -> Float[Tensor, "rows entry"]:
        """All entries that may change."""
        return torch.cat([values.reshape(len(values), -1) for name, values in x.items() if name not in self.fixed], 1)

    def named(self, flat: Float[Tensor, "rows entry"], x: Named) -> Named:
        """Entries as the observables they belong to, beside those that stay as in x."""
        free = {name: values for name, values in x.items() if name not in self.fixed}
        parts = flat.split([values[0].numel() for values in free.values()], 1)
        return x | {n: part.reshape(values.shape) for (n, values), part in zip(free.items(), parts, strict=True)}

    def uniform(self, x: Named, ball: Ball, eps: float) -> Named:
        """x and a uniform draw of the ball."""
        flat = self.flat(x)
        return self.named(flat + eps * self.spread * ball.uniform(*flat.shape).to(flat), x)

    def worst(
        self, objective: Callable[[Named], Float[Tensor, "rows"]], x: Named, ball: Ball, eps: float, steps: int
    ) -> Named:
        """The x in the ball around each row that raises its objective most, as far as so many steps find it."""
        flat, radius = self.flat(x), eps * self.spread
        start = radius * ball.uniform(*flat.shape).to(flat)
        delta = ascend(lambda delta: objective(self.named(flat + delta, x)), start, ball, radius, steps)
        return self.named(flat + delta, x)
