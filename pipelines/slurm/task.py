"""What a job does on its node: a block of shards, or a stage."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ... import __version__
from ...data.errors import RunFolderError, SimferError
from ...data.records import PENDING
from ...data.store import SimulationStore
from ...simulators.campaign import fill_shards
from ...simulators.imported import Imported
from ..engine import execute
from ..executors import Inline, Processes
from ..folder import STORE, RunFolder
from ..job import Job, make_job
from ..progress import Reporter
from ..stages import STAGES
from ..tasks import Task, follow, leading
from ..yaml_file import read_source
from .ledger import Ledger, shards_of
from .notes import Notes
from .signals import getting_on, heard

_LOCK = 600.0  # seconds that a job waits for one on a node that the scheduler has lost
_SIGHT = 60.0  # and for files that other nodes have just written

logger = logging.getLogger("simfer.run")


def run_task(folder: Path, stage: str, shards: str | None) -> None:
    """Do a job's work, and leave a note of it.

    Args:
        folder: The run folder.
        stage: Which.
        shards: File that says which shards this task of an array owns; None does the whole stage.

    Raises:
        KeyboardInterrupt: The job is to stop; what can be is saved.
        SimferError: What went wrong.
    """
    if not (folder / "config.yaml").is_file():
        raise RunFolderError(
            f"no run at {folder.absolute()} on {os.environ.get('SLURMD_NODENAME', 'this machine')}: the run folder must be on "
            "a file system that all nodes share"
        )
    grace, task = float(os.environ.get("SIMFER_GRACE", "90")), Task.here()
    if task and task.rank:
        with heard(grace):
            follow(task, RunFolder(folder))
        return
    notes = Notes(folder, stage)
    listened = logging.getLogger("simfer")
    listened.addHandler(notes)
    try:
        with heard(grace):
            _work(folder, stage, shards, notes, task)
        notes.update(state="done")
    except KeyboardInterrupt:
        notes.update(state="interrupted")
        raise
    except BaseException as error:
        notes.update(
            state="failed", error=f"{'' if isinstance(error, SimferError) else type(error).__name__ + ': '}{error}"
        )
        raise
    finally:
        listened.removeHandler(notes)


def _work(folder: Path, stage: str, shards: str | None, notes: Notes, task: Task | None) -> None:
    reporter = Reporter(Console())
    if notes.clock_is_off:
        reporter.say(
            f"the clock of this node differs from that of the file system by {notes.note.skew} s", style="yellow"
        )
    if Ledger.there(folder):
        _require_same_version(Ledger.read(folder))
    job = _with_devices(make_job(read_source(folder / "config.yaml")), task)
    if shards is not None:
        _fill(job, folder, shards_of(folder, shards)[notes.note.task or 0], notes, reporter)
        return
    if stage != "simulate" and not isinstance(job.simulator, Imported):
        _require_simulations(folder / STORE)
    with getting_on(stage, lambda: _newest(folder, stage)), leading(task, RunFolder(folder), job.config.local):
        execute(job, RunFolder(folder), [stage], reporter, wait=_LOCK)


def _with_devices(job: Job, task: Task | None) -> Job:
    """Training shares batches between as many processes as Slurm has started."""
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES", "1")) if task else 1
    own = {"devices": task.world // nodes, "nodes": nodes} if task else {"devices": 1, "nodes": 1}
    local = job.config.local.model_copy(update=own)
    return replace(job, config=job.config.model_copy(update={"local": local}))


def _fill(job: Job, folder: Path, shards: list[int], notes: Notes, reporter: Reporter) -> None:
    """The same task that every executor runs, for the shards of this task."""
    store = SimulationStore.open(folder / STORE)
    todo = store.pending_shards(shards)
    rows, left = (sum(store.layout.shard_length(s) for s in some) for some in (shards, todo))
    notes.update(rows=rows, done=rows - left, done_before=rows - left, shard=todo[0] if todo else None)

    def tell(more: int) -> None:
        meter(more)
        done = notes.note.done + more
        notes.update(done=done, shard=_next(store, todo, done - notes.note.done_before))

    cpus = int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    with getting_on("simulate", lambda: _simulated(store, todo)), reporter.bar("simulate", left, "rows") as meter:
        fill_shards(
            job.simulator,
            store.path.absolute(),
            shards,
            prior=job.prior,
            context=job.context,
            executor=Processes(cpus) if cpus > 1 else Inline(),
            on_invalid=job.config.simulate.on_invalid,
            protection=job.protection,
            reference=job.reference,
            progress=tell,
        )


def _simulated(store: SimulationStore, shards: list[int]) -> int:
    """Rows of some shards that are not pending."""
    return sum(int((store.read_array("status", store.layout.shard_rows(shard)) != PENDING).sum()) for shard in shards)


def _newest(folder: Path, stage: str) -> float:
    """When anything of a stage was last written."""
    files = (file for name in STAGES[stage].everything for file in (folder / name).rglob("*") if file.is_file())
    return max((file.stat().st_mtime for file in files), default=0.0)


def _next(store: SimulationStore, todo: list[int], done: int) -> int | None:
    """The shard that comes after so many rows."""
    for shard in todo:
        if done <= 0:
            return shard
        done -= store.layout.shard_length(shard)
    return None


def _require_simulations(store: Path) -> None:
    """The array is done when this starts; a network file system may show that late."""
    deadline = time.monotonic() + _SIGHT
    while pending := SimulationStore.open(store).pending_shards():
        if time.monotonic() > deadline:
            some = ", ".join(map(str, pending[:5])) + (f" and {len(pending) - 5} more" if len(pending) > 5 else "")
            raise RunFolderError(f"shards {some} are not simulated: `simfer resume` submits what is missing")
        time.sleep(2.0)


def _require_same_version(ledger: Ledger) -> None:
    if ledger.version != __version__:
        raise RunFolderError(
            f"simfer {ledger.version} submitted this run, and this node has simfer {__version__}: see to it that `setup` "
            "loads the environment that you submit from, or `simfer cancel` the run and submit it from the other one"
        )
