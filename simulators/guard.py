"""Run what may crash, hang or be killed in a child process, one item after another, and say what became of each.

The child is a fork: it has the simulator as it is and sends results through a pipe. When it dies or overruns, only the
item it was at is lost; a new child goes on with the next.
"""

from __future__ import annotations

import ctypes
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
from .process import Waiter, has_ended, kill_session
from .scratch import ledger, write_in

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a result, or why there is none.

    Attributes:
        item: The item.
        result: What the task returned; None when it did not.
        reason: Why not.
        timed_out: Whether its time was up.
        crashed: Whether it took its process with it.
    """

    item: Item
    result: Result | None
    reason: str = ""
    timed_out: bool = False
    crashed: bool = False


def attempt(task: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    """Run one item here; what it raises becomes the reason, also when it is a wish to leave Python.

    Raises:
        ContractError: Passed on: no other item would fare better.
    """
    try:
        return Outcome(item, task(item))
    except ContractError:
        raise
    except TimeoutError as error:
        return Outcome(item, None, _said(error), timed_out=True)
    except (Exception, SystemExit) as error:
        return Outcome(item, None, _said(error))


def guarded(
    task: Callable[[Item], Result], items: Sequence[Item], seconds: float | None
) -> Iterator[Outcome[Item, Result]]:
    """Run items in a child process, in order. Iterate in one thread: the child dies with it.

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
    with here, there, ledger() as made:
        child = context.Process(target=_serve, args=(task, items, there, os.getpid(), made))
        child.start()
        there.close()
        lives = True
        try:
            for item in items:
                outcome: Outcome[Item, Result]
                outcome, lives = _receive(here, child, item, seconds)
                yield outcome
                if not lives:
                    return
        finally:
            if lives:
                _kill(child)


def _receive(pipe: Connection, child: Any, item: Item, seconds: float | None) -> tuple[Outcome[Item, Result], bool]:
    """What became of ``item``, and whether the child lives on; it is killed where it does not."""
    if not _wait(pipe, child.pid, seconds):
        _kill(child)
        return Outcome(item, None, f"no result within {seconds:g} s", timed_out=True), False
    try:
        answer = pipe.recv() if pipe.poll() else None
    except (EOFError, OSError):  # it died before, or in the middle of, sending
        answer = None
    if answer is None:
        _kill(child)
        return Outcome(item, None, _death(child.exitcode), crashed=True), False
    if isinstance(answer, ContractError):
        raise answer
    result, reason, timed_out = answer
    return Outcome(item, result, reason, timed_out), True


def _wait(pipe: Connection, pid: int, seconds: float | None) -> bool:
    """Wait for an answer or for the child's end; False when time was up.

    The end of the pipe would not do: whatever the simulator forked holds it open.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    with Waiter(pid, [pipe.fileno()]) as wait:
        while not pipe.poll() and not has_ended(pid):
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait(left)
    return True


def _serve(task: Callable[[Item], Result], items: list[Item], pipe: Connection, parent: int, made: str) -> None:
    os.setsid()  # so that what the simulator started dies with it
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    write_in(made)
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
    """Die when the parent does: until then this process holds what it inherited, such as locks on files."""
    if _LIBC is None or _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) != 0:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    if os.getppid() != parent:  # it died before
        os._exit(1)


def _watch(parent: int) -> None:
    """Needs the interpreter's lock, so that a child that is stuck outside of Python outlives its parent."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os.killpg(0, signal.SIGKILL)


def _kill(child: Any) -> None:
    """Kill the child, if it lives, and all that is left of its session; once, for then its number may be another's."""
    kill_session(child.pid)
    child.join()


def _death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = " (out of memory?)" if name == "SIGKILL" else ""
        return f"the simulator's process was killed by {name}{hint}"
    return f"the simulator's process ended with exit code {exitcode}"


def _said(error: BaseException) -> str:
    return str(error) if isinstance(error, TimeoutError) and str(error) else f"{type(error).__name__}: {error}"
