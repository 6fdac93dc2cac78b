"""What a job leaves in ``slurm/tasks/`` about itself, so that a login node without an accounting database can tell."""

from __future__ import annotations

import json
import logging
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ...data.files import write_json
from .scheduler import TaskKey
from .script import FOLDER

State = Literal["running", "done", "interrupted", "failed"]

_SECONDS_BETWEEN = 2.0
_SKEW = 5.0  # seconds by which clocks may differ before anybody is told


@dataclass(frozen=True, slots=True)
class Note:
    """One task, or a job without an array.

    Attributes:
        stage: What it does.
        job: Its number, that of the array.
        task: Of the array.
        node: Where it runs.
        state: How it is.
        started: When, in seconds since the epoch by the clock of the node.
        updated: When this was written.
        rows: How many it simulates.
        done: How many of those are done.
        done_before: How many of those were done when it started.
        shard: The one that it is at.
        text: Its last line.
        error: Why it failed.
        skew: By how much the node's clock is behind that of the file system, in seconds.
    """

    stage: str
    job: str
    task: int | None
    node: str
    state: State = "running"
    started: float = 0.0
    updated: float = 0.0
    rows: int = 0
    done: int = 0
    done_before: int = 0
    shard: int | None = None
    text: str = ""
    error: str = ""
    skew: float = 0.0

    @property
    def rate(self) -> float:
        """Rows per second, of this start alone."""
        return (self.done - self.done_before) / max(self.updated - self.started, 1e-3)

    @property
    def seconds_left(self) -> float | None:
        """At that rate; None while it is unknown."""
        return (self.rows - self.done) / self.rate if self.rate > 0 else None


def file_of(folder: Path, stage: str, key: TaskKey) -> Path:
    """Where a task leaves its note."""
    job, task = key
    return folder / FOLDER / "tasks" / (f"{stage}-{job}.json" if task is None else f"{stage}-{job}_{task}.json")


def read_note(folder: Path, stage: str, key: TaskKey) -> Note | None:
    """What a task has left; None where it has not started, or its file is damaged."""
    try:
        return Note(**json.loads(file_of(folder, stage, key).read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def key_of_this(variables: Mapping[str, str] = os.environ) -> TaskKey:
    """The job that this process is in."""
    if "SLURM_ARRAY_TASK_ID" in variables:
        return variables["SLURM_ARRAY_JOB_ID"], int(variables["SLURM_ARRAY_TASK_ID"])
    return variables.get("SLURM_JOB_ID", "0"), None


class Notes(logging.Handler):
    """Keeps the note of this process; as a handler of simfer's log, the last line too."""

    def __init__(self, folder: Path, stage: str) -> None:
        super().__init__(logging.INFO)
        job, task = key_of_this()
        node = os.environ.get("SLURMD_NODENAME") or platform.node()
        self.note = Note(stage, job, task, node, started=time.time())
        self._file = file_of(folder, stage, (job, task))
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._wrote = 0.0
        self.update()
        self.update(skew=round(self._file.stat().st_mtime - self.note.updated, 1))

    @property
    def clock_is_off(self) -> bool:
        return abs(self.note.skew) > _SKEW

    def update(self, **changes: object) -> None:
        """Change some attributes, on disk as well."""
        self.note = replace(self.note, updated=time.time(), **changes)  # type: ignore[arg-type]
        self._wrote = time.monotonic()
        write_json(self._file, asdict(self.note))

    def emit(self, record: logging.LogRecord) -> None:
        """Note a line, unless the last was noted just now."""
        self.note = replace(self.note, text=record.getMessage())
        if time.monotonic() - self._wrote >= _SECONDS_BETWEEN:
            self.update()
