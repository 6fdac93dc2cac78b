"""From what a simulator declares to a `Symmetry` that acts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import singledispatch
from typing import Any

import numpy as np
import torch

from ...data.errors import SymmetryError, did_you_mean
from ...data.variables import Variable, Variables
from ...simulators.prior import Prior
from ...simulators.symmetry import (
    MoveImage,
    MovePoints,
    PlaneMotion,
    PlaneMotionOfPoints,
    RotateImage,
    RotatePoints,
    Scale,
    Shift,
)
from .amplitudes import ScaleValues
from .base import Action, LieGroup, Symmetry
from .composed import PosedSymmetry, ProductSymmetry
from .images import DisplaceAndTurnImage, DisplaceImage, TurnImage
from .points import MoveAndRotateCoordinates, MoveCoordinates, RotateCoordinates
from .poses import CoordinatePose, FactorPose
from .rotations import Rotations
from .scalings import Scalings
from .se2 import SE2
from .shifts import ShiftSignal
from .so3 import SO3
from .translations import Translations

_TRIED = 1000  # rotation vectors, to see how far a prior reaches


def build_symmetry(prior: Prior, observables: Variables, declared: Any) -> Symmetry:
    """Make a declaration act.

    Args:
        prior: Of theta; gives the order of the parameters.
        observables: What x consists of.
        declared: Component → declaration; or what is a `Symmetry` already, which is given back.

    Raises:
        SymmetryError: No such parameter, observable or axis; a shape that has no such symmetry; a parameter that carries two
            poses, or that the prior ties to others.
    """
    if isinstance(declared, Symmetry):
        return declared
    if not isinstance(declared, Mapping) or not declared:
        raise SymmetryError(
            f"`symmetry` must name its components, such as {{'time': Shift(...)}}, or be a Symmetry; got {declared!r}"
        )
    components = {}
    for name, declaration in declared.items():
        try:
            components[str(name)] = _component(declaration, prior, observables)
        except SymmetryError as error:
            raise SymmetryError(f"`symmetry` of `{name}`: {error}") from error
    _require_apart(declared)
    return ProductSymmetry(components)


@singledispatch
def _component(declared: Any, prior: Prior, observables: Variables) -> Symmetry:
    raise SymmetryError(
        f"must be a declaration of simfer.simulators.symmetry, such as Shift(...); got {type(declared).__name__}"
    )


@_component.register
def _(declared: Shift, prior: Prior, observables: Variables) -> Symmetry:
    pose = _pose(Translations(1), (declared.by,), prior, (declared.origin,), declared.others)
    _require_spacing(declared.spacing)
    return _posed(pose, declared.of, observables, lambda v: ShiftSignal(_axis(v, declared.along), declared.spacing))


@_component.register
def _(declared: Scale, prior: Prior, observables: Variables) -> Symmetry:
    columns = _columns((declared.by, *declared.others), prior)
    _require_untied((declared.by,), prior)
    for name in (declared.by, *declared.others):
        if prior.variables[name].support.low < 0:
            raise SymmetryError(f"a factor must be positive, and the prior of `{name}` goes below 0")
    if not declared.origin > 0:
        raise SymmetryError(f"`origin` of a factor must be above 0; got {declared.origin}")
    pose = FactorPose((declared.by,), columns[0], declared.origin, columns[1:])
    return PosedSymmetry(Scalings(), pose, _actions(declared.of, observables, lambda v: ScaleValues()))


@_component.register
def _(declared: MoveImage, prior: Prior, observables: Variables) -> Symmetry:
    origin = _origin(declared, observables)
    pose = _pose(Translations(2), declared.by, prior, origin)
    return _posed(pose, declared.of, observables, lambda v: DisplaceImage(_axes(v, declared.along), declared.spacing))


@_component.register
def _(declared: RotateImage, prior: Prior, observables: Variables) -> Symmetry:
    pose = _pose(Rotations(), (declared.by,), prior, others=declared.others)
    return _posed(pose, declared.of, observables, lambda v: TurnImage(_square(v, declared.along)))


@_component.register
def _(declared: PlaneMotion, prior: Prior, observables: Variables) -> Symmetry:
    origin = _origin(declared, observables)
    pose = _pose(SE2(), (*declared.by, declared.angle), prior, (*origin, 0.0))
    return _posed(
        pose, declared.of, observables, lambda v: DisplaceAndTurnImage(_square(v, declared.along), declared.spacing)
    )


@_component.register
def _(declared: MovePoints, prior: Prior, observables: Variables) -> Symmetry:
    pose = _pose(Translations(len(declared.by)), declared.by, prior)
    size = len(declared.by)
    return _posed(pose, declared.of, observables, lambda v: MoveCoordinates(_entries(v, declared.entries, size)))


@_component.register
def _(declared: RotatePoints, prior: Prior, observables: Variables) -> Symmetry:
    if isinstance(declared.by, str) or len(declared.by) not in (1, 3):
        raise SymmetryError(f"`by` must name one angle, or the three of a rotation vector; got {declared.by!r}")
    flat = len(declared.by) == 1
    group: LieGroup = Rotations() if flat else SO3()
    pose = _pose(group, declared.by, prior)
    if not flat:
        _require_half_turn(declared.by, prior)
    size = 2 if flat else 3
    return _posed(pose, declared.of, observables, lambda v: RotateCoordinates(_entries(v, declared.entries, size)))


@_component.register
def _(declared: PlaneMotionOfPoints, prior: Prior, observables: Variables) -> Symmetry:
    pose = _pose(SE2(), (*declared.by, declared.angle), prior)
    return _posed(pose, declared.of, observables, lambda v: MoveAndRotateCoordinates(_entries(v, declared.entries, 2)))


def _posed(
    pose: CoordinatePose, of: str | tuple[str, ...], observables: Variables, make: Callable[[Variable], Action]
) -> PosedSymmetry:
    return PosedSymmetry(pose.group, pose, _actions(of, observables, make))


def _pose(
    group: LieGroup,
    names: tuple[str, ...],
    prior: Prior,
    origin: tuple[float, ...] | None = None,
    others: tuple[str, ...] = (),
) -> CoordinatePose:
    if len(names) != group.freedom:
        raise SymmetryError(f"needs {group.freedom} parameters to carry its pose; got {', '.join(names)}")
    columns, moved = _columns(names, prior), _columns(others, prior)
    _require_untied(names, prior)
    centres = tuple(_centre(prior.variables[name], flag) for name, flag in zip(names, group.circular, strict=True))
    angles = len(group.circular) == 1 and group.circular[0]
    turned = tuple(_centre(prior.variables[name], True) for name in others) if angles else ()
    return CoordinatePose(group, names, columns, origin or (0.0,) * len(names), centres, moved, turned)


def _actions(
    of: str | tuple[str, ...], observables: Variables, make: Callable[[Variable], Action]
) -> dict[str, Action]:
    return {name: make(_variable(name, observables)) for name in _names(of)}


def _names(given: str | tuple[str, ...]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def _columns(names: tuple[str, ...], prior: Prior) -> tuple[int, ...]:
    for name in names:
        if name not in prior.names:
            raise SymmetryError(f"no parameter `{name}`; {did_you_mean(name, prior.names)}")
    if len(set(names)) != len(names):
        raise SymmetryError(f"a parameter is named twice: {', '.join(names)}")
    return tuple(prior.names.index(name) for name in names)


def _variable(name: str, observables: Variables) -> Variable:
    if name not in observables.names:
        raise SymmetryError(f"no observable `{name}`; {did_you_mean(name, observables.names)}")
    variable = observables[name]
    if variable.support.integer or not variable.dtype.startswith("float"):
        raise SymmetryError(f"`{name}` holds whole numbers, which do not stay whole when they are moved")
    return variable


def _axis(variable: Variable, name: str) -> int:
    """With the rows as axis 0."""
    if not variable.shape:
        raise SymmetryError(f"`{variable.name}` is a single number: it has no axis `{name}`")
    if name not in variable.axes:
        raise SymmetryError(f"`{variable.name}` has no axis `{name}`; {did_you_mean(name, variable.axes)}")
    return 1 + variable.axes.index(name)


def _axes(variable: Variable, names: tuple[str, str]) -> tuple[int, int]:
    first, second = (_axis(variable, name) for name in names)
    if first == second:
        raise SymmetryError(f"an image has two axes; got `{names[0]}` twice")
    return first, second


def _square(variable: Variable, names: tuple[str, str]) -> tuple[int, int]:
    axes = _axes(variable, names)
    sides = [variable.shape[axis - 1] for axis in axes]
    if sides[0] != sides[1]:
        raise SymmetryError(f"only a square image can be rotated; `{variable.name}` has {sides[0]} × {sides[1]} pixels")
    return axes


def _entries(variable: Variable, given: tuple[int, ...] | None, size: int) -> tuple[int, ...]:
    entries = tuple(range(size)) if given is None else tuple(given)
    length = variable.shape[-1] if variable.shape else 1
    if len(set(entries)) != size or not set(entries) <= set(range(length)):
        raise SymmetryError(
            f"`entries` must be {size} places in the last axis of `{variable.name}`, which has {length}; got {entries}"
        )
    return entries


def _origin(declared: MoveImage | PlaneMotion, observables: Variables) -> tuple[float, ...]:
    """Where the middle of the image is, in the units of the position."""
    _require_spacing(declared.spacing)
    variables = [_variable(name, observables) for name in _names(declared.of)]
    sizes = {tuple(v.shape[axis - 1] for axis in _axes(v, declared.along)) for v in variables}
    if declared.origin is not None:
        return declared.origin
    if len(sizes) > 1:
        raise SymmetryError("`origin` must be given for images of different sizes")
    return tuple(size * declared.spacing / 2 for size in sizes.pop())


def _centre(variable: Variable, circular: bool) -> float:
    low, high = variable.support.low, variable.support.high
    if not circular:
        return 0.0
    if high - low > 2 * math.pi * (1 + 1e-6):
        raise SymmetryError(
            f"the prior of the angle `{variable.name}` spans {high - low:.4g}, more than a full turn of 2π: the same rotation "
            "would have several values; give a range of one turn"
        )
    return (low + high) / 2


def _require_half_turn(names: tuple[str, ...], prior: Prior) -> None:
    """Beyond half a turn a rotation vector is that of a shorter one, about the opposite axis."""
    columns, rng = list(_columns(names, prior)), np.random.default_rng(0)
    theta = torch.from_numpy(prior.sample(_TRIED, rng))
    around = torch.from_numpy(rng.standard_normal((_TRIED, 3)))
    bounds = torch.tensor([[prior.variables[name].support.low, prior.variables[name].support.high] for name in names])
    corners = torch.cartesian_prod(*bounds.double()) * (1 - 1e-9)
    around = torch.cat([around, corners[corners.isfinite().all(1)]])
    just_beyond = math.pi * (1 + 1e-6) * around / around.norm(dim=1, keepdim=True)
    tried = torch.cat([theta[:, columns], corners[corners.isfinite().all(1)], just_beyond])
    theta = theta[:1].repeat(len(tried), 1).index_copy(1, torch.tensor(columns), tried)
    beyond = tried[prior.contains(theta) & (tried.norm(dim=1) > math.pi * (1 + 1e-9))]
    if len(beyond):
        raise SymmetryError(
            f"the prior of the rotation vector {', '.join(f'`{name}`' for name in names)} reaches a length of "
            f"{float(beyond.norm(dim=1).max()):.4g}, and beyond π the same rotation has several: give each a range within "
            f"±π/√3 = {math.pi / math.sqrt(3):.4g}"
        )


def _require_spacing(spacing: float) -> None:
    if spacing == 0 or not math.isfinite(spacing):
        raise SymmetryError(f"`spacing` must be a number other than 0; got {spacing}")


def _require_untied(names: tuple[str, ...], prior: Prior) -> None:
    described = prior.to_json()
    for name in names:
        tied = [other for other in described[name].get("joint", ()) if other not in names]
        if tied:
            raise SymmetryError(
                f"the prior ties `{name}` to {', '.join(tied)}: what carries a pose needs a prior of its own"
            )


def _require_apart(declared: Mapping[Any, Any]) -> None:
    """No parameter may be moved by two components; no image moved by one and turned by another, which do not commute."""
    movers: dict[str, Any] = {}
    for component, declaration in declared.items():
        for name in _moved(declaration):
            if name in movers:
                raise SymmetryError(
                    f"`symmetry`: `{name}` is moved by both `{movers[name]}` and `{component}`: once is enough"
                )
            movers[name] = component
    kinds = [(type(d), set(_names(d.of))) for d in declared.values()]
    for apart, together in (((MoveImage, RotateImage), PlaneMotion), ((MovePoints, RotatePoints), PlaneMotionOfPoints)):
        first, second = (set().union(*(of for kind, of in kinds if kind is one)) for one in apart)
        if both := first & second:
            raise SymmetryError(
                f"`symmetry`: `{min(both)}` is moved and rotated by two components, which do not commute: declare one "
                f"{together.__name__}"
            )


def _moved(declaration: Any) -> tuple[str, ...]:
    angle = (declaration.angle,) if hasattr(declaration, "angle") else ()
    return (*_names(declaration.by), *angle, *getattr(declaration, "others", ()))
