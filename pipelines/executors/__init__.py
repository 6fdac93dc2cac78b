"""Who runs a campaign's tasks."""

from __future__ import annotations

from ...simulators.campaign import Executor
from ..config import LocalConfig
from .dask import Dask as Dask
from .inline import Inline as Inline
from .processes import Processes as Processes


def make_executor(local: LocalConfig) -> Executor:
    """The executor that ``local:`` names."""
    if local.executor == "dask":
        return Dask(local.workers, local.address)
    return Processes(local.workers) if local.executor == "processes" else Inline()
