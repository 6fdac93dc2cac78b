"""simfer: simulation-based inference, from a simulator and an observation to a posterior that was checked.

The front is small: `run` does the whole job from a YAML file, a recipe's name or a dict; `load` opens what a run or a
training left on disk; `simulate`, `train`, `check` and `attack` are the parts; `simulator` makes a simulator of a function. Nothing heavy is imported until it is used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .data.errors import SimferError as SimferError
    from .data.variables import Variable as Variable
    from .data.variables import Variables as Variables
    from .diagnostics.attacks.attack import attack as attack
    from .diagnostics.suite import check as check
    from .estimators.train import train as train
    from .pipelines.api import load as load
    from .pipelines.api import run as run
    from .simulators.campaign import simulate as simulate
    from .simulators.function import simulator as simulator
    from .simulators.prior import Prior as Prior

__version__ = "0.1.0"

_HOMES = {
    "Prior": "simulators.prior",
    "SimferError": "data.errors",
    "Variable": "data.variables",
    "Variables": "data.variables",
    "attack": "diagnostics.attacks.attack",
    "check": "diagnostics.suite",
    "load": "pipelines.api",
    "run": "pipelines.api",
    "simulate": "simulators.campaign",
    "simulator": "simulators.function",
    "train": "estimators.train",
}

__all__ = [
    "Prior",
    "SimferError",
    "Variable",
    "Variables",
    "attack",
    "check",
    "load",
    "run",
    "simulate",
    "simulator",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'simfer' has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
