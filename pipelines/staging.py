"""Read simulations from the disk of the node (``local.stage_to``): a shared file system is slow, and slow for all.

The copy is made file by file, what is there already being left, and removed by the last process of the node that reads it.
"""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..data.errors import ConfigError
from ..data.files import fingerprint, remove

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
    place.mkdir(exist_ok=True)
    with (place / "lock").open("w") as lock:
        copied = _taken(lock.fileno()) and _copy(store, place / store.name)
        fcntl.flock(lock, fcntl.LOCK_SH)  # waits for another process that copies
        copied = copied or not _missing(store, place / store.name)
        try:
            yield place / store.name if copied else store
        finally:
            if _taken(lock.fileno()):
                remove(place)


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
    for file, target in todo:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.partial")
        shutil.copy2(file, partial)
        partial.replace(target)
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
