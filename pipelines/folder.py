"""The run folder: markers, fingerprints, and what is set aside when a configuration changes.

A stage that begins writes ``.stages/NAME.started.json``; one that is finished writes ``.stages/NAME.done.json``, last, by
rename. Both hold the fingerprint of the stage's inputs. Simulations and models are never deleted: when their inputs
change they move to ``superseded/``, and come back by themselves when the inputs do.
"""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ..data.errors import RunFolderError
from ..data.files import fingerprint, remove, write_json
from ..simulators.trail import NO_LOCKS

STORE = "simulations.zarr"
ROUNDS = "rounds"


@dataclass(frozen=True, slots=True)
class Marker:
    """What a stage was made from, and the numbers it ended with."""

    fingerprint: str
    inputs: dict[str, Any]
    numbers: dict[str, Any]
    seconds: float


class RunFolder:
    """Paths and markers of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stages = path / ".stages"

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    @contextmanager
    def in_use(self, wait: float = 0.0) -> Iterator[None]:
        """Hold the folder for one process; the lock goes with the process, however it ends.

        Where the file system has no locks, nothing is held.

        Args:
            wait: Seconds to wait for another process, such as one on a node that is lost to the scheduler but still runs.

        Raises:
            RunFolderError: Another process holds it.
        """
        self._stages.mkdir(parents=True, exist_ok=True)
        with (self._stages / "lock").open("a+") as lock:
            deadline = time.monotonic() + wait
            while not _locked(lock):
                if time.monotonic() >= deadline:
                    lock.seek(0)
                    holder = lock.read().strip() or "unknown"
                    raise RunFolderError(
                        f"{self.path} is in use by process {holder}: wait for it, or give another `--workdir`"
                    )
                time.sleep(0.5)
            lock.truncate(0)
            lock.write(f"{os.getpid()} on {platform.node()}")
            lock.flush()
            for folder in (self.path, self._stages):
                for orphan in folder.glob(".*.partial"):
                    remove(orphan)
            yield

    def done(self, stage: str) -> Marker | None:
        """The marker of a finished stage."""
        return self._read(stage, "done")

    def started(self, stage: str) -> Marker | None:
        """The marker of a stage that was begun."""
        return self._read(stage, "started")

    def begin(self, stage: str, key: str, inputs: dict[str, Any]) -> None:
        write_json(
            self._marker(stage, "started"), {"fingerprint": key, "inputs": inputs, "numbers": {}, "seconds": 0.0}
        )
        self._marker(stage, "done").unlink(missing_ok=True)  # what it says is no longer so

    def finish(self, stage: str, key: str, inputs: dict[str, Any], numbers: dict[str, Any], seconds: float) -> None:
        done = {"fingerprint": key, "inputs": inputs, "numbers": numbers, "seconds": seconds}
        write_json(self._marker(stage, "done"), done)
        self._marker(stage, "started").unlink(missing_ok=True)

    def clear(self, stage: str, outputs: tuple[str, ...]) -> None:
        """Forget a stage and remove what it made; the marker goes first."""
        for kind in ("done", "started"):
            self._marker(stage, kind).unlink(missing_ok=True)
        for name in outputs:
            remove(self.path / name)

    def set_aside(self, stage: str, outputs: tuple[str, ...], key: str) -> Path:
        """Move a stage's outputs and markers to ``superseded/``; markers go last."""
        return self._move(stage, outputs, self.path, self._aside(stage, key))

    def bring_back(self, stage: str, outputs: tuple[str, ...], key: str) -> None:
        """Undo `set_aside` if these very inputs were set aside once."""
        if self.has_aside(stage, key):
            self._move(stage, outputs, self._aside(stage, key), self.path)
            remove(self._aside(stage, key))

    def has_aside(self, stage: str, key: str) -> bool:
        """Whether these very inputs were set aside once."""
        return self._aside(stage, key).is_dir()

    def retire(self, stage: str, outputs: tuple[str, ...], why: str) -> None:
        """Set a stage aside, with all that was set aside of it before, under names that nothing brings back."""
        marker = self.done(stage) or self.started(stage)
        if marker:
            self.set_aside(stage, outputs, marker.fingerprint)
        for aside in (self.path / "superseded").glob(f"{stage}-*"):
            if "-before-" not in aside.name:
                aside.rename(aside.with_name(f"{stage}-{why}-{aside.name.removeprefix(f'{stage}-')}"))

    def _move(self, stage: str, outputs: tuple[str, ...], source: Path, target: Path) -> Path:
        (target / ".stages").mkdir(parents=True, exist_ok=True)
        markers = tuple(f".stages/{stage}.{kind}.json" for kind in ("done", "started"))
        for name in (*outputs, *markers):
            if (source / name).exists():
                remove(target / name)
                (source / name).rename(target / name)
        return target

    def _aside(self, stage: str, key: str) -> Path:
        return self.path / "superseded" / f"{stage}-{key[:12]}"

    def _marker(self, stage: str, kind: str) -> Path:
        return self._stages / f"{stage}.{kind}.json"

    def _read(self, stage: str, kind: str) -> Marker | None:
        try:
            return Marker(**json.loads(self._marker(stage, kind).read_text(encoding="utf-8")))
        except (FileNotFoundError, json.JSONDecodeError, TypeError):
            return None


def _locked(lock: IO[str]) -> bool:
    """Whether the lock could be taken, or there are none here."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    return True


def key_of(inputs: dict[str, Any], upstream: list[str]) -> str:
    """The fingerprint of a stage: its own inputs and the fingerprints of what it reads."""
    return fingerprint({"inputs": inputs, "upstream": upstream})


def differences(old: Any, new: Any, path: str = "") -> list[str]:
    """What changed between two JSON values: ``train.flow.hidden: [64, 64] → [32, 32]``."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        missing = "nothing"
        return [
            line
            for key in keys
            for line in differences(old.get(key, missing), new.get(key, missing), f"{path}.{key}" if path else str(key))
        ]
    return [] if old == new else [f"{path}: {_short(old)} → {_short(new)}"]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
