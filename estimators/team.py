"""Training in several processes, one for each device: they are started here, and only fit.

What began the training, a notebook or a run that holds its folder, stays the one process that prepares rows, is told of epochs and
takes the best weights. It sends the prepared training to the others, which share every batch (`module`) and know nothing else
(`worker`). Those that ``srun`` started on other nodes wait for it (`joined`). None outlives it, and if one dies, so do all.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import queue
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from multiprocessing import AuthenticationError
from multiprocessing.connection import Connection, Listener, answer_challenge, deliver_challenge, wait
from typing import Any

from ..data.errors import ConfigError, SimferError, TrainingError
from ..data.stopping import passing_on
from .fit import Fit, Fitted, Place
from .losses import EpochReport
from .worker import Hello, Order, RemoteError, modules_from_files, put, take

_HERE = "127.0.0.1"
# USR1 is a wish to stop (`worker.main`), which must not kill what is still importing
_PROGRAM = (
    "import signal; signal.signal(signal.SIGUSR1, signal.SIG_IGN); from simfer.estimators.worker import main; main()"
)
_SECONDS = 300.0  # for all to be there: they import torch, from a busy file system perhaps
_GRACE = 5.0  # for others to say what is wrong, once one has failed


@dataclass(frozen=True, slots=True)
class Joined:
    """Processes that were not started here.

    Attributes:
        connections: To each, by rank.
        world: With this one.
    """

    connections: dict[int, Connection]
    world: int


_joined: Joined | None = None


@contextmanager
def joined(others: Joined) -> Iterator[None]:
    """Let trainings share batches with processes that are there already."""
    global _joined
    _joined = others
    try:
        yield
    finally:
        _joined = None


def fit_together(fit: Fit, on_epoch: EpochReport) -> Fitted:
    """Fit, in this process if there is but one device.

    Raises:
        TrainingError: A process died.
        ConfigError: ``srun`` started another number of processes than there are devices; the training cannot be sent.
    """
    world = fit.hardware.world
    require_tasks(world, fit.hardware.nodes, _joined.world if _joined else None)
    if world == 1:
        return fit(on_epoch)
    _ = fit.hardware.finds_unused  # refuses other strategies
    sent, others = _pickled(fit), _joined.connections if _joined else {}
    with _started([rank for rank in range(world) if rank not in others], alone=not others) as (own, first):
        place = Place(0, world, first.host if others else _HERE, first.port)
        connections = {**others, **own}
        for rank, connection in connections.items():
            put(connection, Order(replace(place, rank=rank), modules_from_files()))
            connection.send_bytes(sent)
        return _listen(connections, on_epoch)


def require_tasks(world: int, nodes: int, started: int | None) -> None:
    """Raise ConfigError if ``srun`` started another number of processes."""
    if started is not None and started != world:
        raise ConfigError(
            f"`local.devices` times `local.nodes` must be the number of tasks that `srun` started, {started}; got {world}"
        )
    if started is None and nodes > 1:
        raise ConfigError(
            f"`local.nodes: {nodes}` needs `srun` with a task for every device, "
            f"`srun --nodes={nodes} --ntasks={world} simfer …`: use `nodes: 1`, or start it so"
        )


@contextmanager
def _started(ranks: list[int], *, alone: bool) -> Iterator[tuple[dict[int, Connection], Hello]]:
    """Connections to processes on this machine, which end with the context, and what the first says of itself."""
    key = secrets.token_bytes(32)
    children: list[subprocess.Popen[bytes]] = []
    connections: dict[int, Connection] = {}
    with Listener((_HERE, 0), backlog=len(ranks)) as listener:
        try:
            for rank in ranks:
                told = {"address": listener.address, "key": key.hex(), "rank": rank, "beside": len(ranks)}
                children.append(_child(told, alone=alone))
            hellos = {}
            for connection, hello in arrivals(listener, key, len(ranks), children):
                connections[hello.rank], hellos[hello.rank] = connection, hello
            with passing_on(lambda: _ask_to_stop(children)):
                yield connections, hellos[0]
        finally:
            for child in children:
                child.kill()
                child.wait()
            for connection in connections.values():
                connection.close()


def _child(told: dict[str, Any], *, alone: bool) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    if alone and sys.platform == "linux":
        environment.setdefault("GLOO_SOCKET_IFNAME", "lo")  # the machine's own name may lead nowhere
    command = [sys.executable, "-c", _PROGRAM]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment)
    assert child.stdin is not None
    child.stdin.write(json.dumps(told).encode() + b"\n")
    child.stdin.flush()  # and stays open: its end tells the child that this process is gone
    return child


def _ask_to_stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.send_signal(signal.SIGUSR1)


def arrivals(
    listener: Listener,
    key: bytes,
    many: int,
    children: Sequence[subprocess.Popen[bytes]] = (),
    seconds: float = _SECONDS,
) -> Iterator[tuple[Connection, Hello]]:
    """Those that connect and know the key.

    Args:
        listener: Without a key: whoever connects and is silent, or does not know it, must not keep others waiting.
        key: Which they must know.
        many: How many there will be.
        children: Those of them that were started here.
        seconds: For all of them to come.

    Raises:
        TrainingError: Not all did in time, or one of the children died.
    """
    found: queue.Queue[tuple[Connection, Hello]] = queue.Queue()
    over, address = threading.Event(), listener.address
    threading.Thread(target=_accept, args=(listener, key, found, over), daemon=True).start()
    deadline = time.monotonic() + seconds
    try:
        for _ in range(many):
            yield _next(found, many, children, deadline, seconds)
    finally:
        over.set()
        with suppress(OSError):  # to close the listener would not wake who accepts
            socket.create_connection(address, 1.0).close()


def _next(
    found: queue.Queue[tuple[Connection, Hello]],
    many: int,
    children: Sequence[subprocess.Popen[bytes]],
    deadline: float,
    seconds: float,
) -> tuple[Connection, Hello]:
    while True:
        try:
            return found.get(timeout=0.5)
        except queue.Empty:
            if any(child.poll() is not None for child in children) or time.monotonic() > deadline:
                raise TrainingError(
                    f"the {many} processes that are to train together did not all come within {seconds:g} s, or ended: see "
                    "what they printed; use `devices: 1` to train in one"
                ) from None


def _accept(
    listener: Listener, key: bytes, found: queue.Queue[tuple[Connection, Hello]], over: threading.Event
) -> None:
    while True:
        try:
            connection = listener.accept()
        except OSError:  # it is closed
            return
        if over.is_set():
            connection.close()
            return
        threading.Thread(target=_greet, args=(connection, key, found), daemon=True).start()


def _greet(connection: Connection, key: bytes, found: queue.Queue[tuple[Connection, Hello]]) -> None:
    """What `Listener` does with a key of its own, and what a worker says then."""
    try:
        deliver_challenge(connection, key)
        answer_challenge(connection, key)
        found.put((connection, take(connection)))
    except (OSError, EOFError, AuthenticationError):
        connection.close()


def _pickled(fit: Fit) -> bytes:
    try:
        return pickle.dumps(fit)
    except Exception as error:
        raise ConfigError(
            f"the training cannot be sent to other processes ({error}): define your classes in a module, or use `devices: 1`"
        ) from error


def _listen(connections: dict[int, Connection], on_epoch: EpochReport) -> Fitted:
    """Tell of epochs until all are done."""
    ranks = {connection: rank for rank, connection in connections.items()}
    fitted: Fitted | None = None
    while ranks:
        for ready in wait(list(ranks)):
            assert isinstance(ready, Connection)
            kind, content = _message(ready, ranks)
            if kind == "epoch":
                on_epoch(*content)
            elif kind == "log":
                _relog(content)
            elif kind == "done":
                fitted = content or fitted
                del ranks[ready]
            else:
                raise _worst(content, ranks, ready)
    assert fitted is not None
    return fitted


def _relog(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)


def _message(connection: Connection, ranks: dict[Connection, int]) -> tuple[str, Any]:
    try:
        kind, content = take(connection)
    except (EOFError, OSError):
        dead = TrainingError(
            f"process {ranks[connection]} of those that train together died (out of memory?): what it had saved is kept; run "
            "the same again"
        )
        return "failed", (dead, "")
    return kind, content


def _worst(failed: tuple[BaseException, str], ranks: dict[Connection, int], first: Connection) -> BaseException:
    """What to raise: the first that is no consequence of another's failure, if one comes in time."""
    failures = [failed]
    left = {connection: rank for connection, rank in ranks.items() if connection is not first}
    deadline = time.monotonic() + _GRACE
    while left and not isinstance(failures[-1][0], SimferError) and time.monotonic() < deadline:
        for ready in wait(list(left), timeout=0.2):
            assert isinstance(ready, Connection)
            kind, content = _message(ready, left)
            if kind in ("failed", "done"):
                del left[ready]
                failures += [content] if kind == "failed" else []
    error, text = next((item for item in failures if isinstance(item[0], SimferError)), failures[0])
    error.__cause__ = RemoteError(text) if text else None
    return error
