"""The forward model of a configuration: a simulator by name, or an external program by its command."""

from __future__ import annotations

import json
from pathlib import Path

from ..data.errors import ConfigError
from ..simulators.base import Simulator
from ..simulators.campaign import Reference
from ..simulators.prior import Prior
from ..simulators.program import Program, as_prior
from .config import Config, SimulatorConfig
from .problems import Problems

_PROGRAM = f"{Program.__module__}:{Program.__qualname__}"


def find_simulator(config: Config, folder: Path, found: Problems) -> tuple[Simulator | None, Reference | None]:
    """The simulator, and what makes it again in another process; None where ``found`` says why."""
    before = len(found.problems)
    with found.at("simulator"):
        _require_one_kind(config.simulator)
    if len(found.problems) > before:
        return None, None
    if config.simulator.command:
        return _program(config, folder, found)
    with found.at("simulator"):
        reference = Reference(config.simulator.name, json.dumps(config.simulator.arguments), folder)
        return reference.load(), reference
    return None, None


def absolute_simulator(settings: SimulatorConfig, folder: Path) -> SimulatorConfig:
    """The same simulator with paths that hold from anywhere."""
    if settings.command:
        return settings.model_copy(update={"folder": str((folder / (settings.folder or "")).resolve())})
    where, _, attribute = settings.name.rpartition(":")
    if not where.endswith(".py"):
        return settings
    return settings.model_copy(update={"name": f"{(folder / where).resolve()}:{attribute}"})


def _require_one_kind(settings: SimulatorConfig) -> None:
    given = settings.model_dump(mode="json")
    if not given.keys() & {"name", "command"}:
        raise ConfigError("must have `name`, or `command` for an external program")
    first, own = ("name", {"name", "arguments"}) if settings.name else ("command", set(given) - {"arguments"})
    others = sorted(set(given) - own)
    if others:
        raise ConfigError(f"`{others[0]}` does not go with `{first}`: a simulator has a name or a command, not both")


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
    """A program has no prior of its own: `prior:` names every parameter."""
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
