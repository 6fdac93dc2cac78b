"""A wish to stop, told by whoever hears a signal, and asked for where stopping loses nothing.

A batch job is warned before its time is up. An exception raised there and then would lose the block, step or batch that is
being computed, and may come in the middle of an update; so the wish is noted, and loops ask for it once their work is saved.
"""

from __future__ import annotations

import threading

_wish = threading.Event()


def ask_to_stop() -> None:
    """Let the next loop that asks end this process."""
    _wish.set()


def go_on() -> None:
    """Forget the wish."""
    _wish.clear()


def stop_asked() -> bool:
    """Whether this process is to stop as soon as it has saved what it is at."""
    return _wish.is_set()


def stop_if_asked() -> None:
    """Raise KeyboardInterrupt where this process is to stop; to be called where all is saved."""
    if _wish.is_set():
        raise KeyboardInterrupt
