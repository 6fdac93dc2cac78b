"""A simulator known only by the store it filled: its prior and observables, without its code."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..data.errors import SimulatorError
from ..data.store import SimulationStore
from ..data.variables import Variables
from .prior import Prior


@dataclass(frozen=True, slots=True)
class RecordedContext:
    """The known nuisance of rows that are there already."""

    variables: Variables

    def draw(self, rows: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
        raise SimulatorError("the simulator is not here, only what it left: its context cannot be drawn")


class Recorded:
    """Stands in where a finished run is opened on a machine that has not its simulator.

    Args:
        store: What the simulator left behind.
        observations: Observations by name, as a simulator ships them.
    """

    def __init__(self, store: SimulationStore, observations: Mapping[str, Any] | None = None) -> None:
        self.prior = Prior.from_json(store.attributes["campaign"]["prior"])
        self.observables = store.observables
        if len(store.schema.context):
            self.context = RecordedContext(store.schema.context)
        self.observations = dict(observations or {})
        self._name = store.attributes["campaign"]["simulator"]["class"]

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        raise SimulatorError(f"the simulator {self._name} is not here, only what it left: install it to simulate")
