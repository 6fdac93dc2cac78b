"""What can be known to go wrong before anything is queued."""

from __future__ import annotations

import platform
from pathlib import Path

from ...data.errors import did_you_mean
from ..job import Job
from ..stages import STAGES
from .scheduler import Scheduler

_IN_MEMORY = ("tmpfs", "ramfs", "devtmpfs")


def problems_of(job: Job, folder: Path, scheduler: Scheduler) -> list[str]:
    """Why jobs of this run cannot be submitted from here."""
    if not scheduler.there():
        text = (
            "`submit` needs Slurm's `sbatch` on the path: run it on a login node of the cluster, write the files with "
            "`--dry-run`, or use `simfer run` here"
        )
        return [text]
    return [*_array(job, scheduler), *_partitions(job, scheduler), *_shared(job, folder, scheduler)]


def _array(job: Job, scheduler: Scheduler) -> list[str]:
    given, largest = job.config.local.slurm.simulate.array, scheduler.largest_array()
    if given is None or largest is None or given <= largest:
        return []
    text = (
        f"`local.slurm.simulate.array` must be at most {largest}, the cluster's MaxArraySize; got {given}: each task takes a "
        "block of shards, so fewer tasks do the same work"
    )
    return [text]


def _partitions(job: Job, scheduler: Scheduler) -> list[str]:
    known, slurm = scheduler.partitions(), job.config.local.slurm
    places = {"local.slurm": slurm, **{f"local.slurm.{stage}": getattr(slurm, stage) for stage in STAGES}}
    return [
        f"`{place}.partition`: unknown partition `{part}`; {did_you_mean(part, known)}"
        for place, asked in places.items()
        for part in (asked.partition or "").split(",")
        if part and known and part not in known
    ]


def _shared(job: Job, folder: Path, scheduler: Scheduler) -> list[str]:
    """A folder in this machine's memory is seen by no other."""
    kind = file_system(folder)
    if job.config.local.slurm.shared or kind not in _IN_MEMORY:
        return []
    others = [host for host in scheduler.hosts() if host.split(".")[0] != platform.node().split(".")[0]]
    if not others:
        return []
    text = (
        f"`--workdir` must be on a file system that all nodes share; {folder.absolute()} is on {kind}, in the memory of this "
        f"machine, and jobs run on {others[0]}: give another, or `local.slurm.shared: true` if that is wrong"
    )
    return [text]


def file_system(path: Path) -> str:
    """Type of the file system that a path is on; empty when unknown."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines()]
    except OSError:
        return ""
    absolute = path.resolve()
    found = [
        (len(point), kind) for _, point, kind, *_ in mounts if absolute.is_relative_to(point.replace("\\040", " "))
    ]
    return max(found)[1] if found else ""
