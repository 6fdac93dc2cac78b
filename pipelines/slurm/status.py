"""How a run's jobs are, as a login node can know: the queue, the store, the stages' markers and what tasks have left.

The scheduler is asked once per look. It forgets a job minutes after its end (``MinJobAge``); the accounting database is asked
for those alone, and where there is none, what the task left of itself says how it ended.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...data.store import SimulationStore
from ..folder import STORE, RunFolder
from ..stages import STAGES
from ..yaml_file import read_source
from .ledger import Ledger, Submission, shards_of
from .notes import Note, read_note
from .scheduler import QueueEntry, Scheduler, TaskKey
from .script import log_of

_LAST_LINES = 4096  # bytes of a log in which its last error is looked for
_NEVER = "DependencyNeverSatisfied"
_OF_THE_SCRIPT = re.compile(r"simfer: (\w+ (on|ended with) |requeueing )")
_WRONG = re.compile(r"rror|illed|not found|No such file|^simfer: ")
_FAILED = {
    "TIMEOUT": "its time was up before it could save: give it more, or a larger `warning`",
    "OUT_OF_MEMORY": "it needed more memory than it had: give it more, by `memory`",
    "CANCELLED": "it was cancelled, or a job that it waited for has failed",
    "NODE_FAIL": "its node failed",
    "PREEMPTED": "a job of more urgency took its place",
    "DEADLINE": "its deadline was over",
}


@dataclass(frozen=True, slots=True)
class TaskStatus:
    """One task of an array, or a job that is none.

    Attributes:
        stage: What it does.
        key: Its job, and which task.
        state: ``pending``, ``running``, ``done`` or ``failed``.
        node: Where it runs, or ran.
        rows: How many rows are its own; 0 where it does not simulate.
        done: How many of those are done.
        rate: Rows per second.
        seconds_left: At that rate; None when unknown.
        shards: Those that it has yet to do.
        why: Why it waits or failed, or what it last said.
        log: Its log file, in the run folder; empty when there is none yet.
    """

    stage: str
    key: TaskKey
    state: str
    node: str = ""
    rows: int = 0
    done: int = 0
    rate: float = 0.0
    seconds_left: float | None = None
    shards: tuple[int, ...] = ()
    why: str = ""
    log: str = ""

    @property
    def name(self) -> str:
        """As Slurm writes it."""
        job, task = self.key
        return job if task is None else f"{job}_{task}"


@dataclass(frozen=True, slots=True)
class RunStatus:
    """A run's stages and jobs.

    Attributes:
        stages: Stage → ``done``, ``running``, ``pending``, ``failed`` or ``not begun``.
        tasks: Of the last submission of every stage, and of earlier ones that still matter.
        clocks: Node → seconds by which its clock is off, where that is much.
    """

    stages: Mapping[str, str]
    tasks: Sequence[TaskStatus]
    clocks: Mapping[str, float]

    @property
    def over(self) -> bool:
        """Whether nothing will happen any more by itself."""
        return not any(task.state in ("pending", "running") for task in self.tasks)


def status_of(path: Path, scheduler: Scheduler | None = None) -> RunStatus:
    """Read how the jobs of a run are.

    Raises:
        RunFolderError: Nothing was submitted from there.
        SchedulerError: The scheduler cannot be asked.
    """
    scheduler, ledger, folder = scheduler or Scheduler(), Ledger.read(path), RunFolder(path)
    done = {stage for stage in STAGES if folder.done(stage)}
    current = [s for stage in STAGES if stage not in done for s in ledger.of(stage)]
    queue = scheduler.queue(s.job for s in current) if scheduler.there() else {}
    lost = [s.job for s in current if any(key not in queue for key in s.keys)]
    known = {**(scheduler.accounts(lost) if lost else {}), **queue}
    name = str(read_source(path / "config.yaml").values.get("name"))
    tasks = _simulations(path, name, ledger, known) if "simulate" not in done else []
    for stage in STAGES:
        if stage not in done and (submitted := [s for s in ledger.of(stage) if s.shards is None]):
            tasks.append(_job(path, name, submitted[-1], known))
    notes = [note for task in tasks if (note := read_note(path, task.stage, task.key))]
    clocks = {note.node: note.skew for note in notes if abs(note.skew) > 5}
    return RunStatus({stage: _stage(stage, done, tasks) for stage in STAGES}, tasks, clocks)


def _simulations(path: Path, run: str, ledger: Ledger, known: Mapping[TaskKey, QueueEntry]) -> list[TaskStatus]:
    """Tasks of all arrays, but those whose shards others have taken over."""
    if all(submission.shards is None for submission in ledger.of("simulate")):  # imported, in one go
        return []
    store = SimulationStore.open(path / STORE)
    pending = set(store.pending_shards())
    found: list[TaskStatus] = []
    taken: set[int] = set()
    for submission in reversed(ledger.of("simulate")):
        if submission.shards is None:
            continue
        tasks = []
        for key, shards in zip(submission.keys, shards_of(path, submission.shards), strict=True):
            own = [shard for shard in shards if shard not in taken]
            if own:
                left = tuple(shard for shard in own if shard in pending)
                rows, missing = (sum(map(store.layout.shard_length, some)) for some in (own, left))
                tasks.append(_task(path, run, key, known.get(key), left, rows, rows - missing))
        taken |= {shard for shards in shards_of(path, submission.shards) for shard in shards}
        found = [*tasks, *found]
    return found


def _task(
    path: Path, run: str, key: TaskKey, entry: QueueEntry | None, left: tuple[int, ...], rows: int, done: int
) -> TaskStatus:
    note = read_note(path, "simulate", key)
    log = _log(path, run, "simulate", key)
    base = TaskStatus("simulate", key, "done", entry.node if entry else "", rows, done, shards=left, log=log)
    failed = note is not None and note.state == "failed" and not (entry and entry.active)  # on a row that must not be
    if not left and not failed:
        return replace(base, node=base.node or (note.node if note else ""))
    state, why = _state(path, entry, note, log)
    if state == "failed" and note and note.shard is not None and "shard" not in why:
        why = f"shard {note.shard}: {why}"
    running = state == "running" and note is not None
    rate, seconds = (note.rate, note.seconds_left) if running and note else (0.0, None)
    return replace(
        base, state=state, why=why, rate=rate, seconds_left=seconds, node=base.node or (note.node if note else "")
    )


def _job(path: Path, run: str, submission: Submission, known: Mapping[TaskKey, QueueEntry]) -> TaskStatus:
    key = (submission.job, None)
    entry, note, log = known.get(key), read_note(path, submission.stage, key), _log(path, run, submission.stage, key)
    state, why = _state(path, entry, note, log)
    node = (entry.node if entry else "") or (note.node if note else "")
    return TaskStatus(submission.stage, key, state, node, why=why, log=log)


def _state(path: Path, entry: QueueEntry | None, note: Note | None, log: str) -> tuple[str, str]:
    """``pending``, ``running`` or ``failed``, and why or how far."""
    if entry and entry.active:
        if entry.state in ("RUNNING", "COMPLETING", "SIGNALING"):
            return "running", note.text if note and note.state == "running" else ""
        if _NEVER in entry.reason:
            return "failed", "a job that it waits for has failed; `simfer resume` submits both again"
        return "pending", entry.reason
    if note and note.state == "failed":
        return "failed", note.error
    said = _last_error(path / log) if log else ""
    if entry and entry.state not in ("COMPLETED",):
        word = entry.state.split()[0]
        return "failed", "; ".join(
            filter(None, (f"{word}: {_FAILED.get(word, entry.reason)}", said, _unseen(log, note, word)))
        )
    if note and note.state == "done":
        return "failed", "it ended well, but its files are not there: `simfer resume` makes them again"
    if note is None and not log:
        return "failed", "the scheduler has forgotten it, and it never started: `simfer resume` submits it again"
    return "failed", said or "it ended without a word: killed, or its node was lost"


def _unseen(log: str, note: Note | None, word: str) -> str:
    if log or note or word == "CANCELLED":
        return ""
    return "it has left no log: is the run folder on a file system that its node sees?"


def _stage(stage: str, done: set[str], tasks: Sequence[TaskStatus]) -> str:
    states = [task.state for task in tasks if task.stage == stage]
    if stage in done:
        return "done"
    if not states:
        return "not begun"
    for state in ("failed", "running", "pending"):
        if state in states:
            return state
    return "done"  # all shards are there; training, which begins next, counts them


def _log(path: Path, run: str, stage: str, key: TaskKey) -> str:
    name = log_of(run, stage, *key)
    return name if (path / name).is_file() else ""


def _last_error(log: Path) -> str:
    """The last line of a log in which something went wrong."""
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - _LAST_LINES))
        lines = stream.read().decode(errors="replace").splitlines()
    said = [line for line in lines if not _OF_THE_SCRIPT.match(line)]
    wrong = [line for line in said if _WRONG.search(line)]
    ended = [line for line in lines if " ended with " in line]
    return (wrong or ended or [""])[-1].strip()
