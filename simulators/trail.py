"""What a campaign notes while it works, so that a crash can be told from a pause, and two fillers from one.

A block that was begun and not finished is suspect: its simulator may have taken the process with it. It is run again in
a child process; if rows of it crash that too, the campaign is marked fragile and everything goes by child processes.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..data.errors import StoreError
from ..data.layout import Block
from ..data.store import SimulationStore

NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL, errno.ENOSYS)  # what file systems say that have none


class Trail:
    """Notes of one shard, in ``.campaign/`` of its store."""

    def __init__(self, store: Path, shard: int) -> None:
        self._folder = store / ".campaign"
        self._note = self._folder / f"shard-{shard}"
        self._suspect = ""
        with suppress(FileNotFoundError):
            self._suspect = self._note.read_text(encoding="utf-8").strip()
        self._open: int | None = None

    @property
    def fragile(self) -> bool:
        return (self._folder / "fragile").exists()

    def suspects(self, block: Block) -> bool:
        """Whether this block was begun before and did not end."""
        return self._suspect == str(block.key)

    def begin(self, block: Block) -> None:
        while self._open is None:
            self._folder.mkdir(exist_ok=True)
            with suppress(FileNotFoundError):  # another filler has just removed the empty folder
                self._open = os.open(self._note, os.O_WRONLY | os.O_CREAT)
        os.pwrite(self._open, f"{block.key!s:40}".encode(), 0)  # in place: to open and truncate costs milliseconds

    def mark_fragile(self) -> None:
        (self._folder / "fragile").touch()

    def __enter__(self) -> Trail:  # noqa: PYI034 -- the tests' type checks know no Self here
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        if self._open is not None:
            os.close(self._open)

    def end(self) -> None:
        """The shard is written: nothing in it is suspect any more."""
        self._note.unlink(missing_ok=True)
        with suppress(OSError):  # another shard's note is still there
            self._folder.rmdir()


def left_over(store: Path) -> int:
    """How many blocks were begun and did not end, by a process that is gone."""
    return len(list((store / ".campaign").glob("shard-*")))


@contextmanager
def filling(store: SimulationStore, *, alone: bool = False, sweep: bool = True) -> Iterator[None]:
    """Hold the store while it is filled; sweep what killed writers left if nobody else holds it.

    Any number of processes may fill one store: they write the same bytes under temporary names. Where the file system
    has no locks, nothing is held and nothing swept.

    Args:
        store: To be held.
        alone: Whether nobody else may hold it meanwhile, because its shape changes.
        sweep: Whether what killed writers left is removed.

    Raises:
        StoreError: ``alone``, and another process holds it.
    """
    descriptor = os.open(store.path, os.O_RDONLY)
    try:
        locks, own = _try_lock(descriptor)
        if own:
            if sweep:
                store.sweep()
        elif locks and alone:
            raise StoreError(f"another process is filling the store {store.path}: wait for it, or stop it")
        if locks and not alone:
            fcntl.flock(descriptor, fcntl.LOCK_SH)  # waits for whoever holds it alone, which is never for long
        yield
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int) -> tuple[bool, bool]:
    """Whether there are locks, and whether it is held alone now."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True, False
    except OSError as error:
        if error.errno in NO_LOCKS:
            return False, False
        raise
    return True, True
