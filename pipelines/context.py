"""The `context:` of a configuration: where a known nuisance comes from, and what it was for the observation."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.errors import ConfigError, did_you_mean
from ..simulators.base import ContextPrior, Simulator, context_of
from ..simulators.prior import Prior
from .problems import Problems


def read_context(
    simulator: Simulator, given: Mapping[str, Any], folder: Path, found: Problems
) -> tuple[ContextPrior | None, dict[str, Any]]:
    """Where context is drawn from, with overrides, and the observation's values that were given."""
    context, known = context_of(simulator), {}
    for name, item in given.items():
        with found.at("context", name):
            _require_known(name, context)
            value, described = _parts(item)
            if value is not None:
                known[name] = value
            if described:
                context = _overridden(context, name, described, folder)
    return context, known


def _require_known(name: str, context: ContextPrior | None) -> None:
    if context is None:
        raise ConfigError("this simulator has no context: leave `context` out")
    if name not in context.variables.names:
        raise ConfigError(f"no such context; {did_you_mean(name, context.variables.names)}")


def _parts(item: Any) -> tuple[Any, dict[str, Any]]:
    """The observation's value, and a distribution."""
    if not isinstance(item, dict):
        return item, {}
    described = {key: value for key, value in item.items() if key != "observed"}
    return item.get("observed"), described


def _overridden(context: ContextPrior | None, name: str, described: dict[str, Any], folder: Path) -> Prior:
    if not isinstance(context, Prior):
        raise ConfigError("only a context of named distributions can be overridden; this simulator draws its own way")
    return context.replace({name: described}, folder)
