"""Where the training data lay: least and largest value of every observable entry, and what an observation has beyond them.

A network says nothing about data unlike those it was trained on, and says it with confidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .batch import Batch
from .variables import Variables

MARGIN = 0.1  # of a range's width: the next rows of the same simulator exceed the range itself now and then
_MOST_NAMED = 3


class OutsideTrainingWarning(UserWarning):
    """An observation lies where no training row was."""


@dataclass(frozen=True, slots=True)
class Outside:
    """One entry of an observation beyond the range of the training rows.

    Attributes:
        observable: Its name.
        index: Of the entry, () for a scalar.
        value: What was observed.
        low: Least value of the training rows.
        high: Largest.
    """

    observable: str
    index: tuple[int, ...]
    value: float
    low: float
    high: float

    def __str__(self) -> str:
        place = f"[{', '.join(map(str, self.index))}]" if self.index else ""
        return f"`{self.observable}{place}` is {self.value:.4g}, trained on {self.low:.4g} to {self.high:.4g}"


class Ranges:
    """Least and largest value of every entry of x over the rows that were seen.

    Attributes:
        rows: How many were seen in the first whole pass; 0 before its end.
        low: Observable → array of its shape; what is not finite does not count.
        high: The same.
    """

    def __init__(self, low: Mapping[str, Tensor] | None = None, high: Mapping[str, Tensor] | None = None) -> None:
        self.low, self.high = dict(low or {}), dict(high or {})
        self.rows = 0

    def __bool__(self) -> bool:
        return bool(self.low)

    def watch(self, portions: Iterable[Batch]) -> Iterable[Batch]:
        """The same portions, as often as they are iterated; what goes by in the first whole pass is taken into account."""
        return _Watched(self, portions)

    def update(self, x: Mapping[str, Tensor]) -> None:
        """Take rows ``{observable: (rows, *shape)}`` into account."""
        for name, values in x.items():
            finite = values.isfinite()
            low = values.where(finite, torch.inf).amin(0)
            high = values.where(finite, -torch.inf).amax(0)
            self.low[name] = torch.minimum(self.low.get(name, low), low)
            self.high[name] = torch.maximum(self.high.get(name, high), high)

    def constant(self) -> list[str]:
        """Entries that had one value alone, as ``x[3]``."""
        found = []
        for name, low in self.low.items():
            for index in (low == self.high[name]).nonzero().tolist():
                found.append(f"{name}[{', '.join(map(str, index))}]" if index else name)
        return found

    def outside(self, rows: Mapping[str, np.ndarray]) -> tuple[int, list[Outside]]:
        """How many rows lie beyond the ranges by more than a tenth of their width, and where the first of them does."""
        masks = {name: self._mask(name, values) for name, values in rows.items() if name in self.low}
        if not masks:
            return 0, []
        bad = np.stack([mask.reshape(len(mask), -1).any(1) for mask in masks.values()]).any(0)
        if not bad.any():
            return 0, []
        first = int(bad.argmax())
        entries = [
            self._entry(name, rows[name][first], place) for name in masks for place in np.argwhere(masks[name][first])
        ]
        return int(bad.sum()), entries

    def _mask(self, name: str, values: np.ndarray) -> np.ndarray:
        low, high = self.low[name].double().numpy(), self.high[name].double().numpy()
        margin = MARGIN * (high - low)
        seen = values.astype(np.float32)  # as the network sees it
        return np.asarray((seen < low - margin) | (seen > high + margin))

    def _entry(self, name: str, values: ArrayLike, place: np.ndarray) -> Outside:
        index = tuple(place.tolist())
        low, high = float(self.low[name][index]), float(self.high[name][index])
        return Outside(name, index, float(np.asarray(values)[index]), low, high)

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat, for a file of tensors; `from_tensors` reads it."""
        sides = {"low": self.low, "high": self.high}
        return {f"{side}.{name}": values for side, named in sides.items() for name, values in named.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor], observables: Variables) -> Ranges:
        """What `to_tensors` gave, of observables that have one."""
        sides = [
            {n: tensors[f"{side}.{n}"] for n in observables.names if f"{side}.{n}" in tensors}
            for side in ("low", "high")
        ]
        return cls(*sides)


class _Watched:
    def __init__(self, ranges: Ranges, portions: Iterable[Batch]) -> None:
        self._ranges, self._portions = ranges, portions

    def __iter__(self) -> Iterator[Batch]:
        if self._ranges.rows:  # seen already
            yield from self._portions
            return
        rows = 0
        for batch in self._portions:
            self._ranges.update({name: values.detach().cpu() for name, values in batch.x.items()})
            rows += batch.rows
            yield batch
        self._ranges.rows = rows


def advice(bad: int, entries: list[Outside], rows: int) -> str:
    """What to say of ``bad`` of ``rows`` observations outside, the first of them in ``entries``."""
    named = "; ".join(str(each) for each in entries[:_MOST_NAMED])
    more = f"; and {len(entries) - _MOST_NAMED} more" if len(entries) > _MOST_NAMED else ""
    which = "the observation lies" if rows == 1 else f"{bad} of {rows} observations lie"
    first = "" if rows == 1 else ", as the first of them"
    return (
        f"{which} outside the training data{first}: {named}{more}. The posterior there is extrapolated and not to be "
        "trusted: check the data and their units, or widen the simulations"
    )
