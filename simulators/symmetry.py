"""Declarations of symmetries, as plain data: which parameters move what in x, and in which units.

A simulator names its symmetries in an attribute ``symmetry``, component → declaration. Each says that data simulated at moved
parameters are distributed as moved data. `simfer.estimators.symmetry` makes them act, and ``simfer check-symmetry`` tests them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import TypeAdapter, ValidationError

from ..data.errors import SymmetryError, did_you_mean


@dataclass(frozen=True, slots=True)
class Shift:
    """A parameter that shifts signals along one axis, such as an arrival time.

    Args:
        by: The parameter.
        of: The observable, or several.
        along: The axis of theirs, as in ``dims``.
        spacing: Of neighbouring entries, in the units of the parameter.
        origin: The value of the parameter that counts as not shifted; where poses are taken out, signals end up there.
        others: Parameters that move along, such as the time of a second event.
    """

    by: str
    of: str | tuple[str, ...]
    along: str
    spacing: float
    origin: float = 0.0
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Scale:
    """A positive parameter that x is proportional to, noise included.

    Args:
        by: The parameter.
        of: The observable, or several.
        origin: The value that counts as not scaled.
        others: Parameters that are scaled along, such as the standard deviation of the noise.
    """

    by: str
    of: str | tuple[str, ...]
    origin: float = 1.0
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class MoveImage:
    """A position that moves an image.

    Args:
        by: The two parameters.
        of: The observable, or several.
        along: The axes that they move along, as in ``dims``.
        spacing: Of pixels, in the units of the parameters.
        origin: The position that counts as not moved; the middle of an image whose corner is at 0 when None.
    """

    by: tuple[str, str]
    of: str | tuple[str, ...]
    along: tuple[str, str]
    spacing: float = 1.0
    origin: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class RotateImage:
    """An angle in radians that turns a square image about its middle, from the first axis towards the second.

    Args:
        by: The parameter.
        of: The observable, or several.
        along: The axes of the plane, as in ``dims``.
        others: Angles that turn along.
    """

    by: str
    of: str | tuple[str, ...]
    along: tuple[str, str]
    others: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class PlaneMotion:
    """A position and an angle in radians that together move and turn a square image; they do not commute.

    Args:
        by: The two parameters of the position.
        angle: The parameter that turns, from the first axis towards the second.
        of: The observable, or several.
        along: The axes that the position moves along, as in ``dims``.
        spacing: Of pixels, in the units of the position.
        origin: The position of the image's middle; that of an image whose corner is at 0 when None.
    """

    by: tuple[str, str]
    angle: str
    of: str | tuple[str, ...]
    along: tuple[str, str]
    spacing: float = 1.0
    origin: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class MovePoints:
    """A position that moves points, in their units.

    Args:
        by: One parameter for each coordinate.
        of: The observable, or several, coordinates along the last axis.
        entries: Where in the last axis the coordinates are; the first ones when None.
    """

    by: tuple[str, ...]
    of: str | tuple[str, ...]
    entries: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class RotatePoints:
    """A rotation of points about 0: by an angle in radians in the plane, by a rotation vector in space.

    Args:
        by: One parameter, or three.
        of: The observable, or several, coordinates along the last axis.
        entries: Where in the last axis the two or three coordinates are; the first ones when None.
    """

    by: tuple[str, ...]
    of: str | tuple[str, ...]
    entries: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class PlaneMotionOfPoints:
    """A position and an angle in radians that together move and turn points of the plane.

    Args:
        by: The two parameters of the position.
        angle: The parameter that turns, about 0.
        of: The observable, or several, coordinates along the last axis.
        entries: Where in the last axis the two coordinates are; the first ones when None.
    """

    by: tuple[str, str]
    angle: str
    of: str | tuple[str, ...]
    entries: tuple[int, ...] | None = None


Declaration = Shift | Scale | MoveImage | RotateImage | PlaneMotion | MovePoints | RotatePoints | PlaneMotionOfPoints

_KINDS: dict[str, Any] = {
    kind.__name__: kind
    for kind in (Shift, Scale, MoveImage, RotateImage, PlaneMotion, MovePoints, RotatePoints, PlaneMotionOfPoints)
}


@dataclass(frozen=True, slots=True)
class NamedSymmetry:
    """A symmetry of the user's own, and the name that files know it by.

    Attributes:
        name: ``module:Object`` or ``file.py:Object``.
        source: A `simfer.estimators.symmetry.base.Symmetry`, declarations, or what is called with the prior and the observables
            and gives either.
    """

    name: str
    source: Any


def named_symmetry(source: Any) -> NamedSymmetry:
    """An object by where it, or its class, is defined."""
    defined = source if hasattr(source, "__qualname__") else type(source)
    return NamedSymmetry(f"{defined.__module__}:{defined.__qualname__}", source)


def to_json(declared: Any) -> Any:
    """Component → the declaration's arguments, with its name as ``kind``; of a symmetry of the user's own its name."""
    if declared is None or isinstance(declared, str):
        return declared
    if not isinstance(declared, Mapping):
        return declared.name if isinstance(declared, NamedSymmetry) else named_symmetry(declared).name
    return {name: {"kind": type(one).__name__, **asdict(one)} for name, one in declared.items()}


def from_json(described: Any) -> Any:
    """What `to_json` wrote; declarations are handed through, and an object of the user's own gets its name.

    Raises:
        SymmetryError: No such kind of declaration, or arguments that it does not take; or a name that is none.
    """
    if isinstance(described, str) and ":" not in described:
        raise SymmetryError(f"`declared` must be declarations, module:Object or file.py:Object; got `{described}`")
    if described is None or isinstance(described, str | NamedSymmetry):
        return described
    if not isinstance(described, Mapping):
        return named_symmetry(described)
    return {name: _declaration(one) for name, one in described.items()}


def _declaration(given: Any) -> Any:
    if not isinstance(given, Mapping):
        return given
    arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    kind = arguments.pop("kind", None)
    if kind not in _KINDS:
        raise SymmetryError(f"`kind` of a symmetry: no `{kind}`; {did_you_mean(str(kind), _KINDS)}")
    try:
        return TypeAdapter(_KINDS[kind]).validate_python(arguments)
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(str(part) for part in wrong["loc"][:1])
        raise SymmetryError(f"`{where}` of {kind}: {wrong['msg'].lower()}; got {wrong['input']!r}") from error
