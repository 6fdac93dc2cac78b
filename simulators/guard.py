"""Run what may crash, hang or be killed in a child process, one item after another, and say what became of each.

The child is a fork: it has the simulator as it is and sends results through a pipe. When it dies or overruns, only the
item it was at is lost; a new child goes on with the next.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Generic, TypeVar

from ..data.errors import ContractError

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or why there is none."""

    item: Item
    result: Result | None
    reason: str = ""
    timed_out: bool = False


def attempt(task: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    """Run one item here; what it raises becomes the reason.

    Raises:
        ContractError: Passed on: no other item would fare better.
    """
    try:
        return Outcome(item, task(item))
    except ContractError:
        raise
    except TimeoutError as error:
        return Outcome(item, None, _said(error), timed_out=True)
    except Exception as error:
        return Outcome(item, None, _said(error))


def guarded(
    task: Callable[[Item], Result], items: Sequence[Item], seconds: float | None
) -> Iterator[Outcome[Item, Result]]:
    """Run items in a child process, in order.

    Args:
        task: Its result must be picklable.
        items: What to run it on.
        seconds: Time limit of each item; none when None.

    Raises:
        ContractError: The task raised it.
    """
    left = list(items)
    while left:
        for outcome in _one_child(task, left, seconds):
            left = left[1:]
            yield outcome


def _one_child(
    task: Callable[[Item], Result], items: list[Item], seconds: float | None
) -> Iterator[Outcome[Item, Result]]:
    """Outcomes until the child has done everything, or has died with the last one yielded."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    child = context.Process(target=_serve, args=(task, items, there, os.getpid()))
    child.start()
    there.close()
    try:
        for item in items:
            outcome: Outcome[Item, Result]
            outcome, lives = _receive(here, child, item, seconds)
            yield outcome
            if not lives:
                return
    finally:
        _kill(child)
        here.close()


def _receive(pipe: Connection, child: Any, item: Item, seconds: float | None) -> tuple[Outcome[Item, Result], bool]:
    """What became of ``item``, and whether the child lives on."""
    try:
        if not pipe.poll(seconds):
            return Outcome(item, None, f"no result within {seconds:g} s", timed_out=True), False
        answer = pipe.recv()
    except EOFError:
        child.join()
        return Outcome(item, None, _death(child.exitcode)), False
    if isinstance(answer, ContractError):
        raise answer
    result, reason, timed_out = answer
    return Outcome(item, result, reason, timed_out), True


def _serve(task: Callable[[Item], Result], items: list[Item], pipe: Connection, parent: int) -> None:
    os.setsid()  # so that what the simulator started dies with it
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)  # a pool of threads does not survive a fork
    for item in items:
        try:
            outcome = attempt(task, item)
            pipe.send((outcome.result, outcome.reason, outcome.timed_out))
        except ContractError as error:
            pipe.send(ContractError(str(error)))
    pipe.close()
    os._exit(0)  # without the parent's exit handlers


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _kill(child: Any) -> None:
    if child.is_alive():
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:  # not yet a leader of its group
            child.kill()
    child.join()


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the simulator's process was killed by {name}{hint}"
    return f"the simulator's process ended with exit code {exitcode}"


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, TimeoutError) and str(error) else f"{type(error).__name__}: {error}"
