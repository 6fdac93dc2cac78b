"""Who has started the processes of a training: Lightning itself, or Slurm's `srun`.

Lightning takes every process in a Slurm job for one of `srun`'s, and would requeue the job on its own. A job that simfer
submitted is requeued by its script alone, once the whole of simfer has saved what it has.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment


def cluster_environments(variables: Mapping[str, str] = os.environ) -> list[Any]:
    """For the Trainer's ``plugins``; none outside of Slurm jobs, where Lightning knows best."""
    if "SLURM_JOB_ID" not in variables:
        return []
    started_by_srun = "SLURM_STEP_ID" in variables and int(variables.get("SLURM_NTASKS", "1")) > 1
    return [SLURMEnvironment(auto_requeue=False)] if started_by_srun else [LightningEnvironment()]
