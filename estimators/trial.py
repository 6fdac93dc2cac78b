"""Trial steps: how long a step takes on this machine, without a trace in what is trained."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn

from ..data.batch import Batch
from .base import Estimator


class Trial:
    """Forward and backward passes of one batch, as often as it takes; weights, buffers and random numbers stay as they are.

    Args:
        estimator: On its device, in training mode.
        batch: Rows of a training step, on the same device.
        precision: Context that a training step runs in.
    """

    def __init__(
        self, estimator: Estimator, batch: Batch, precision: Callable[[], AbstractContextManager[object]] = nullcontext
    ) -> None:
        self.estimator, self.batch, self._precision = estimator, batch, precision

    def step(self) -> tuple[float, float]:
        """Seconds of one step, and its loss."""
        with _untouched(self.estimator):
            started = time.perf_counter()
            with self._precision():
                loss = self.estimator.member_losses(self.batch).mean(1).sum()
            loss.backward()
            if loss.is_cuda:
                torch.cuda.synchronize(loss.device)
            return time.perf_counter() - started, loss.item()

    def seconds(self, steps: int = 5) -> float:
        """Least of several steps, after one that is not counted: what others do on the machine only adds to it."""
        self.step()
        return min(self.step()[0] for _ in range(steps))


@contextmanager
def _untouched(network: nn.Module) -> Iterator[None]:
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    with torch.random.fork_rng():
        try:
            yield
        finally:
            network.zero_grad()
            for name, buffer in network.named_buffers():
                buffer.copy_(before[name])
