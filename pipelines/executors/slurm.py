"""Tasks as an array of Slurm jobs, while this process waits: for a notebook, or a `simfer run`, on a login node.

Where nobody is to wait, `simfer submit` makes a chain of jobs of the whole run. Here a folder that all nodes see holds the task, which
items each task of the array owns, and a file for each result; that folder is looked at, and the scheduler is asked every half
minute. Time limits, preemption and lost nodes are dealt with as in `slurm.script`: what is requeued goes on with its first item that
has no result.
"""

from __future__ import annotations

import logging
import os
import pickle
import platform
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from ...data.errors import ExecutorError, SchedulerError
from ...data.files import remove, write_bytes
from ...data.stopping import late, stop_if_asked
from ..config import LocalConfig
from ..slurm.ledger import dealt
from ..slurm.scheduler import LARGEST_ARRAY, Scheduler
from ..slurm.script import LOGS, Array, file_of, log_of, script
from ..slurm.settings import SlurmConfig
from ..slurm.signals import getting_on, heard
from .inline import Inline
from .processes import Processes
from .sending import loaded, pickled, require_same_versions, versions

logger = logging.getLogger("simfer.run")

_LOOK = 0.5  # seconds between looks at the folder; more, the longer nothing comes
_PATIENCE = 5.0  # seconds before it is said what is waited for
_UNANSWERED = 20  # questions in a row after which a scheduler is given up
_NAME = "map"
_STOP = "stop"

Item = TypeVar("Item")
Result = TypeVar("Result")


