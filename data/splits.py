"""Which rows are held out: the last ones, and never a part of a group."""

from __future__ import annotations

import numpy as np

from .errors import ShapeError
from .store import SimulationStore


def held_out(store: SimulationStore, pairs: int) -> np.ndarray:
    """Which rows of a store are kept from training to be checked on, one truth value each.

    The last ``pairs`` rows; where rows belong to groups, whole groups, those that appear last, until there are at least
    ``pairs`` rows. Rows that are not usable count as others do, so that what is held out does not depend on them.

    Raises:
        ShapeError: Nothing is left to train on.
    """
    group = store.read_array("group") if store.schema.grouped and pairs else None
    held = last_rows(store.rows, pairs, group)
    if held.all():
        what = f"groups that hold {pairs} rows" if group is not None else f"{pairs} rows"
        raise ShapeError(
            f"`diagnose.pairs` holds out {what}, which is all of {store.path}: give fewer, or simulate more"
        )
    return held


def hold_out(keep: np.ndarray, fraction: float, group: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Which of the kept rows to learn from and which to validate with: the last ones, a fraction of all.

    Args:
        keep: Which rows take part, one truth value each.
        fraction: To validate with.
        group: Of every row. Rows of one group stay together, the last groups are held out, and the fraction is
            exceeded by less than one group.

    Raises:
        ShapeError: Too few rows, or groups, for both.
    """
    index = np.flatnonzero(keep)
    held = max(1, round(fraction * len(index)))
    last = index[last_rows(len(index), held, None if group is None else group[index])]
    validate = np.zeros_like(keep)
    validate[last] = True
    if len(last) >= len(index):
        what = "rows" if group is None else "groups"
        raise ShapeError(f"`theta` must have at least 2 {what} to train and validate with; got {len(index)} rows")
    return keep & ~validate, validate


def last_rows(rows: int, count: int, group: np.ndarray | None = None) -> np.ndarray:
    """The last ``count`` rows as a mask; with groups all rows of the last ones, as few as hold ``count`` rows."""
    held = np.arange(rows) >= rows - count
    if group is None or not count:
        return held
    names, first, counts = np.unique(group[::-1], return_index=True, return_counts=True)
    order = np.argsort(first)
    needed = int(np.searchsorted(np.cumsum(counts[order]), count)) + 1
    return np.isin(group, names[order[:needed]])
