"""The forward model of a configuration: a simulator by name, an external program by its command, or simulations that
are there already.
"""

from __future__ import annotations

import json
from pathlib import Path

from ..data.errors import ConfigError
from ..simulators.base import Simulator
from ..simulators.campaign import Reference
from ..simulators.imported import Imported
from ..simulators.prior import Prior
from ..simulators.program import Program, as_prior
from .config import IMPORT_KEYS, Config, ProgramConfig, SimulatorConfig
from .imports import absolute_files, read_import
from .problems import Problems

_KINDS = {
    "name": ("name", "arguments"),
    "command": tuple(ProgramConfig.model_fields),
    "import": ("import", *IMPORT_KEYS),
}
_PROGRAM = f"{Program.__module__}:{Program.__qualname__}"


def find_simulator(config: Config, folder: Path, found: Problems) -> tuple[Simulator | None, Reference | None]:
    """The simulator, and what makes it again in another process; None where ``found`` says why."""
    before = len(found.problems)
    with found.at("simulator"):
        _require_one_kind(config.simulator)
    if len(found.problems) > before:
        return None, None
    if config.simulator.import_:
        return _imported(config, folder, found), None
    if config.simulator.command:
        return _program(config, folder, found)
    with found.at("simulator"):
        reference = Reference(config.simulator.name, json.dumps(config.simulator.arguments), folder.absolute())
        return reference.load(), reference
    return None, None


def absolute_simulator(settings: SimulatorConfig, folder: Path) -> SimulatorConfig:
    """The same simulator with paths that hold from anywhere."""
    if settings.command:
        return settings.model_copy(update={"folder": str((folder / (settings.folder or "")).resolve())})
    if settings.import_:
        return absolute_files(settings, folder)
    where, _, attribute = settings.name.rpartition(":")
    if not where.endswith(".py"):
        return settings
    return settings.model_copy(update={"name": f"{(folder / where).resolve()}:{attribute}"})


def _require_one_kind(settings: SimulatorConfig) -> None:
    given = settings.model_dump(mode="json", by_alias=True)
    first = next((kind for kind in _KINDS if kind in given), None)
    if first is None:
        raise ConfigError(
            "must have `name`, or `command` for an external program, or `import` for simulations in a file"
        )
    others = sorted(key for key in given if key not in _KINDS[first])
    if others:
        raise ConfigError(
            f"`{others[0]}` does not go with `{first}`: a simulator has a name, a command or files, only one"
        )
    if first == "command" and not isinstance(settings.theta, str | None):
        raise ConfigError("`theta` with `command` must be the name of a file")


def _imported(config: Config, folder: Path, found: Problems) -> Imported | None:
    before = len(found.problems)
    prior = _whole_prior(config, folder, found) if config.prior else None
    if len(found.problems) > before:
        return None
    with found.at("simulator"):
        return read_import(config.simulator, prior, folder)
    return None


def _program(config: Config, folder: Path, found: Problems) -> tuple[Simulator | None, Reference | None]:
    prior = _whole_prior(config, folder, found)
    if prior is None:
        return None, None
    settings = absolute_simulator(config.simulator, folder)
    with found.at("simulator"):
        program = Program(prior=prior, **settings.program())
        return program, Reference(_PROGRAM, json.dumps(program.arguments()))
    return None, None


def _whole_prior(config: Config, folder: Path, found: Problems) -> Prior | None:
    """A program has no prior of its own, and files may have none: `prior:` names every parameter."""
    before = len(found.problems)
    for name, item in config.prior.items():
        with found.at("prior", name):
            as_prior({name: item}, folder)
    if len(found.problems) > before:
        return None
    with found.at("prior"):
        if not config.prior:
            raise ConfigError("is required with `command`: give each parameter its distribution")
        return as_prior(config.prior, folder)
    return None
