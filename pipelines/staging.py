"""Read simulations from the disk of the node (``local.stage_to``): a shared file system is slow, and slow for all.

The copy is made file by file, what is there already being left, and removed by the last process of the node that reads it.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.errors import ConfigError
from ..data.files import fingerprint, remove
from ..data.stopping import stop_if_asked

logger = logging.getLogger("simfer.run")


@contextmanager
def staged(store: Path, folder: str | None) -> Iterator[Path]:
    """Where to read a store from: a copy below ``folder``, or the store itself where that is None or has no room.

    Raises:
        ConfigError: ``folder`` names a variable that is not set, or cannot be made.
    """
    if folder is None:
        yield store
        return
    place = _folder(folder) / f"simfer-{fingerprint(str(store.absolute()))[:12]}"
    with _held(place) as (lock, alone):
        try:
            copied = _copy(store, place / store.name) if alone else not _missing(store, place / store.name)
            fcntl.flock(lock, fcntl.LOCK_SH)  # lets others in
            yield place / store.name if copied else store
        finally:
            if _taken(lock):
                remove(place)


@contextmanager
def _held(place: Path) -> Iterator[tuple[int, bool]]:
    """The lock of a folder, and whether nobody else has it; waits for another process that copies."""
    lock = None
    while lock is None:
        place.mkdir(exist_ok=True)
        lock = _locked(place / "lock")
    try:
        yield lock
    finally:
        os.close(lock[0])


def _locked(file: Path) -> tuple[int, bool] | None:
    """An open lock, and whether nobody else has it; None where its folder was removed meanwhile."""
    try:
        lock = os.open(file, os.O_RDWR | os.O_CREAT)
    except FileNotFoundError:
        return None
    alone = _taken(lock)
    if not alone:
        fcntl.flock(lock, fcntl.LOCK_SH)
    if file.exists() and os.path.samestat(os.fstat(lock), file.stat()):
        return lock, alone
    os.close(lock)
    return None


def _folder(given: str) -> Path:
    path = Path(os.path.expandvars(given))
    if "$" in str(path):
        raise ConfigError(f"`local.stage_to` must name a folder of the node; {given} is not set there")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"`local.stage_to` must be a folder that can be written: {path}: {error.strerror}") from error
    return path


def _copy(store: Path, copy: Path) -> bool:
    """Whether there was room for it."""
    todo = _missing(store, copy)
    size, free = sum(file.stat().st_size for file, _ in todo), shutil.disk_usage(copy.parent).free
    if size > free:
        logger.warning(
            "`stage_to`: %s has room for %.3g GB, and the simulations take %.3g GB: they are read from where they are",
            copy.parent,
            free / 1e9,
            size / 1e9,
        )
        return False
    try:
        for file, target in todo:
            stop_if_asked()
            target.parent.mkdir(parents=True, exist_ok=True)
            partial = target.with_name(f".{target.name}.partial")
            shutil.copy2(file, partial)
            partial.replace(target)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        logger.warning("`stage_to`: %s is full by now: the simulations are read from where they are", copy.parent)
        remove(copy)
        return False
    return True


def _missing(store: Path, copy: Path) -> list[tuple[Path, Path]]:
    """Files, and where they are to be copied to."""
    files = [file for file in store.rglob("*") if file.is_file() and not file.name.endswith(".partial")]
    pairs = [(file, copy / file.relative_to(store)) for file in files]
    return [(file, target) for file, target in pairs if not _same(file, target)]


def _same(file: Path, target: Path) -> bool:
    try:
        theirs = target.stat()
    except FileNotFoundError:
        return False
    ours = file.stat()
    return (ours.st_size, ours.st_mtime_ns) == (theirs.st_size, theirs.st_mtime_ns)


def _taken(lock: int) -> bool:
    """Whether no other process has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
