"""A symmetry of the user's own, by name: an object that fulfils `base.Symmetry`, declarations, or a function that makes one.

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
from ..settings import SymmetrySettings
from .base import Symmetry
from .build import build_symmetry

_PARTS = ("group", "parameters", "pose", "place", "act_theta", "log_det_theta", "act_x", "log_det_x")


def imported_symmetry(settings: SymmetrySettings | None, folder: Path | None = None) -> dict[str, Any]:
    """Name → object, of a symmetry that the settings name: imports it, so only of settings that the user wrote.

    Args:
        settings: As written.
        folder: What files and modules are relative to; the working directory when None.

    Raises:
        UnknownNameError: No such module or object.
        MissingFileError: No such file.
    """
    declared = settings.declared if settings else None
    if isinstance(declared, NamedSymmetry):
        return {declared.name: declared.source}
    return {declared: registry.resolve("simulators", declared, folder)} if isinstance(declared, str) else {}


def with_object(settings: SymmetrySettings | None, objects: Mapping[str, Any]) -> SymmetrySettings | None:
    """The settings with an object in place of its name; ``objects`` has it by full name or by what follows the colon."""
    if settings is None or not isinstance(settings.declared, str):
        return settings
    name = settings.declared
    source = objects.get(name, objects.get(name.rpartition(":")[2]))
    return settings if source is None else settings.model_copy(update={"declared": NamedSymmetry(name, source)})


def absolute_name(settings: SymmetrySettings | None, folder: Path) -> SymmetrySettings | None:
    """The same with a name of a file that holds from anywhere."""
    if settings is None or not isinstance(settings.declared, str):
        return settings
    return settings.model_copy(update={"declared": absolute(settings.declared, folder)})


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
