"""The symmetry that a posterior was trained with, as whoever weights its draws by the likelihood needs to know it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from ...data.variables import Variables
from ...simulators.prior import Prior
from ..settings import EstimatorSettings
from .view import declared_symmetry

REMEDY = "`simfer check-symmetry` tests it"


@dataclass(frozen=True, slots=True)
class AssumedSymmetry:
    """Which parameters it moves.

    Attributes:
        parameters: Those that carry the pose.
        circular: Which of them are angles in radians.
    """

    parameters: tuple[str, ...]
    circular: tuple[bool, ...]

    @property
    def suspicion(self) -> str:
        """What may be wrong where the likelihood has no use for the draws."""
        moved = ", ".join(f"`{name}`" for name in self.parameters)
        return (
            f"the network has learned too little, or the symmetry under moving {moved} that it was trained with does not hold: "
            f"{REMEDY}"
        )

    def shifts(
        self,
        names: Sequence[str],
        before: Float[np.ndarray, "draw parameter"],
        after: Float[np.ndarray, "draw parameter"],
    ) -> dict[str, float]:
        """How far the median of every pose went from some draws to others, in standard deviations of the latter."""
        found = {}
        for name, circular in zip(self.parameters, self.circular, strict=True):
            first, second = (draws[:, list(names).index(name)] for draws in (before, after))
            if circular:
                middle = np.exp(1j * second).mean()
                first, second = (np.angle(np.exp(1j * values) / middle) for values in (first, second))
            spread = max(float(second.std()), np.finfo(float).tiny)
            found[name] = float(np.median(second) - np.median(first)) / spread
        return found


def assumed_symmetry(prior: Prior, observables: Variables, settings: EstimatorSettings) -> AssumedSymmetry | None:
    """What a network of these settings assumes; None where it assumes nothing."""
    if settings.symmetry is None:
        return None
    symmetry = declared_symmetry(prior, observables, settings.symmetry)
    circular = symmetry.group.circular
    alike = len(circular) == len(symmetry.parameters)
    return AssumedSymmetry(symmetry.parameters, circular if alike else (False,) * len(symmetry.parameters))
