"""Tasks in worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import TypeVar

from ...data.errors import SimulatorError

Item = TypeVar("Item")
Result = TypeVar("Result")


class Processes:
    """Fresh (spawned) workers, one torch thread each; results come as they are done.

    Args:
        workers: How many.
    """

    def __init__(self, workers: int) -> None:
        self.workers = workers

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Raises SimulatorError when the task cannot be sent to a worker, or a worker dies."""
        todo = list(items)
        if not todo:
            return
        _require_picklable(task)
        context = multiprocessing.get_context("spawn")
        pool = ProcessPoolExecutor(min(self.workers, len(todo)), context, _start_worker, (os.getpid(),))
        try:
            with _single_threaded():
                futures = [pool.submit(task, item) for item in todo]
            for future in as_completed(futures):
                yield future.result()
        except BrokenProcessPool as error:
            raise SimulatorError(
                "a worker process died (out of memory, or the simulator crashed it): what is done is kept; "
                "run the same command again, with fewer `local.workers` if memory was short"
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


@contextmanager
def _single_threaded() -> Iterator[None]:
    """Workers inherit the environment: one thread each, else they fight over the cores."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _require_picklable(task: object) -> None:
    try:
        pickle.dumps(task)
    except Exception as error:
        raise SimulatorError(
            f"the simulator cannot be sent to worker processes ({error}): "
            "define it in a module, or use `local: {executor: inline}`"
        ) from error


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which lets the running shards finish
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    """Leave when the parent was killed; an orphan would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
