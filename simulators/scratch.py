"""Scratch directories: each call has one to itself, empty; making them anew would cost more than many programs do.

A process that may be killed cannot tidy up. Its parent gives it a *ledger*, a folder of links to the directories it
makes, and removes them when it has ended.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing.util import Finalize
from pathlib import Path
from typing import Any

_ledger: str | None = None  # of this process


@contextmanager
def ledger() -> Iterator[str]:
    """A ledger for one child; when this ends, so must have the child, and the directories it made are removed."""
    with tempfile.TemporaryDirectory(prefix="simfer-", ignore_cleanup_errors=True) as folder:
        yield folder
        for link in os.scandir(folder):
            shutil.rmtree(os.readlink(link.path), ignore_errors=True)


def write_in(ledger: str) -> None:
    """Have all directories that this process makes from now on in a ledger."""
    global _ledger
    _ledger = ledger


class Scratch:
    """Hands out empty directories; those that come back are emptied and used again, by this process only.

    Args:
        root: Where they are made; the system's temporary directory when None.
    """

    def __init__(self, root: Path | None) -> None:
        self._root = root
        self._own()

    def _own(self) -> None:
        self._free: list[str] = []
        self._owner = os.getpid()
        Finalize(self, _remove, (self._free, self._owner), exitpriority=1)  # worker processes run no other kind

    def take(self) -> str:
        """An empty directory that nobody else has."""
        if os.getpid() != self._owner:  # forked: the free ones are the parent's
            self._own()
        while self._free:
            path = self._free.pop()
            if os.path.isdir(path):
                return path
        path = os.path.abspath(tempfile.mkdtemp(prefix="simfer-", dir=self._root))
        if _ledger is not None:
            os.symlink(path, os.path.join(_ledger, os.path.basename(path)))
        return path

    def keep(self, path: str) -> None:
        """Leave a directory, and what is in it, to the user."""
        if _ledger is not None:
            with suppress(OSError):
                os.unlink(os.path.join(_ledger, os.path.basename(path)))

    def give_back(self, path: str) -> None:
        """Empty a directory for the next; one that cannot be emptied is given up."""
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        shutil.rmtree(entry.path)
                    else:
                        os.unlink(entry.path)
        except OSError:
            shutil.rmtree(path, ignore_errors=True)
        else:
            self._free.append(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return Scratch, (self._root,)


def _remove(free: list[str], owner: int) -> None:
    for path in free if os.getpid() == owner else ():
        shutil.rmtree(path, ignore_errors=True)
