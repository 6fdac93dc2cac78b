r"""A moving average of the gradient of a term, in place of the gradient of each step.

.. math:: m_t = (1 - d)\, g_t + d\, m_{t-1}, \qquad \hat g_t = m_t / (1 - d^t)

as Gloeckler, Deistler & Macke (2023), https://arxiv.org/abs/2305.14984, smooth that of the Fisher information, with d = .15.
It reaches the optimiser as the gradient of :math:`\langle \hat g, \phi \rangle`, a part of the loss: so it is clipped with the
rest. All processes of a distributed training average over the gradients of all: their averages, of which one process saves
its own, never differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..sharing import share_means


class GradientAverage:
    """Of one term.

    Args:
        decay: d above.
    """

    def __init__(self, decay: float) -> None:
        self._decay, self._count = decay, 0
        self._mean: list[Tensor] = []

    def add(self, value: Float[Tensor, ""], parameters: Sequence[Tensor]) -> None:
        """Take the gradient of a value into the average."""
        found = torch.autograd.grad(value, parameters, allow_unused=True)
        new = [torch.zeros_like(p) if g is None else g.detach() for p, g in zip(parameters, found, strict=True)]
        share_means(new)
        old = self._mean or [torch.zeros_like(g) for g in new]
        self._mean = [g.lerp(mean.to(g), self._decay) for g, mean in zip(new, old, strict=True)]
        self._count += 1

    def term(self, parameters: Sequence[Tensor]) -> Float[Tensor, ""]:
        """Zero, whose gradient is the average."""
        inner = torch.stack([(p * mean.to(p)).sum() for p, mean in zip(parameters, self._mean, strict=True)]).sum()
        return (inner - inner.detach()) / (1 - self._decay**self._count)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self._count, "mean": self._mean}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._count, self._mean = state["count"], list(state["mean"])
