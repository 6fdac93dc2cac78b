"""Of the user's own, by name: a symmetry, which is an object that fulfils `base.Symmetry`, declarations, or a function that makes
one; and a function that gives the pose of x.

A configuration names it, ``module:Object`` or ``file.py:Object``, and it is imported where the configuration is the user's:
in training and in a run. A model file only keeps the name; whoever loads it hands the object over, as with
`embeddings.own`, because nothing that a model file names is ever imported.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...data import registry
from ...data.errors import SymmetryError
from ...data.variables import Variables
from ...simulators.entries import absolute
from ...simulators.prior import Prior
from ...simulators.symmetry import NamedSymmetry
from ..embeddings.own import handed_over
from ..settings import NamedModule, SymmetrySettings
from .base import Symmetry
from .build import build_symmetry

_PARTS = ("group", "parameters", "pose", "place", "act_theta", "log_det_theta", "act_x", "log_det_x")


def imported_symmetry(settings: SymmetrySettings | None, folder: Path | None = None) -> dict[str, Any]:
    """Name → object, of a symmetry and of what gives a pose, where the settings name them: imports it, so only of settings that the user wrote.

    Args:
        settings: As written.
        folder: What files and modules are relative to; the working directory when None.

    Raises:
        UnknownNameError: No such module or object.
        MissingFileError: No such file.
        SymmetryError: A pose that is no function.
    """
    declared = settings.declared if settings else None
    if isinstance(declared, NamedSymmetry):
        return {declared.name: declared.source} | _imported_pose(settings, folder)
    named = {declared: registry.resolve("simulators", declared, folder)} if isinstance(declared, str) else {}
    return named | _imported_pose(settings, folder)


def with_object(settings: SymmetrySettings | None, objects: Mapping[str, Any]) -> SymmetrySettings | None:
    """The settings with objects in place of names; ``objects`` has them by full name or by what follows the colon."""
    if settings is None:
        return settings
    found: dict[str, Any] = {}
    declared, pose = settings.declared, settings.canonical
    if isinstance(declared, str) and (source := handed_over(declared, objects)) is not None:
        found["declared"] = NamedSymmetry(declared, source)
    if isinstance(pose, str) and ":" in pose and (source := handed_over(pose, objects)) is not None:
        found["canonical"] = NamedModule(pose, source)
    return settings.model_copy(update=found)


def absolute_name(settings: SymmetrySettings | None, folder: Path) -> SymmetrySettings | None:
    """The same with names of files that hold from anywhere."""
    if settings is None:
        return settings
    named = {key: value for key in ("declared", "canonical") if isinstance(value := getattr(settings, key), str)}
    return settings.model_copy(update={key: absolute(value, folder) for key, value in named.items()})


def _imported_pose(settings: SymmetrySettings | None, folder: Path | None) -> dict[str, Any]:
    chosen = settings.canonical if settings else None
    if isinstance(chosen, NamedModule):
        return {chosen.name: chosen.build}
    if chosen is None or ":" not in chosen:
        return {}
    found = registry.resolve("simulators", chosen, folder)
    if not callable(found):
        raise SymmetryError(f"`canonical` must be a function of x; `{chosen}` is a {type(found).__name__}")
    return {chosen: found}


def own_symmetry(prior: Prior, observables: Variables, named: str | NamedSymmetry) -> Symmetry:
    """What a name stands for.

    Raises:
        SymmetryError: Only the name is known; or it is no symmetry and makes none.
    """
    if isinstance(named, str):
        raise SymmetryError(
            f"the symmetry `{named}` is your own, and a model imports nothing: hand it over, "
            f"load(folder, modules={{{named!r}: {named.rpartition(':')[2]}}})"
        )
    source, name = named.source, named.name
    if not isinstance(source, type) and isinstance(source, Symmetry | Mapping):
        return build_symmetry(prior, observables, source)
    if not callable(source):
        raise SymmetryError(f"`{name}` must be a Symmetry, or a function that makes one; got {type(source).__name__}")
    try:
        made = source(prior, observables)
    except TypeError as error:
        raise SymmetryError(f"`{name}` must take (prior, observables) and give a Symmetry: {error}") from error
    if not isinstance(made, Symmetry | Mapping):
        missing = sorted(part for part in _PARTS if not hasattr(made, part))
        raise SymmetryError(f"`{name}` must give a Symmetry; {type(made).__name__} has no {', '.join(missing)}")
    return build_symmetry(prior, observables, made)
