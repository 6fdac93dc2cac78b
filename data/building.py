"""Stores that are made of rows which are there already, a shard at a time: imported or merged."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from .errors import StoreError
from .layout import Layout
from .records import Schema
from .store import SimulationStore

_SHARD_BYTES = 32 * 2**20  # what is copied is held in memory some three times: as read, as encoded, as compressed


def bounded_layout(rows: int, schema: Schema) -> Layout:
    """Blocks as `Layout.choose` cuts them, in shards of 32 MiB: one writer needs no more of them than memory demands."""
    layout = Layout.choose(rows, schema.observables)
    row_bytes = sum(v.size * np.dtype(v.dtype).itemsize for _, v, _ in schema.arrays())
    block = max(1, min(layout.block, _SHARD_BYTES // row_bytes))
    blocks = max(1, min(-(-rows // block), _SHARD_BYTES // (row_bytes * block)))
    return Layout(rows, block, blocks * block, (rows,))


@contextmanager
def new_store(path: Path, layout: Layout, schema: Schema, attributes: dict[str, Any]) -> Iterator[SimulationStore]:
    """An empty store to be filled, which becomes ``path`` when the block ends well, and is gone when it does not.

    What a killed process left of the same store is removed first.

    Raises:
        StoreError: Something is at ``path`` already.
    """
    if path.exists():
        raise _taken(path)
    _clear(path)
    temporary, descriptor = _held_folder(path)
    try:
        yield SimulationStore.create_in(temporary, layout, schema, attributes)
        _rename(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    finally:
        os.close(descriptor)


def _held_folder(path: Path) -> tuple[Path, int]:
    """An empty temporary folder, and the descriptor that holds it until it is closed.

    Another process may find the folder before it is held, and clear it away; then there is another one.
    """
    while True:
        temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.partial")
        temporary.mkdir(parents=True)
        with suppress(FileNotFoundError):
            descriptor = os.open(temporary, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_SH)
            if temporary.exists():
                return temporary, descriptor
            os.close(descriptor)


def _clear(path: Path) -> None:
    """Remove what nobody holds any more."""
    for orphan in path.parent.glob(f".{path.name}.*.partial"):
        try:
            descriptor = os.open(orphan, os.O_RDONLY)
        except FileNotFoundError:  # another process was faster
            continue
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(orphan, ignore_errors=True)
        os.close(descriptor)


def _rename(temporary: Path, path: Path) -> None:
    try:
        temporary.rename(path)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
            raise _taken(path) from error
        raise


def _taken(path: Path) -> StoreError:
    return StoreError(f"`path` of a new store must be free; {path} exists: remove it or choose another")
