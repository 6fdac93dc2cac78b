"""Tasks in worker processes on this machine."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from typing import TypeVar

from ...data.errors import SimulatorError
from ...data.stopping import late, passing_on, share

_MOST_DEATHS = 5  # without one result between them
_SECONDS = 5.0  # for workers to write what they have

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
        """Results as they come. Workers that die are replaced, and what they were at is given out again.

        Raises SimulatorError when the task cannot be sent to a worker, or workers die again and again.
        """
        todo, deaths = list(items), 0
        if todo:
            _require_picklable(task)
        while todo:
            done: list[Item] = []
            try:
                for item, result in self._one_pool(task, todo):
                    done.append(item)
                    yield result
            except BrokenProcessPool as error:
                deaths = 1 if done else deaths + 1
                if deaths == _MOST_DEATHS:
                    raise SimulatorError(
                        "worker processes died again and again (out of memory, or the simulator crashed them): what is "
                        "done is kept; run the same command again, with fewer `local.workers` if memory was short"
                    ) from error
            todo = [item for item in todo if item not in done]

    def _one_pool(self, task: Callable[[Item], Result], items: list[Item]) -> Iterator[tuple[Item, Result]]:
        context = multiprocessing.get_context("spawn")
        wish = context.Event()
        pool = ProcessPoolExecutor(min(self.workers, len(items)), context, _start_worker, (os.getpid(), wish))
        try:
            with _single_threaded(), _deaf():
                futures = {pool.submit(task, item): item for item in items}
            with passing_on(wish.set):
                for future in as_completed(futures):
                    yield futures[future], future.result()
        finally:
            _close(pool)


def _close(pool: ProcessPoolExecutor) -> None:
    """Let workers finish what they are at, unless there is no time for it, or no more while they are waited for."""
    workers = list((pool._processes or {}).values())  # Python 3.14 has `terminate_workers`
    try:
        if late():
            _end(workers)
        pool.shutdown(wait=True, cancel_futures=True)
    except BaseException:
        _end(workers)  # nobody else does, and this process would wait for them when it exits
        raise


def _end(workers: Sequence[BaseProcess]) -> None:
    """Interrupt what they are at, and kill those that do not hear it."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + _SECONDS
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))
        worker.kill()
        worker.join(_SECONDS)


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


@contextmanager
def _deaf() -> Iterator[None]:
    """Workers hear nothing of Ctrl-C from the beginning: they inherit what this thread blocks."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _require_picklable(task: object) -> None:
    try:
        pickle.dumps(task)
    except Exception as error:
        raise SimulatorError(
            f"the simulator cannot be sent to worker processes ({error}): "
            "define it in a module, or use `local: {executor: inline}`"
        ) from error


def _start_worker(parent: int, wish: Event) -> None:
    share(wish)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the parent, which lets the running shards finish
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # in children of a worker it is theirs to deal with
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _leave(*_: object) -> None:
    """The parent has no time left, or has lost another worker: keep what there is, and begin nothing else."""
    leaving = threading.Event()
    leaving.set()
    share(leaving)
    end = threading.Timer(_SECONDS, os._exit, (1,))
    end.daemon = True
    end.start()
    raise KeyboardInterrupt


def _die_with(parent: int) -> None:
    """Leave when the parent was killed; an orphan would wait for work for ever."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(1)
