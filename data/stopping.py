"""A wish to stop, told by whoever hears a signal, and asked for where stopping loses nothing.

A batch job is warned before its time is up. An exception raised there and then would lose the block, step or batch that is
being computed, and may come in the middle of an update; so the wish is noted, and loops ask for it once their work is saved.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol, runtime_checkable


@runtime_checkable
class Wish(Protocol):
    """As `threading.Event` has it, and `multiprocessing.Event`, which several processes share."""

    def is_set(self) -> bool: ...

    def set(self) -> None: ...

    def clear(self) -> None: ...


_wish: Wish = threading.Event()
_late = threading.Event()
_others: list[Callable[[], None]] = []


def ask_to_stop() -> None:
    """Let the next loop that asks end this process, and those that are told with it."""
    _wish.set()
    for tell in _others:
        tell()


@contextmanager
def passing_on(tell: Callable[[], None]) -> Iterator[None]:
    """Call ``tell`` too when this process is asked to stop meanwhile; at once if it has been."""
    if _wish.is_set():
        tell()
    _others.append(tell)
    try:
        yield
    finally:
        _others.remove(tell)


def share(wish: Wish) -> None:
    """Let another process's wish be that of this one."""
    global _wish
    _wish = wish


def go_on() -> None:
    """Forget the wish."""
    _wish.clear()
    _late.clear()


def leave_now() -> None:
    """Let nobody wait any longer for what runs: the time that there was to save it in is over."""
    _late.set()


def late() -> bool:
    """Whether this process must not wait for others any more."""
    return _late.is_set()


def stop_asked() -> bool:
    """Whether this process is to stop as soon as it has saved what it is at."""
    return _wish.is_set()


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt where this process is to stop; to be called where all is saved."""
    if _wish.is_set():
        raise KeyboardInterrupt