class Slurm:
    """An array of jobs for each `map`, that ends with it.

    Args:
        settings: What is asked of Slurm, `simulate:` of it above all: partition, time, cpus, memory, setup, array, parallel.
        folder: On a file system that all nodes see; what goes to and fro lies in a folder of its own there meanwhile.
        interval: Seconds between questions to the scheduler.
    """

    def __init__(
        self, settings: SlurmConfig | None = None, folder: str | Path = ".", *, interval: float = 30.0
    ) -> None:
        self.settings, self.folder, self.interval = settings or SlurmConfig(), Path(folder), interval

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results as they come. When the iterator is closed, what runs is finished and nothing else begins.

        What is missing when an array has ended is submitted once more, as long as each brings a result.

        Raises:
            ExecutorError: A job was cancelled or brings no result, or a node has other versions or cannot load the task; the
                folder, with the logs, stays.
            SchedulerError: Slurm is not there, or refuses the job.
            SimulatorError: The task cannot be sent.
        """
        todo = dict(enumerate(items))
        if not todo:
            return
        sent = _Sent(pickled(task, "workers of Slurm"), list(todo.values()), versions(), [*sys.path, os.getcwd()])
        self.folder.mkdir(parents=True, exist_ok=True)
        # whoever next holds the run folder removes what a process that was killed has left, or an error for its logs
        place = Path(tempfile.mkdtemp(prefix=".slurm-map-", suffix=".partial", dir=self.folder.absolute()))
        try:
            write_bytes(place / "task.pkl", pickle.dumps(sent))
            while todo:
                before = len(todo)
                with self._array(place, list(todo)) as watch:
                    for index, outcome in self._outcomes(place, watch, todo):
                        del todo[index]
                        yield outcome.value()
                if todo:
                    _require_more(place, watch.job, list(todo), brought=before - len(todo))
        except ExecutorError:
            raise
        except BaseException:
            remove(place)
            raise
        remove(place)

    @contextmanager
    def _array(self, place: Path, left: Sequence[int]) -> Iterator[_Watch]:
        """Queue what is left; at the end cancel what waits, and wait for what runs."""
        scheduler = Scheduler()
        largest = scheduler.largest_array() or LARGEST_ARRAY
        tasks = min(len(left), self.settings.simulate.array or largest, largest)
        write_bytes(place / "parts.pkl", pickle.dumps(dealt(left, tasks)))
        remove(place / "running")  # with the marks of tasks that were killed
        for folder in (LOGS, "running", "results"):
            (place / folder).mkdir(parents=True, exist_ok=True)
        (place / _STOP).unlink(missing_ok=True)
        file = place / file_of("simulate")
        file.parent.mkdir(exist_ok=True)
        local = LocalConfig(slurm=self.settings)
        file.write_text(script(_NAME, "simulate", local, Array(tasks, ""), does="slurm-map"), encoding="utf-8")
        watch = _Watch(scheduler.submit(file_of("simulate"), place), self.interval)
        try:
            yield watch
        finally:
            (place / _STOP).touch()
            try:
                scheduler.cancel([watch.job], waiting=True)
                self._wait(place, watch)
            except SchedulerError as error:  # they find the folder gone
                logger.warning("%s", error)

    def _outcomes(self, place: Path, watch: _Watch, todo: dict[int, Any]) -> Iterator[tuple[int, _Outcome]]:
        """Those that are not read yet, until all are or the job has ended.

        Raises:
            ExecutorError: A task cannot work at all.
            SchedulerError: Nobody knows any more how the job is.
            KeyboardInterrupt: This process is asked to stop.
        """
        ended, pause = False, _LOOK
        while todo:
            pause = min(1.5 * pause, max(_LOOK, self.interval / 6))
            for index in sorted(todo.keys() & _written(place)):
                pause = _LOOK
                yield index, pickle.loads(_result_file(place, index).read_bytes())
            if (place / "refused").is_file():
                raise ExecutorError((place / "refused").read_text(encoding="utf-8"))
            if not todo or ended:
                return
            stop_if_asked()
            ended = not watch.runs()
            time.sleep(pause)

    def _wait(self, place: Path, watch: _Watch) -> None:
        """Until no task is at an item; a mark of one that was killed stays, and the job has ended then."""
        asked, told = time.monotonic(), False
        while any((place / "running").iterdir()) and watch.runs() and not late():
            if not told and time.monotonic() - asked > _PATIENCE:
                logger.warning("waiting for what runs in job %s; `scancel %s` ends that as well", watch.job, watch.job)
                told = True
            time.sleep(_LOOK / 5)


class _Watch:
    """Asks the scheduler how a job is, once in so many seconds.

    Args:
        job: Its number.
        interval: Seconds.
    """

    def __init__(self, job: str, interval: float) -> None:
        self.job, self._interval = job, interval
        self._scheduler, self._asked = Scheduler(), time.monotonic()
        self._unanswered, self._told = 0, ""

    def runs(self) -> bool:
        """Whether a task of the job may still do something, for all that is known.

        Raises:
            SchedulerError: The scheduler could not be asked many times in a row.
        """
        if time.monotonic() - self._asked <= self._interval:
            return True
        self._asked = time.monotonic()
        try:
            entries = self._scheduler.queue([self.job]).values()
        except SchedulerError as error:
            self._unanswered += 1
            if self._unanswered >= _UNANSWERED:
                raise
            logger.warning("%s", error)
            return True
        self._unanswered = 0
        held = next(
            (entry.reason for entry in entries if entry.state == "PENDING" and "held" in entry.reason.lower()), ""
        )
        if held and held != self._told:
            logger.warning("job %s waits: %s; `scontrol release %s` lets it go on", self.job, held, self.job)
        self._told = held
        return any(entry.active for entry in entries)


class _Sent(NamedTuple):
    """What a node is told.

    Attributes:
        task: Pickled, so that what cannot be loaded is told from what fails.
        items: All of them.
        versions: Those of the sender.
        path: Where the sender's modules are.
    """

    task: bytes
    items: list[Any]
    versions: dict[str, str]
    path: list[str]


class _Outcome(NamedTuple):
    """A result, or what was raised, and where."""

    result: Any
    error: Exception | None = None
    raised: str = ""

    def value(self) -> Any:
        if self.error is not None:
            self.error.add_note(self.raised)
            raise self.error
        return self.result


def work(place: Path) -> None:
    """Do what a task of the array owns.

    Raises:
        KeyboardInterrupt: The job is to stop.
        ExecutorError: This node cannot do it.
    """
    number = int(os.environ["SLURM_ARRAY_TASK_ID"])
    mark, cpus = place / "running" / str(number), int(os.environ.get("SLURM_CPUS_PER_TASK", "1"))
    parts: list[list[int]] = pickle.loads((place / "parts.pkl").read_bytes())
    mark.touch()
    try:
        with heard(float(os.environ.get("SIMFER_GRACE", "90"))):
            _task_of(place)
            left = [index for index in parts[number] if not _result_file(place, index).exists()]
            executor = Processes(cpus) if cpus > 1 else Inline()
            with getting_on("simulate", lambda: sum(_result_file(place, index).exists() for index in left)):
                for _ in executor.map(_Do(place), left):
                    stop_if_asked()
    except ExecutorError as error:
        write_bytes(place / "refused", str(error).encode())
        raise
    finally:
        mark.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True)
class _Do:
    """Does an item, and writes what comes of it."""

    place: Path

    def __call__(self, index: int) -> None:
        if (self.place / _STOP).exists():
            return
        task, items = _task_of(self.place)
        try:
            outcome = _Outcome(task(items[index]))
        except Exception as error:
            outcome = _Outcome(None, error, f"on node {platform.node()}:\n{traceback.format_exc()}")
        write_bytes(_result_file(self.place, index), _portable(outcome))


@cache
def _task_of(place: Path) -> tuple[Callable[[Any], Any], list[Any]]:
    sent: _Sent = pickle.loads((place / "task.pkl").read_bytes())
    require_same_versions(versions(), sent.versions, f"the node {platform.node()}")
    sys.path.extend(entry for entry in sent.path if entry not in sys.path)
    return loaded(sent.task), sent.items


def _portable(outcome: _Outcome) -> bytes:
    try:
        found = pickle.dumps(outcome)
        if outcome.error is not None:
            pickle.loads(found)  # exceptions with arguments of their own may not come back
    except Exception as error:
        why = f"a task failed: {outcome.error}" if outcome.error else f"what a task found cannot be sent: {error}"
        return pickle.dumps(_Outcome(None, ExecutorError(why), outcome.raised))
    return found


def _result_file(place: Path, index: int) -> Path:
    return place / "results" / f"{index}.pkl"


def _written(place: Path) -> set[int]:
    return {int(name.removesuffix(".pkl")) for name in os.listdir(place / "results") if name[0].isdigit()}


def _require_more(place: Path, job: str, left: Sequence[int], brought: int) -> None:
    """Raise ExecutorError where submitting once more would bring nothing, or is not wanted."""
    try:
        states = Scheduler().queue([job])
    except SchedulerError:
        states = {}
    cancelled = any(entry.state.startswith("CANCELLED") for entry in states.values())
    if brought and not cancelled:
        return
    said = sorted({f"{entry.state} {entry.reason}".strip() for entry in states.values() if entry.state != "COMPLETED"})
    bad = (task for (_, task), entry in states.items() if entry.state != "COMPLETED")
    files = (place / log_of(_NAME, "simulate", job, task) for task in bad if task is not None)
    logs = [file for file in files if file.exists()]
    where = f"see {logs[0]}" if logs else f"there is no log: {place} must be on a file system that all nodes share"
    raise ExecutorError(
        f"job {job} has ended ({', '.join(said) or 'unknown to the scheduler'}) and left {len(left)} of its items undone; {where}. "
        "What is done is kept; run the same command again"
    )
