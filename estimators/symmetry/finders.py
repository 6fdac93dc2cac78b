r"""Canonical poses: functions of x alone that move along with x, :math:`\hat g(T_g x) = g\, \hat g(x)`.

| declaration | pose |
|---|---|
| `Shift`, `MoveImage` | where x is most like what training rows have in common (`matched`) |
| `Scale` | root mean square of all entries |
| `MovePoints` | centroid |
| `RotatePoints`, in the plane | direction of the centroid, :math:`\arg \sum_i z_i`, points as complex numbers |
| `PlaneMotionOfPoints` | centroid c, and the direction of the third moment, :math:`\arg \sum_i |z_i - c|^2 (z_i - c)` |

A principal axis would have no sign: third moments have. None of these is disturbed by the other components of a declaration. Images
that turn on their grid, and rotations of space, have none here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ...data.batch import Batch
from ...data.errors import ShapeError, SymmetryError, UnknownNameError, did_you_mean
from ...data.variables import Variable, Variables
from ...simulators.prior import Prior
from ...simulators.symmetry import MoveImage, MovePoints, PlaneMotionOfPoints, RotatePoints, Scale, Shift
from ..settings import NamedModule, SymmetrySettings
from .base import Symmetry
from .composed import PosedSymmetry, ProductSymmetry
from .images import DisplaceImage
from .matched import MatchedFilter
from .points import MoveAndRotateCoordinates, MoveCoordinates, RotateCoordinates
from .shifts import ShiftSignal
from .view import put

_REMEDY = "give a function as `canonical`, or use `by: proxies`"


@runtime_checkable
class Finder(Protocol):
    """Finds the pose of x; a `torch.nn.Module`, so that what it has learned is kept with the weights."""

    def __call__(self, x: dict[str, Tensor]) -> Float[Tensor, "rows element"]:
        """The pose, float64."""
        ...

    def fit(self, rows: Batch) -> None:
        """Learn what there is to learn from some of the training rows, whose poses are known."""
        ...


class _Measured(nn.Module):
    """A pose that is a function of one observable, without anything to learn."""

    def __init__(self, name: str, measure: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self._name, self._measure = name, measure

    def forward(self, x: dict[str, Tensor]) -> Float[Tensor, "rows element"]:
        return self._measure(x[self._name].double())

    def fit(self, rows: Batch) -> None:
        pass


class _Each(nn.Module):
    """Several components, each with its own."""

    def __init__(self, symmetry: ProductSymmetry, finders: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._group, self._names = symmetry.group, list(finders)
        self.finders = nn.ModuleList(finders.values())

    def forward(self, x: dict[str, Tensor]) -> Float[Tensor, "rows element"]:
        return self._group.join({name: f(x) for name, f in zip(self._names, self.finders, strict=True)})

    def fit(self, rows: Batch) -> None:
        for finder in self.finders:
            _learn(finder, rows)


class _Given(nn.Module):
    """A pose that is given in the units of theta: by an observable, or by a function of the user's own."""

    def __init__(self, prior: Prior, symmetry: Symmetry, name: str, pose: Callable[[dict[str, Tensor]], Any]) -> None:
        super().__init__()
        self._prior, self._symmetry, self._name, self._pose = prior, symmetry, name, pose
        self._columns = [prior.names.index(parameter) for parameter in symmetry.parameters]

    def forward(self, x: dict[str, Tensor]) -> Float[Tensor, "rows element"]:
        given, rows = self._pose(x), len(next(iter(x.values())))
        if not isinstance(given, Tensor) or given.shape != (rows, len(self._columns)):
            got = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ShapeError(
                f"`canonical` ({self._name}) must give a tensor of the pose, ({', '.join(self._symmetry.parameters)}), for "
                f"every row: shape {(rows, len(self._columns))}; got {got}"
            )
        middle = self._prior.from_unconstrained(given.new_zeros(rows, self._prior.dim).double())
        return self._symmetry.pose(put(middle, self._columns, given.double()))

    def fit(self, rows: Batch) -> None:
        pass


def build_finder(prior: Prior, observables: Variables, symmetry: Symmetry, settings: SymmetrySettings) -> nn.Module:
    """What finds the poses of x.

    Raises:
        SymmetryError: A group without a canonical pose on these data.
        UnknownNameError: No such observable, or a function of which only the name is known.
    """
    chosen = settings.canonical
    if isinstance(chosen, NamedModule):
        return _Given(prior, symmetry, chosen.name, chosen.build)
    if chosen is not None and ":" in chosen:
        raise UnknownNameError(
            f"`canonical` {chosen} is a function of your own, and a model imports nothing: hand it over, "
            f"load(folder, modules={{{chosen!r}: {chosen.rpartition(':')[2]}}})"
        )
    if chosen is not None:
        return _of_observable(chosen, prior, observables, symmetry)
    if not isinstance(symmetry, ProductSymmetry) or not isinstance(settings.declared, Mapping):
        raise SymmetryError(f"a symmetry of one's own has no canonical pose that is known: {_REMEDY}")
    return _Each(
        symmetry, {name: _found(name, one, prior, observables, symmetry) for name, one in settings.declared.items()}
    )


