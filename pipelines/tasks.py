"""Tasks that ``srun`` started beside each other with the same command: the first runs, the others take part in its trainings.

The first writes where it listens, and a key, to a file in the run folder, which all must see; the others wait for that file, connect,
and end with the first.
"""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data.errors import RunFolderError
from ..data.files import write_json
from .config import LocalConfig
from .folder import RunFolder

_SECONDS = 600.0  # for the first to begin: queues start tasks minutes apart
_PAUSE = 0.2


@dataclass(frozen=True, slots=True)
class Task:
    """One of several.

    Attributes:
        rank: Which.
        world: Of how many.
        local: Which of its node.
        step: Name of the step they all belong to.
    """

    rank: int
    world: int
    local: int
    step: str

    @staticmethod
    def here(environment: Mapping[str, str] = os.environ) -> Task | None:
        """This process's; None where ``srun`` started no others beside it."""
        world = int(environment.get("SLURM_STEP_NUM_TASKS", "1"))
        if world < 2 or "SLURM_PROCID" not in environment:
            return None
        names = ("SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_RESTART_COUNT")
        step = "-".join(environment.get(name, "0") for name in names)
        return Task(int(environment["SLURM_PROCID"]), world, int(environment.get("SLURM_LOCALID", "0")), step)

    def file(self, folder: RunFolder) -> Path:
        """Where the first says how to find it."""
        return folder / ".stages" / f"tasks-{self.step}.json"


@contextmanager
def leading(task: Task | None, folder: RunFolder, local: LocalConfig) -> Iterator[None]:
    """Run what is within with the other tasks at hand for trainings.

    Raises:
        ConfigError: ``local.devices`` and ``local.nodes`` mean another number of processes.
        TrainingError: Others did not come.
    """
    if task is None and local.nodes == 1:
        yield
        return
    from multiprocessing.connection import Connection, Listener

    from ..estimators.team import Joined, arrivals, joined, require_tasks

    require_tasks(local.hardware().world, local.nodes, task.world if task else None)
    assert task is not None
    key, file = secrets.token_bytes(32), task.file(folder)
    connections: dict[int, Connection] = {}
    with Listener(("0.0.0.0", 0), backlog=task.world) as listener:
        _write(file, {"address": [socket.gethostname(), listener.address[1]], "key": key.hex()})
        try:
            for connection, hello in arrivals(listener, key, task.world - 1, seconds=_SECONDS):
                connections[hello.rank] = connection
            with joined(Joined(connections, task.world)):
                yield
        finally:
            file.unlink(missing_ok=True)
            for connection in connections.values():
                connection.close()


def follow(task: Task, folder: RunFolder) -> None:
    """Take part in the trainings of the first task until it ends.

    Raises:
        RunFolderError: It does not begin.
    """
    from multiprocessing.connection import Client

    from ..estimators.worker import hello, put, work

    told = _read(task.file(folder))
    host, port = told["address"]
    with Client((host, port), authkey=bytes.fromhex(told["key"])) as connection:
        put(connection, hello(task.rank))
        work(connection, task.local)


def _write(file: Path, told: dict[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o077)
    try:
        write_json(file, told)
    finally:
        os.umask(before)


def _read(file: Path) -> dict[str, Any]:
    deadline = time.monotonic() + _SECONDS
    while not file.is_file():
        if time.monotonic() > deadline:
            raise RunFolderError(
                f"the first task did not begin within {_SECONDS:g} s: {file} must be on a file system that all nodes share"
            )
        time.sleep(_PAUSE)
    found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    return found
