"""Names to objects, at the YAML and CLI border only: entry points, or ``module:Object``, or ``file.py:Object``.

Entry points are read from the metadata of installed packages and imported when used. A plugin that fails to import
hurts only whoever asks for it.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from .errors import MissingFileError, UnknownNameError, did_you_mean

FROM_FILE = "simfer_user_"  # begins the names of modules that were imported by path
GROUPS = ("simulators", "estimators", "checks")


@cache
def _entries(group: str) -> dict[str, Any]:  # `EntryPoint`, or its like in the backport that dask imports
    return {entry.name: entry for entry in entry_points(group=f"simfer.{group}")}


def names(group: str) -> list[str]:
    """The registered names of ``group``, one of simulators, estimators, checks."""
    return sorted(_entries(group))


def resolve(group: str, name: str, folder: Path | None = None) -> Any:
    """The object that ``name`` stands for: an entry point of ``group``, ``module:Object`` or ``file.py:Object``.

    Args:
        group: One of simulators, estimators, checks.
        name: What the user wrote.
        folder: Where relative files and modules are looked for; the working directory when None.

    Raises:
        UnknownNameError: No such name, module or attribute.
        MissingFileError: ``file.py`` is not there.
    """
    if ":" in name:
        return _from_path(name, folder or Path.cwd())
    entry = _entries(group).get(name)
    if entry is None:
        raise UnknownNameError(f"unknown {group[:-1]} `{name}`; {did_you_mean(name, _entries(group))}")
    return entry.load()


def is_loaded(name: str) -> bool:
    """Whether the module or file of ``module:Object`` is imported already, so that to resolve it runs no code."""
    where = name.rpartition(":")[0]
    return (_file_module(Path(where)) if where.endswith(".py") else where) in sys.modules


def _from_path(name: str, folder: Path) -> Any:
    where, _, attribute = name.rpartition(":")
    module = load_file(folder / where) if where.endswith(".py") else _from_module(where, folder)
    if not hasattr(module, attribute):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise UnknownNameError(f"`{where}` has no `{attribute}`; {did_you_mean(attribute, public)}")
    return getattr(module, attribute)


def load_file(path: Path) -> Any:
    """The module of a Python file, imported once.

    Raises:
        MissingFileError: It is not there.
    """
    if not path.is_file():
        raise MissingFileError(f"no file `{path}`: give the path of a Python file, relative to the configuration")
    name = _file_module(path)
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # a .py file always has a spec and a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _file_module(path: Path) -> str:
    return f"{FROM_FILE}{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"


def _from_module(name: str, folder: Path) -> Any:
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".")[0] and error.name != name:
            raise
        raise UnknownNameError(f"no module `{name}`: it must be installed or stand in {folder}") from error
