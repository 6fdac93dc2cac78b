"""A process that takes part in trainings: told over a connection what to fit, it says how far it is and what came of it.

`main` is one that `team` starts; it reads from its standard input where to connect, and leaves when that ends, because then the
process that started it is gone.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Client, Connection
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from ..data import registry
from ..data.errors import ConfigError, TrainingError
from ..data.stopping import ask_to_stop
from .fit import Fit, Fitted, Place
from .losses import EpochReport


@dataclass(frozen=True, slots=True)
class Hello:
    """What a process says of itself: its rank, its machine, and a port there where all may meet."""

    rank: int
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Order:
    """What precedes a training that is sent: the place in it, and files that its classes come from."""

    place: Place
    files: list[Path]


class RemoteError(Exception):
    """Where an error was raised, in another process."""

    def __str__(self) -> str:
        return f'\n"""\n{self.args[0]}"""'


def put(connection: Connection, message: object) -> None:
    """Send by value: what `Connection.send` makes of tensors is memory that other machines do not share."""
    connection.send_bytes(pickle.dumps(message))


def take(connection: Connection) -> Any:
    """Receive what was `put`."""
    return pickle.loads(connection.recv_bytes())


def hello(rank: int) -> Hello:
    """Of this process."""
    with socket.socket() as free:
        free.bind(("", 0))
        return Hello(rank, socket.gethostname(), free.getsockname()[1])


def modules_from_files() -> list[Path]:
    """Files of the user's own that were imported by path, so that no name leads to them."""
    found = [module for name, module in sys.modules.items() if name.startswith(registry.FROM_FILE)]
    return [Path(str(module.__file__)) for module in found]


def work(connection: Connection, device: int) -> None:
    """Fit whatever comes, until the connection ends or a training fails."""
    while True:
        try:
            order, sent = take(connection), connection.recv_bytes()
        except (EOFError, OSError):
            return
        try:
            fitted = _fit(order, sent, device, connection)
        except BaseException as error:
            put(connection, ("failed", (_sendable(error), traceback.format_exc())))
            return
        put(connection, ("done", None if order.place.rank else fitted))


def _fit(order: Order, sent: bytes, device: int, connection: Connection) -> Fitted:
    fit, place = _loaded(order.files, sent), replace(order.place, device=device)
    if place.rank:
        return _ended(fit, place, lambda *losses: None)
    logger, handler = logging.getLogger("simfer"), _Forward(connection)
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        return _ended(fit, place, lambda *losses: put(connection, ("epoch", losses)))
    finally:
        logger.removeHandler(handler)


def _ended(fit: Fit, place: Place, on_epoch: EpochReport) -> Fitted:
    """Fit, and part from the others."""
    try:
        return fit(on_epoch, place)
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()


def _loaded(files: Sequence[Path], sent: bytes) -> Fit:
    try:
        for file in files:
            registry.load_file(file)
        fit: Fit = pickle.loads(sent)
    except Exception as error:
        raise ConfigError(
            f"another process cannot load the training ({type(error).__name__}: {error}): define your classes in a module, not in "
            "a notebook or script, or use `devices: 1`"
        ) from error
    return fit


class _Forward(logging.Handler):
    def __init__(self, connection: Connection) -> None:
        super().__init__(logging.INFO)
        self._connection = connection

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        put(self._connection, ("log", record))


def _sendable(error: BaseException) -> BaseException:
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return TrainingError(f"{type(error).__name__}: {error}")
    return error


def _leave_with_parent() -> None:
    sys.stdin.read()
    os._exit(1)


def main() -> None:
    """Be one that `team` starts."""
    told = json.loads(sys.stdin.readline())
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    signal.signal(signal.SIGUSR1, lambda *_: ask_to_stop())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to all, and is the parent's to deal with
    torch.set_num_threads(max(len(os.sched_getaffinity(0)) // told["beside"], 1))
    with Client(tuple(told["address"]), authkey=bytes.fromhex(told["key"])) as connection:
        put(connection, hello(told["rank"]))
        work(connection, told["rank"])
