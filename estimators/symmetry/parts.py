"""What an estimator needs that is made of others, which see its rows changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from torch import Tensor

from ...data.batch import Batch
from ...data.variables import Variables
from ...simulators.prior import Prior
from ..base import Estimator
from ..settings import EstimatorSettings

Build = Callable[[Prior, Variables, EstimatorSettings, int], Estimator]


class Mapped:
    """Batches, changed: iterated as often as the ones they come from."""

    def __init__(self, batches: Iterable[Batch], change: Callable[[Batch], Batch]) -> None:
        self._batches, self._change = batches, change

    def __iter__(self) -> Iterator[Batch]:
        return map(self._change, self._batches)


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state that belongs to one of them."""
    return {name.removeprefix(prefix): values for name, values in state.items() if name.startswith(prefix)}
