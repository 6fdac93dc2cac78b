"""The contracts of what makes training robust: changes of the data, and terms that are added to the objective."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float
from torch import Tensor

from ...data.batch import Batch
from ..base import Estimator, seeded
from ..sharing import rank_and_world


@runtime_checkable
class Change(Protocol):
    """Trains on other data than those that were simulated."""

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Batch:
        """The batch to learn from in place of this one; random numbers are a function of the step."""


@runtime_checkable
class Term(Protocol):
    """Adds to the objective."""

    def __call__(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"] | None:
        """What a step adds to the loss of each member; None where it adds nothing."""

    def validate(self, estimator: Estimator, batch: Batch, step: int) -> Float[Tensor, "member"]:
        """What it adds to the validation loss of each member."""


def of_step(seed: int, step: int) -> AbstractContextManager[None]:
    """Draw from torch's generator as a function of (seed, step), and leave it as it was.

    Each of several processes that train together draws its own numbers, for its own rows.
    """
    rank, _ = rank_and_world()
    root = np.random.SeedSequence((seed, step), spawn_key=(rank,) if rank else ())
    return seeded(int(root.generate_state(1)[0]))
