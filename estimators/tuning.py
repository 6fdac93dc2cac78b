"""What a training decides on the spot and what cannot change its results: threads, and whether to compile."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from ..data.loaders import Rows, make_loader
from .base import Estimator
from .compiled import Compilation, When
from .trial import Trial

logger = logging.getLogger("simfer.train")

_LARGE = 10**8  # multiplications and additions in a step from which a second thread may pay
_FASTER = 0.85  # a step must take less than this share of the time for twice the threads to be used


class Tuning:
    """A look at the machine before the first step.

    Args:
        rows: Training rows, for a trial.
        batch_size: Of a step.
        compile: Whether to compile.
        threads: How many may be used; None to leave them alone.
    """

    def __init__(self, rows: Rows, batch_size: int, compile: When, threads: int | None) -> None:
        self._rows, self._batch_size, self._threads = rows, batch_size, threads
        self.compilation = Compilation(compile)

    def decide(
        self,
        estimator: Estimator,
        steps: int,
        device: torch.device,
        precision: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        """Choose for so many steps of an estimator that is on its device, each in the context ``precision``."""
        if steps <= 0:
            return
        trial = Trial(estimator, next(iter(make_loader(self._rows, self._batch_size))).to(device), precision)
        if self._threads and device.type == "cpu":
            use_best_threads(trial, self._threads)
        self.compilation.decide(trial, steps)


def use_best_threads(trial: Trial, most: int) -> int:
    """Set and return how many torch threads make a step fastest; one, without a look, where a step is small."""
    best = 1
    torch.set_num_threads(best)
    if _work(trial) < _LARGE or most == 1:
        return best
    seconds = trial.seconds()
    while 2 * best <= most:
        torch.set_num_threads(2 * best)
        doubled = trial.seconds()
        if doubled > _FASTER * seconds:
            break
        best, seconds = 2 * best, doubled
    torch.set_num_threads(best)
    logger.info("threads: %d, a step takes %.1f ms", best, 1000 * seconds)
    return best


def _work(trial: Trial) -> int:
    """Of a step whose weights each act once on every row, there and back."""
    return 6 * trial.batch.rows * sum(weights.numel() for weights in trial.estimator.parameters())
