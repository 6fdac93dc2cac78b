"""Submit what a run lacks as a chain of jobs: an array of simulations, training, checks, inference, report.

Each job starts when the one before has ended well. What is done is not submitted, and neither is what a job that waits or runs
will do. Where a job fails, Slurm removes those that wait for it (``--kill-on-invalid-dep``), `status` says why, and `resume`
submits what is missing then.
"""

from __future__ import annotations

import grp
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from ... import __version__
from ...data.errors import ConfigError, RunFolderError, SchedulerError
from ...data.files import fingerprint, write_text
from ...data.records import FAILED, INVALID, TIMEOUT
from ...data.store import SimulationStore
from ...simulators.begin import identity
from ...simulators.imported import Imported
from ...simulators.trail import filling
from ..engine import Step, begin_simulations, plan, record
from ..folder import STORE, RunFolder
from ..job import Job, make_job
from ..progress import Reporter
from ..stages import STAGES
from ..yaml_file import read_source
from .checks import problems_of
from .ledger import Ledger, dealt, shards_of
from .scheduler import LARGEST_ARRAY, QueueEntry, Scheduler, TaskKey
from .script import FOLDER, LOGS, Array, file_of, script

Queue = Mapping[TaskKey, QueueEntry]


def submit(job: Job, folder: RunFolder, reporter: Reporter, *, dry: bool = False) -> list[str]:
    """Submit what is missing of a run.

    Args:
        job: All that the run needs.
        folder: Its folder, which all nodes must see.
        reporter: Is told what is submitted.
        dry: Write the files, and submit nothing.

    Returns:
        Numbers of the jobs.

    Raises:
        ConfigError: What can be known to go wrong, before anything is queued.
        SchedulerError: The scheduler refuses; nothing stays queued.
    """
    scheduler = Scheduler()
    if not dry and (problems := problems_of(job, folder.path, scheduler)):
        raise ConfigError(problems)
    ledger, queue = _known(folder, scheduler, dry)
    if running := [s for s in ledger.submissions if s.stage != "simulate" and _state(queue, s.job) == "RUNNING"]:
        reporter.say(f"nothing to submit: job {running[-1].job} ({running[-1].stage}) is running; see `simfer status`")
        return []
    with _umask(job.config.local.slurm.umask), folder.in_use():
        ledger, queue = _known(folder, scheduler, dry)  # another may have submitted until now
        steps = [step for step in plan(job, folder, list(STAGES)) if step.action != "skip"]
        if not steps:
            reporter.say("nothing to submit: all stages are up to date")
            return []
        _require_same_campaign(steps[0], folder, ledger, queue)
        record(job, folder, steps)
        for place in (f"{FOLDER}/tasks", LOGS):
            (folder / place).mkdir(parents=True, exist_ok=True)
        missing = _missing(job, folder, steps[0], ledger, queue, reporter)
        if not missing and not dry and _chained(steps, ledger, queue):
            reporter.say("nothing to submit: what is missing is in the queue; see `simfer status`")
            return []
        array = _array(job, ledger, missing, scheduler if not dry else None)
        stages = [step.stage.name for step in steps if step.stage.name != "simulate" or array or _alone(job)]
        _write(job, folder, stages, array)
        _share(folder.path, job.config.local.slurm.group)
        if dry:
            reporter.say(
                f"written: {', '.join(str(folder / file_of(stage)) for stage in stages)}; nothing is submitted"
            )
            return []
        return _queue(stages, array, ledger, queue, scheduler, reporter)


def resume(path: Path, reporter: Reporter, *, keep: bool = False, dry: bool = False) -> list[str]:
    """Submit what is missing of a run that was submitted before.

    Args:
        path: Its folder.
        reporter: Is told what is submitted.
        keep: Keep simulations that are done although the simulator's source has changed since.
        dry: Write the files, and submit nothing.

    Raises:
        RunFolderError: There is no such run, or its simulator has changed.
    """
    if not (path / "config.yaml").is_file():
        raise RunFolderError(f"no run at {path}: a run folder has `config.yaml`; `simfer submit CONFIG` makes one")
    job, folder = make_job(read_source(path / "config.yaml")), RunFolder(path)
    step = plan(job, folder, ["simulate"])[0]
    if step.action == "rebuild":
        if not keep:
            raise RunFolderError(
                f"the simulations of {path} were made by another simulator ({'; '.join(step.changes[:3])}): `simfer resume "
                f"--keep` keeps them and goes on with this one, `simfer submit {path / 'config.yaml'}` begins anew"
            )
        _adopt(job, folder, step)
    return submit(job, folder, reporter, dry=dry)


