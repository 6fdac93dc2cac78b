"""Who runs a campaign's tasks."""

from __future__ import annotations

from pathlib import Path

from ...simulators.campaign import Executor
from ..config import LocalConfig
from .dask import Dask as Dask
from .inline import Inline as Inline
from .processes import Processes as Processes
from .slurm import Slurm as Slurm


def make_executor(local: LocalConfig, folder: Path) -> Executor:
    """The executor that ``local:`` names.

    Args:
        local: Of the configuration.
        folder: Where one that needs files for its tasks keeps them.
    """
    match local.executor:
        case "dask":
            return Dask(local.workers, local.address)
        case "slurm":
            return Slurm(local.slurm, folder)
        case "processes":
            return Processes(local.workers)
    return Inline()
