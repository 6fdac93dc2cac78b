"""x of many independent observations of one theta: who has an axis of trials, and who gets one."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import torch
from torch import Tensor

from ..data.errors import ShapeError
from ..data.variables import Variables
from .base import XLike, named_rows


def one_set(x: XLike, observables: Variables, context: Collection[str], *, finite: bool) -> dict[str, Tensor]:
    """Rows of x as the trials of one observation, ``(1, trial, *shape)``; context may have one row for all.

    Raises:
        ShapeError: Names or shapes do not fit.
        NotFiniteError: An entry is NaN or infinite, where it must not be.
    """
    if not isinstance(x, Mapping) or not context:
        rows = named_rows(x, observables, finite=finite)
    else:
        rows = {}
        for known in (False, True):
            part = Variables(v for v in observables if (v.name in context) == known)
            given = {name: values for name, values in x.items() if (name in context) == known}
            rows |= named_rows(given, part, finite=finite)
    return _broadcast({name: values[None] for name, values in rows.items()}, context)


def many_sets(x: XLike, observables: Variables, context: Collection[str], *, finite: bool) -> dict[str, Tensor]:
    """x of many observations as ``(observation, trial, *shape)``: rows have one trial each, unless there is an axis more.

    Raises:
        ShapeError: Names or shapes do not fit.
        NotFiniteError: An entry is NaN or infinite, where it must not be.
    """
    named = x if isinstance(x, Mapping) or len(observables) > 1 else {observables.names[0]: x}
    shapes = {v.name: v.shape for v in observables}
    if not isinstance(named, Mapping) or not any(_has_trials(v, shapes.get(name)) for name, v in named.items()):
        rows = named_rows(x, observables, finite=finite)
        return {name: values[:, None] for name, values in rows.items()}
    tensors = {name: torch.as_tensor(values) for name, values in named.items()}
    sets = {name: v if _has_trials(v, shapes.get(name)) else v[:, None] for name, v in tensors.items()}
    sets = _broadcast(sets, context)
    sizes = next(iter(sets.values())).shape[:2]
    rows = named_rows({name: v.flatten(0, 1) for name, v in sets.items()}, observables, finite=finite)
    return {name: values.unflatten(0, sizes) for name, values in rows.items()}


def _has_trials(values: XLike, shape: tuple[int, ...] | None) -> bool:
    return shape is not None and np.ndim(values) == len(shape) + 2


def _broadcast(sets: dict[str, Tensor], context: Collection[str]) -> dict[str, Tensor]:
    most = max(values.shape[1] for values in sets.values())
    for name in set(context) & set(sets):
        if sets[name].shape[1] == 1:
            sets[name] = sets[name].expand(-1, most, *sets[name].shape[2:])
    sizes = {name: tuple(values.shape[:2]) for name, values in sets.items()}
    if len(set(sizes.values())) > 1:
        raise ShapeError(
            f"`x` must have equally many observations and trials in every observable; got {sizes}: only context may "
            "have one row for all trials"
        )
    return sets
