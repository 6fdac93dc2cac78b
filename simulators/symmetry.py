"""Declarations of symmetries, as plain data: which parameters move what in x, and in which units.

A simulator names its symmetries in an attribute ``symmetry``, component → declaration. Each says that data simulated at moved
parameters are distributed as moved data. `simfer.estimators.symmetry` makes them act, and ``simfer check-symmetry`` tests them.
"""

from __future__ import annotations

from dataclasses import dataclass


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
