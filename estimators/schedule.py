"""How long, in what portions and how fast to train where nobody says: functions of the number of rows alone.

What they give does not depend on the machine or on what was measured there, so a training that is resumed elsewhere goes
on with the same values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .settings import TrainingSettings

_EPOCHS, _ROWS = 50, 10_000  # measured up to so many rows
_LEAST_STEPS = 400
_BATCHES = (32, 512)
_RATE, _RATE_BATCH = 4e-3, 256  # measured there, and a quarter of it with 32


@dataclass(frozen=True, slots=True)
class Budget:
    """Optimisation in numbers.

    Attributes:
        epochs: Passes over the training rows at most.
        batch_size: Rows in a step.
        learning_rate: Peak of the schedule.
    """

    epochs: int
    batch_size: int
    learning_rate: float


def budget(settings: TrainingSettings, rows: int) -> Budget:
    """What ``auto`` means for so many training rows; numbers that were given stay as they are."""
    batch = _batch_size(rows) if settings.batch_size == "auto" else settings.batch_size
    epochs = _epochs(rows, batch) if settings.epochs == "auto" else settings.epochs
    rate = _learning_rate(batch) if settings.learning_rate == "auto" else settings.learning_rate
    return Budget(epochs, batch, rate)


def _batch_size(rows: int) -> int:
    """A power of two near a thirty-fifth of the rows."""
    least, most = _BATCHES
    return min(most, max(least, 2 ** round(math.log2(max(rows, 1) / 35))))


def _epochs(rows: int, batch: int) -> int:
    """Fewer for many rows, so that steps grow as their square root; more for few, which are a step or two."""
    epochs = _EPOCHS * min(1.0, math.sqrt(_ROWS / max(rows, 1)))
    return max(round(epochs), math.ceil(_LEAST_STEPS / max(1, rows // batch)))


def _learning_rate(batch: int) -> float:
    """Grows with the batch, as the noise of a step falls."""
    return _RATE * (min(batch, _RATE_BATCH) / _RATE_BATCH) ** (2 / 3)