def cancel(path: Path, reporter: Reporter) -> None:
    """Cancel all jobs of a run that wait or run; what is done stays.

    Raises:
        RunFolderError: Nothing was submitted from there.
        SchedulerError: The scheduler cannot be asked, or refuses.
    """
    ledger, scheduler = Ledger.read(path), Scheduler()
    queue = scheduler.queue(ledger.jobs)
    jobs = [job for job in dict.fromkeys(ledger.jobs) if _active(queue, job)]
    scheduler.cancel(jobs)
    text = f"cancelled jobs {', '.join(jobs)}; `simfer resume {path}` goes on" if jobs else "no job waits or runs"
    reporter.say(text)


def _known(folder: RunFolder, scheduler: Scheduler, dry: bool) -> tuple[Ledger, Queue]:
    """The jobs of before, and what the scheduler has of them."""
    ledger = Ledger.read(folder.path) if Ledger.there(folder.path) else Ledger(folder.path, __version__)
    return ledger, {} if dry else scheduler.queue(ledger.jobs)


def _require_same_campaign(step: Step, folder: RunFolder, ledger: Ledger, queue: Queue) -> None:
    """Raise RunFolderError where tasks still fill a store that would be replaced: they would go on in the new one."""
    active = [s.job for s in ledger.of("simulate") if _active(queue, s.job)]
    if active and step.stage.name == "simulate" and step.action not in ("resume", "extend"):
        raise RunFolderError(
            f"job {', '.join(active)} still simulates for another configuration in {folder.path} ({'; '.join(step.changes[:3])}): "
            f"`simfer cancel {folder.path}`, and submit again once it has ended, or give another `--workdir`"
        )


@contextmanager
def _umask(given: str | None) -> Iterator[None]:
    """What is made here is as open to others as what jobs make."""
    if given is None:
        yield
        return
    before = os.umask(int(given, 8))
    try:
        yield
    finally:
        os.umask(before)


def _missing(job: Job, folder: RunFolder, step: Step, ledger: Ledger, queue: Queue, reporter: Reporter) -> list[int]:
    """Shards that are not done, nor will be by a job in the queue; of none that are imported."""
    if step.stage.name != "simulate" or isinstance(job.simulator, Imported):
        return []
    store = begin_simulations(job, folder, step, reporter)
    owned = {
        shard
        for submission in ledger.of("simulate")
        if submission.shards
        for (_, task), shards in zip(submission.keys, shards_of(folder.path, submission.shards), strict=True)
        if (entry := queue.get((submission.job, task))) and entry.active
        for shard in shards
    }
    if job.config.simulate.on_invalid == "fail":
        _give_up_bad(store, owned)
    return [shard for shard in store.pending_shards() if shard not in owned]


def _give_up_bad(store: SimulationStore, owned: set[int]) -> None:
    """No row may be bad: shards that hold one are simulated again, once what made them so is mended."""
    bad = [shard for shard in store.shards_with((FAILED, INVALID, TIMEOUT)) if shard not in owned]
    for shard in bad:
        store.discard(shard)


def _array(job: Job, ledger: Ledger, missing: Sequence[int], scheduler: Scheduler | None) -> Array | None:
    if not missing:
        return None
    largest = (scheduler.largest_array() if scheduler else None) or LARGEST_ARRAY
    tasks = min(len(missing), job.config.local.slurm.simulate.array or largest, largest)
    return Array(tasks, ledger.new_shards(dealt(missing, tasks)))


def _alone(job: Job) -> bool:
    """Whether the simulations come in one go."""
    return isinstance(job.simulator, Imported)


