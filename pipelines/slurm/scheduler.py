"""Slurm's own commands, one call each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...data.errors import SchedulerError

TaskKey = tuple[str, int | None]  # a job, and which task of its array

ACTIVE = (
    "PENDING",
    "RUNNING",
    "SUSPENDED",
    "COMPLETING",
    "CONFIGURING",
    "REQUEUED",
    "REQUEUE_HOLD",
    "SPECIAL_EXIT",
    "RESV_DEL_HOLD",
    "RESIZING",
    "SIGNALING",
    "STAGE_OUT",
    "STOPPED",
)

LARGEST_ARRAY = 1000  # tasks where the cluster does not say

_FORMAT = "%F|%K|%T|%N|%r|%M"
_SECONDS = 60
_KEPT = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_TIME_FORMAT")


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A job, or a task of an array, as the scheduler has it.

    Attributes:
        state: Its word, such as ``RUNNING``.
        node: Where it runs, or ran.
        reason: Why it waits, or failed.
        elapsed: For how long, as text.
    """

    state: str
    node: str = ""
    reason: str = ""
    elapsed: str = ""

    @property
    def active(self) -> bool:
        """Whether it may still do something."""
        return self.state in ACTIVE


class Scheduler:
    """A thin client.

    Attributes:
        queries: How often the controller was asked something.
    """

    def __init__(self) -> None:
        self.queries = 0

    @staticmethod
    def there() -> bool:
        """Whether Slurm's commands are on the path."""
        return shutil.which("sbatch") is not None

    def try_out(self, file: str, folder: Path) -> str:
        """What the scheduler has against a script, nothing being queued; empty if it would take it."""
        done = self._run(["sbatch", "--test-only", file], folder)
        return "" if done.returncode == 0 else _said(done)

    def submit(self, file: str, folder: Path, after: str = "") -> str:
        """Queue a script and give its job's number.

        Raises:
            SchedulerError: It was refused; with the scheduler's message.
        """
        depend = [f"--dependency={after}"] if after else []
        done = self._run(["sbatch", "--parsable", *depend, file], folder)
        if done.returncode != 0:
            raise SchedulerError(f"sbatch refused {folder / file}: {_said(done)}")
        return done.stdout.strip().split(";")[0]

    def queue(self, jobs: Iterable[str]) -> dict[TaskKey, QueueEntry]:
        """All that the controller still knows of some jobs, those that ended lately included; by one query.

        Raises:
            SchedulerError: The controller cannot be asked.
        """
        wanted = ",".join(dict.fromkeys(jobs))
        if not wanted:
            return {}
        done = self._run(["squeue", "--noheader", "--array", "--states=all", f"--jobs={wanted}", f"--format={_FORMAT}"])
        if done.returncode != 0 and "Invalid job id" not in done.stderr:  # all are forgotten
            raise SchedulerError(f"squeue cannot ask the scheduler: {_said(done)}")
        return dict(_entry(line) for line in done.stdout.splitlines() if line.count("|") >= 5)

    def accounts(self, jobs: Iterable[str]) -> dict[TaskKey, QueueEntry]:
        """What the accounting database has of some jobs; nothing where there is none."""
        wanted = ",".join(dict.fromkeys(jobs))
        if not wanted or shutil.which("sacct") is None:
            return {}
        fields = "--format=JobID,State,NodeList,ExitCode,Elapsed"
        done = self._run(["sacct", "--noheader", "--parsable2", "--allocations", "--array", f"--jobs={wanted}", fields])
        if done.returncode != 0:
            return {}
        lines = (line.split("|") for line in done.stdout.splitlines() if line.count("|") == 4)
        return {
            _task(name): QueueEntry(state.split()[0].rstrip("+"), node, f"exit code {code}", elapsed)
            for name, state, node, code, elapsed in lines
            if re.fullmatch(r"\d+(_\d+)?", name)
        }

    def cancel(self, jobs: Sequence[str], *, waiting: bool = False) -> None:
        """Cancel jobs, or those of their tasks alone that wait; those that are gone do not matter.

        Raises:
            SchedulerError: The controller refuses.
        """
        if not jobs:
            return
        done = self._run(["scancel", *(["--state=PENDING"] if waiting else []), *jobs])
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            raise SchedulerError(f"scancel: {_said(done)}")

    def largest_array(self) -> int | None:
        """How many tasks an array may have; None when unknown."""
        done = self._run(["scontrol", "show", "config"])
        found = re.search(r"^MaxArraySize\s*=\s*(\d+)", done.stdout, re.MULTILINE)
        return int(found[1]) if found else None  # the largest index is one less

    def partitions(self) -> list[str]:
        """Names of those that there are."""
        done = self._run(["sinfo", "--noheader", "--format=%R"])
        return sorted({line.strip() for line in done.stdout.splitlines() if line.strip()})

    def hosts(self) -> list[str]:
        """Machines of the cluster."""
        done = self._run(["sinfo", "--noheader", "--Node", "--format=%n"])
        return sorted({line.strip() for line in done.stdout.splitlines() if line.strip()})

    def _run(self, command: Sequence[str], folder: Path | None = None) -> subprocess.CompletedProcess[str]:
        self.queries += 1
        # in a job, or a shell of one, these would be taken for options
        variables = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_") or k in _KEPT}
        try:
            return subprocess.run(
                command, cwd=folder, env=variables, capture_output=True, text=True, timeout=_SECONDS, check=False
            )
        except FileNotFoundError as error:
            raise SchedulerError(
                f"`{command[0]}` is not on the path: run this where Slurm's commands are, such as a login node"
            ) from error
        except subprocess.TimeoutExpired as error:
            raise SchedulerError(f"`{command[0]}` had no answer within {_SECONDS} s: try again later") from error


def _entry(line: str) -> tuple[TaskKey, QueueEntry]:
    job, task, state, node, reason, elapsed = line.split("|", 5)
    return (job.strip(), int(task) if task.strip().isdigit() else None), QueueEntry(
        state, node, "" if reason == "None" else reason, elapsed
    )


def _task(name: str) -> TaskKey:
    job, _, task = name.partition("_")
    return job, int(task) if task else None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("sbatch: ").removeprefix("error: ") for line in done.stderr.strip().splitlines()]
    return "; ".join(dict.fromkeys(lines)) or f"exit code {done.returncode}"
