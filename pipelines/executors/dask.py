"""Tasks on the workers of a Dask cluster (https://distributed.dask.org): one that is running, or one of this machine's own.

A worker runs one task at a time, in a process with one thread: priors are drawn from a generator that threads would share.
Dask gives what a dead worker was at to another, so nothing is lost but time; a task that takes worker after worker with it is
given up, by the scheduler's ``allowed-failures``.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from ...data.errors import ConfigError, ExecutorError
from .sending import PACKAGES, loaded, pickled, public, require_same_versions, versions

logger = logging.getLogger("simfer.run")

_SECONDS = 10.0  # for a scheduler to answer
_PAUSE = 0.05

Item = TypeVar("Item")
Result = TypeVar("Result")


class Dask:
    """The workers of a scheduler, or of a cluster that is started here and ends with the campaign.

    Args:
        workers: Processes of a cluster of one's own.
        address: Of a running scheduler, such as ``tcp://10.0.0.1:8786``; None starts a cluster on this machine.
        seconds: For the scheduler to answer.
    """

    def __init__(self, workers: int = 2, address: str | None = None, *, seconds: float = _SECONDS) -> None:
        require_dask()
        self.workers, self.address, self.seconds = workers, address, seconds

    def map(self, task: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results as they come. When the iterator is closed, what runs is finished and nothing else begins.

        Raises:
            ExecutorError: The scheduler cannot be reached or is lost; a worker has other versions, more than one thread or
                cannot load the task; an item took worker after worker with it.
            SimulatorError: The task cannot be sent.
        """
        todo = list(items)
        if not todo:
            return
        call: _Call[Item, Result] = _Call(pickled(task, "Dask workers"), uuid.uuid4().hex, versions())
        with self._client() as client:
            found = client.get_versions(packages=list(PACKAGES))["workers"]
            if not found:
                logger.warning("the scheduler %s has no workers yet: waiting for them", client.scheduler.address)
            _require_same(found, call.versions)
            yield from _results(client, call, todo)

    @contextmanager
    def _client(self) -> Iterator[Any]:
        from distributed import Client

        if self.address is None:
            with _own_cluster(self.workers) as cluster, Client(cluster) as client:
                yield client
            return
        try:
            client = Client(self.address, timeout=self.seconds)
        except (OSError, ValueError) as error:
            raise ExecutorError(
                f"no scheduler answers at `local.address` {self.address} ({error}; waited {self.seconds:g} s at most): "
                "start one with `dask scheduler`, or leave `address` out for a cluster on this machine"
            ) from error
        with client:
            yield client


def require_dask() -> None:
    """Raise ConfigError if it is not installed."""
    if find_spec("distributed") is None:
        raise ConfigError("`executor: dask` needs dask.distributed: `pip install 'simfer[dask]'`")


@contextmanager
def _own_cluster(workers: int) -> Iterator[Any]:
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        memory_limit=0,  # the kernel's is what other executors have
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.ERROR,
        preload=[__name__],
    ) as cluster:
        yield cluster


def dask_setup(worker: Any) -> None:
    """Called by Dask in each worker of a cluster of one's own: Ctrl-C goes to all, and is the client's to deal with."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _results(client: Any, call: _Call[Item, Result], items: list[Item]) -> Iterator[Result]:
    from distributed import as_completed

    keys = [f"simfer-{call.token}-{i}" for i in range(len(items))]
    futures = client.map(call, items, key=keys, pure=False)
    names = dict(zip(keys, items, strict=True))
    try:
        for future in as_completed(futures):
            yield _result(future, names[future.key])
            future.release()
    finally:
        _stop(client, call.token, futures)


def _result(future: Any, item: Any) -> Any:
    from distributed import KilledWorker
    from distributed.client import FutureCancelledError

    try:
        return future.result()
    except KilledWorker as error:
        raise ExecutorError(
            f"shard {item}: the {error.allowed_failures + 1} workers that tried it died (out of memory, or the simulator "
            "crashed them): what is done is kept; `simulate: {isolate: true}` confines a simulator that crashes"
        ) from error
    except FutureCancelledError as error:
        raise ExecutorError(
            f"the scheduler is lost or has dropped shard {item} ({error}): what is done is kept; run the same command again"
        ) from error


def _stop(client: Any, token: str, futures: list[Any]) -> None:
    """Let nothing more begin, and wait for what runs: it holds files of the store open."""
    left = [future for future in futures if not future.done()]
    if not left or client.status != "running":
        return
    client.cancel(left)
    while any(running for running in client.run(_end, token, on_error="return").values() if running is True):
        time.sleep(_PAUSE)


@dataclass(frozen=True, slots=True)
class _Call(Generic[Item, Result]):
    """A task on a worker.

    Attributes:
        task: Pickled, so that what cannot be loaded there is told from what fails there.
        token: Of all calls that end together.
        versions: Those of the sender.
    """

    task: bytes
    token: str
    versions: dict[str, str]

    def __call__(self, item: Item) -> Result:
        with _RUNNING.of(self.token):
            _require_fit(self.versions)
            multiprocessing.current_process().daemon = False  # rows that may crash are simulated in children
            task: Callable[[Item], Result] = loaded(self.task)
            return task(item)


class _Running:
    """Calls that run in this process, and tokens of which none may begin any more."""

    def __init__(self) -> None:
        self._lock, self._now, self._ended = threading.Lock(), dict[str, int](), set[str]()

    @contextmanager
    def of(self, token: str) -> Iterator[None]:
        with self._lock:
            if token in self._ended:
                raise ExecutorError("the campaign has ended")
            self._now[token] = self._now.get(token, 0) + 1
        try:
            yield
        finally:
            with self._lock:
                self._now[token] -= 1

    def end(self, token: str) -> bool:
        with self._lock:
            self._ended.add(token)
            return self._now.get(token, 0) > 0


_RUNNING = _Running()


def _end(token: str) -> bool:
    """Let no call begin here any more; whether one still runs."""
    return _RUNNING.end(token)


def _require_same(found: dict[str, Any], ours: dict[str, str]) -> None:
    """Compare the versions of the workers that are there; those that come later compare their own."""
    for address, said in found.items():
        host, packages = dict(said["host"]), dict(said["packages"])
        theirs = {"python": ".".join(str(host["python"]).split(".")[:2])}
        theirs |= {name: public(str(packages.get(name))) for name in PACKAGES}
        require_same_versions(theirs, ours, f"the worker {address}")


def _require_fit(ours: dict[str, str]) -> None:
    from distributed import get_worker

    worker = get_worker()
    require_same_versions(versions(), ours, f"the worker {worker.address}")
    if worker.state.nthreads != 1:
        raise ExecutorError(
            f"the worker {worker.address} has {worker.state.nthreads} threads and must have one: start "
            f"`dask worker --nworkers {worker.state.nthreads} --nthreads 1`, which uses as many cores"
        )