def _of_observable(name: str, prior: Prior, observables: Variables, symmetry: Symmetry) -> nn.Module:
    if name not in observables.names:
        raise UnknownNameError(
            f"`canonical` must be an observable that gives the pose, or module:function; no observable `{name}`; "
            f"{did_you_mean(name, observables.names)}"
        )
    return _Given(prior, symmetry, name, lambda x: x[name].flatten(1) if x[name].ndim > 1 else x[name][:, None])


def _learn(finder: Any, rows: Batch) -> None:
    finder.fit(rows)


def _found(name: str, declared: Any, prior: Prior, observables: Variables, symmetry: ProductSymmetry) -> nn.Module:
    component: Any = symmetry.components[name]
    of = declared.of
    first = observables[of if isinstance(of, str) else of[0]]
    try:
        return _finder(declared, component, first, prior)
    except SymmetryError as error:
        raise SymmetryError(f"`symmetry` of `{name}`: {error}") from error


@singledispatch
def _finder(declared: Any, symmetry: PosedSymmetry, of: Variable, prior: Prior) -> nn.Module:
    raise SymmetryError(f"{type(declared).__name__} has no canonical pose that moves along exactly: {_REMEDY}")


@_finder.register
def _(declared: Shift, symmetry: PosedSymmetry, of: Variable, prior: Prior) -> nn.Module:
    action = symmetry.on_x[of.name]
    assert isinstance(action, ShiftSignal)
    return MatchedFilter(of, (action.axis,), action.spacing, symmetry, _middle(prior, symmetry))


@_finder.register
def _(declared: MoveImage, symmetry: PosedSymmetry, of: Variable, prior: Prior) -> nn.Module:
    action = symmetry.on_x[of.name]
    assert isinstance(action, DisplaceImage)
    return MatchedFilter(of, action.axes, action.spacing, symmetry, _middle(prior, symmetry))


@_finder.register
def _(declared: Scale, symmetry: PosedSymmetry, of: Variable, prior: Prior) -> nn.Module:
    return _Measured(of.name, lambda x: x.flatten(1).square().mean(1, keepdim=True).sqrt())


@_finder.register
def _(declared: MovePoints, symmetry: PosedSymmetry, of: Variable, prior: Prior) -> nn.Module:
    action = symmetry.on_x[of.name]
    assert isinstance(action, MoveCoordinates)
    return _Measured(of.name, lambda x: _points(x, action.entries).mean(1))


@_finder.register
def _(declared: RotatePoints, symmetry: PosedSymmetry, of: Variable, prior: Prior) -> nn.Module:
    action = symmetry.on_x[of.name]
    assert isinstance(action, RotateCoordinates)
    if len(action.entries) != 2:
        raise SymmetryError(f"RotatePoints in space has no canonical pose here: {_REMEDY}")
    return _Measured(of.name, lambda x: _direction(_points(x, action.entries).mean(1)))


@_finder.register
def _(declared: PlaneMotionOfPoints, symmetry: PosedSymmetry, of: Variable, prior: Prior) -> nn.Module:
    action = symmetry.on_x[of.name]
    assert isinstance(action, MoveAndRotateCoordinates)
    if of.size <= 2 * (of.shape[-1] if of.shape else 1):
        raise SymmetryError(
            f"PlaneMotionOfPoints needs three points to see a direction, `{of.name}` has fewer: {_REMEDY}"
        )
    return _Measured(of.name, lambda x: _motion(_points(x, action.entries)))


def _points(x: Float[Tensor, "rows *shape"], entries: tuple[int, ...]) -> Float[Tensor, "rows point coordinate"]:
    return x[..., list(entries)].reshape(len(x), -1, len(entries))


def _direction(vector: Float[Tensor, "rows 2"]) -> Float[Tensor, "rows 1"]:
    return torch.atan2(vector[:, 1:], vector[:, :1])


def _motion(points: Float[Tensor, "rows point 2"]) -> Float[Tensor, "rows 3"]:
    """The third moment is invariant under displacements of x, and turns with it."""
    centre = points.mean(1)
    off = points - centre[:, None]
    return torch.cat([centre, _direction((off.square().sum(-1, keepdim=True) * off).mean(1))], 1)


def _middle(prior: Prior, symmetry: PosedSymmetry) -> Float[Tensor, "coordinate"]:
    """Of the prior's poses: what is periodic is looked for around it."""
    theta = prior.from_unconstrained(torch.zeros(1, prior.dim, dtype=torch.float64))
    return symmetry.group.coordinates(symmetry.pose(theta))[0]