def _chained(steps: Sequence[Step], ledger: Ledger, queue: Queue) -> bool:
    """Whether every stage that is not done has a job that waits, and will start."""
    names = [step.stage.name for step in steps if step.stage.name != "simulate"]
    waiting = {s.stage for s in ledger.submissions if _active(queue, s.job) and "Never" not in _reason(queue, s.job)}
    return all(name in waiting for name in names)


def _write(job: Job, folder: RunFolder, stages: Sequence[str], array: Array | None) -> None:
    config = job.config
    for stage in stages:
        text = script(config.name, stage, config.local, array if stage == "simulate" else None)
        write_text(folder / file_of(stage), text)


def _queue(
    stages: Sequence[str], array: Array | None, ledger: Ledger, queue: Queue, scheduler: Scheduler, reporter: Reporter
) -> list[str]:
    """Try all scripts, then submit them, each after the one before."""
    for stage in stages:
        if refused := scheduler.try_out(file_of(stage), ledger.folder):
            known = ", ".join(scheduler.partitions())
            raise SchedulerError(
                f"the scheduler would refuse {ledger.folder / file_of(stage)}: {refused} (partitions: {known}); nothing is "
                "submitted"
            )
    scheduler.cancel([s.job for s in ledger.submissions if s.stage != "simulate" and _active(queue, s.job)])
    before = [f"afterany:{s.job}" for s in ledger.of("simulate") if _active(queue, s.job)]
    jobs: list[str] = []
    ledger.version = __version__
    for stage in stages:
        after = ",".join(before) if stage != "simulate" else ""
        try:
            job = scheduler.submit(file_of(stage), ledger.folder, after)
        except SchedulerError:
            scheduler.cancel(jobs)
            raise
        tasks = array if stage == "simulate" else None
        ledger.add(stage, job, tasks.tasks if tasks else None, tasks.shards if tasks else None)
        reporter.say(
            f"{stage}: job {job}" + (f", {tasks.tasks} tasks" if tasks else "") + (f", {after}" if after else "")
        )
        before = [*(before if stage == "simulate" else []), f"afterok:{job}"]
        jobs.append(job)
    return jobs


def _adopt(job: Job, folder: RunFolder, step: Step) -> None:
    """Take simulations over from a simulator that was mended.

    Raises:
        RunFolderError: More has changed than its source.
    """
    if others := [
        change for change in step.changes if not change.startswith(("simulator.source", "simulator.version"))
    ]:
        raise RunFolderError(
            f"`--keep` needs the same campaign by a simulator that was mended; also changed: {'; '.join(others[:3])}"
        )
    own = identity(job.simulator, job.prior, job.config.seed, job.context)
    store = SimulationStore.open(folder / STORE)
    with folder.in_use(), filling(store, alone=True):
        SimulationStore.open(store.path).annotate({"campaign": own, "campaign_hash": fingerprint(own)})
        folder.begin("simulate", step.key, step.inputs)


def _share(folder: Path, group: str | None) -> None:
    """Let a group own the folder, and what will be made in it.

    Raises:
        ConfigError: There is no such group, or one may not give files to it.
    """
    if group is None:
        return
    try:
        number = grp.getgrnam(group).gr_gid
        for place in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
            with suppress(FileNotFoundError):  # of a task that has just ended
                _give(place, number)
    except (KeyError, PermissionError) as error:
        raise ConfigError(f"`local.slurm.group` must be a group that you are in; got `{group}`") from error


def _give(place: Path, group: int) -> None:
    """Let a group own a folder, unless it does or the folder is another user's."""
    found = place.stat()
    mode = found.st_mode | stat.S_ISGID | stat.S_IRWXG
    if found.st_uid == os.geteuid() and (found.st_gid, found.st_mode) != (group, mode):
        os.chown(place, -1, group)
        place.chmod(mode)


def _active(queue: Queue, job: str) -> bool:
    return any(entry.active for (number, _), entry in queue.items() if number == job)


def _state(queue: Queue, job: str) -> str:
    return next((entry.state for (number, _), entry in queue.items() if number == job), "")


def _reason(queue: Queue, job: str) -> str:
    return next((entry.reason for (number, _), entry in queue.items() if number == job), "")
