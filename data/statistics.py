r"""Statistics of more rows than memory holds, in one pass and in float64.

Means and sums of squares of two sets of rows A and B are merged by

.. math:: \delta = \bar{x}_B - \bar{x}_A, \qquad \bar{x} = \bar{x}_A + \delta \frac{n_B}{n}, \qquad
    M = M_A + M_B + \delta^2 \frac{n_A n_B}{n},

Chan, Golub & LeVeque (1983), The American Statistician 37, 242–247: as accurate as two passes, whatever the mean.
Quantiles come from rows picked beforehand, uniformly without replacement, or, where their number is not known beforehand,
from every so many of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from .errors import ShapeError

QUANTILE_ROWS = 10_000
_QUANTILE_ENTRIES = 2**23  # torch takes no more than 16 million at once


class Moments:
    """Count, mean and sum of squared deviations of every column, over the entries that are finite.

    Args:
        columns: How many.
    """

    def __init__(self, columns: int) -> None:
        self.count = torch.zeros(columns, dtype=torch.int64)
        self.mean = torch.zeros(columns, dtype=torch.float64)
        self.squares = torch.zeros(columns, dtype=torch.float64)

    def update(self, values: Float[Tensor, "rows column"]) -> None:
        values, finite = values.double(), values.isfinite()
        count = finite.sum(0)
        mean = values.where(finite, 0).sum(0) / count.clamp(min=1)
        squares = (values - mean).where(finite, 0).square().sum(0)
        total, delta = (self.count + count).clamp(min=1), mean - self.mean
        self.mean += delta * (count / total.double())
        self.squares += squares + delta.square() * (self.count * (count / total.double()))
        self.count += count

    @property
    def sd(self) -> Float[Tensor, "column"]:
        """Root of the mean squared deviation; 0 where nothing was finite."""
        return (self.squares / self.count.clamp(min=1)).sqrt()


@dataclass(frozen=True, slots=True)
class Statistics:
    """Of every column; ``quantiles`` has one row per level."""

    mean: Float[Tensor, "column"]
    sd: Float[Tensor, "column"]
    quantiles: Float[Tensor, "level column"]


def stream_statistics(
    parts: Iterable[Float[Tensor, "_ column"]],
    rows: int,
    levels: Sequence[float] = (0.05, 0.5, 0.95),
    *,
    most: int = QUANTILE_ROWS,
    seed: int = 0,
) -> Statistics:
    """Mean, standard deviation and quantiles of all parts taken together, in one pass.

    Args:
        parts: Rows in portions, in an order that is always the same.
        rows: How many there are in all.
        levels: Of the quantiles.
        most: Rows the quantiles are taken from: exact up to there; beyond, the level of a quantile p is met with a
            standard error of √(p (1 − p) / most), at most 0.005 for 10,000.
        seed: Picks these rows.

    Raises:
        ShapeError: Another number of rows came than was said.
    """
    picked = np.sort(np.random.default_rng(seed).choice(rows, min(most, rows), replace=False))
    moments, kept, seen = None, [], 0
    for part in parts:
        moments = moments or Moments(part.shape[1])
        moments.update(part)
        first, last = np.searchsorted(picked, (seen, seen + len(part)))
        kept.append(part[picked[first:last] - seen].double())
        seen += len(part)
    if moments is None or seen != rows:
        raise ShapeError(f"`rows` must be the number of rows in all parts, {seen}; got {rows}")
    quantiles = torch.cat(kept).nanquantile(torch.tensor(levels, dtype=torch.float64), 0)
    return Statistics(moments.mean, moments.sd, quantiles)


class Thinned:
    """Every row, every second, every fourth, …: no more than ``most``, whatever portions they come in.

    Args:
        most: Rows kept at most; more than half as many are, if there were.
    """

    def __init__(self, most: int) -> None:
        self.most, self.every, self.seen = most, 1, 0
        self._kept: list[Tensor] = []

    def update(self, values: Float[Tensor, "_ column"]) -> None:
        self._kept.append(values[-self.seen % self.every :: self.every].clone())
        self.seen += len(values)
        while sum(map(len, self._kept)) > self.most:
            self._kept = [torch.cat(self._kept)[::2]]
            self.every *= 2

    @property
    def rows(self) -> Float[Tensor, "_ column"]:
        return torch.cat(self._kept)


def column_quantiles(
    values: Float[Tensor, "_ column"], levels: Float[Tensor, "level"]
) -> Float[Tensor, "level column"]:
    """Quantiles of the finite entries of every column, in float64; 0 where there are none."""
    values = values.double()
    finite = values.where(values.isfinite(), torch.nan)
    rows = max(1, _QUANTILE_ENTRIES // max(len(values), 1))
    return torch.cat([part.nanquantile(levels, 0) for part in finite.split(rows, 1)], 1).nan_to_num(nan=0.0)
