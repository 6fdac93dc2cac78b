"""What goes to workers on other machines: the task, pickled, and the versions it must meet there."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from ...data.errors import ExecutorError, SimulatorError

PACKAGES = ("simfer", "numpy", "torch")  # what the bytes of a campaign depend on


def pickled(task: object, to: str) -> bytes:
    """A task, what a notebook defines included.

    Raises:
        SimulatorError: It cannot be sent.
    """
    import cloudpickle

    try:
        return bytes(cloudpickle.dumps(task))
    except Exception as error:
        raise SimulatorError(
            f"the simulator cannot be sent to {to} ({error}): "
            "name it in the configuration, `simulator: file.py:Class`, or use `local: {executor: inline}`"
        ) from error


def loaded(task: bytes) -> Any:
    """The task, where it is to be done.

    Raises:
        ExecutorError: Something it needs is not there.
    """
    import cloudpickle

    try:
        return cloudpickle.loads(task)
    except Exception as error:
        raise ExecutorError(
            f"the worker on {platform.node()} cannot load the simulator ({type(error).__name__}: {error}): "
            "install it there, or name it in the configuration, `simulator: file.py:Class`"
        ) from error


def versions() -> dict[str, str]:
    """Those of this process."""
    found = {name: public(version(name)) for name in PACKAGES}
    return {"python": ".".join(platform.python_version_tuple()[:2]), **found}


def public(text: str) -> str:
    """A version without what tells builds of it apart, such as that for CPUs."""
    return text.partition("+")[0]


def require_same_versions(theirs: dict[str, str], ours: dict[str, str], who: str) -> None:
    """Raise ExecutorError where a worker has others."""
    differing = [f"{name} {theirs[name]}, not {ours[name]}" for name in ours if theirs[name] != ours[name]]
    if differing:
        raise ExecutorError(
            f"{who} has {'; '.join(differing)}: the rows of a campaign must come from the same versions; install them there"
        )
