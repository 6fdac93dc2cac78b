"""Parts of a long computation, kept in a folder while the rest is made, so that it goes on where it was stopped."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .files import write_arrays
from .stopping import stop_asked, stop_if_asked
from .variables import Arrays

_EVERY = 10.0  # seconds between calls that are written


def kept(file: Path | None, make: Callable[[], Arrays]) -> Arrays:
    """Arrays that were kept before, or else made and kept now.

    Args:
        file: Where; None keeps nothing.
        make: Makes them.

    Raises:
        KeyboardInterrupt: They are kept, and this process is asked to stop.
    """
    if file is None:
        return make()
    if not file.is_file():
        write_arrays(file, make())
        stop_if_asked()
    with np.load(file) as arrays:
        return dict(arrays)


class Replayed:
    """A costly function whose values are kept in the order of its calls: who makes the same calls again has them at once.

    So a computation that depends on nothing but them and its seed goes on where it was stopped, whatever it consists of.

    Args:
        file: Where they are kept.
        function: Of an array and whatever else, with an array as its value.
    """

    def __init__(self, file: Path, function: Callable[..., np.ndarray]) -> None:
        self._file, self._function = file, function
        self._calls, self._wrote = 0, time.monotonic()
        self._known: Arrays = {}
        if file.is_file():
            with np.load(file) as arrays:
                self._known = dict(arrays)

    def __call__(self, argument: np.ndarray, *others: object) -> np.ndarray:
        """The value, kept or found now.

        Raises:
            KeyboardInterrupt: It is kept, and this process is asked to stop.
        """
        name = f"{self._calls}-{hashlib.sha256(np.ascontiguousarray(argument).tobytes()).hexdigest()[:16]}"
        self._calls += 1
        if name not in self._known:
            self._known[name] = np.asarray(self._function(argument, *others))
            if stop_asked() or time.monotonic() - self._wrote > _EVERY:
                write_arrays(self._file, self._known)
                self._wrote = time.monotonic()
            stop_if_asked()
        return self._known[name]
