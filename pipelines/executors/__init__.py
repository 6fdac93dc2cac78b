"""Who runs a campaign's tasks."""

from __future__ import annotations

from ...simulators.campaign import Executor
from ..config import LocalConfig
from .inline import Inline as Inline
from .processes import Processes as Processes


def make_executor(local: LocalConfig) -> Executor:
    """The executor that ``local:`` names."""
    return Processes(local.workers) if local.executor == "processes" else Inline()
