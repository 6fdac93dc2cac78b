"""Run one program: no shell, bounded memory, a time limit for it and for all its children."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from ..data.errors import ProgramError

_TAIL = 4096  # bytes of stderr kept
_CHUNK = 1 << 16  # what a pipe holds
_POLL = 0.01  # seconds, where the system cannot wait for a process and its pipes at once


@dataclass(frozen=True, slots=True)
class Ended:
    """How a program ended.

    Attributes:
        code: Its exit code; negative for the signal that killed it; None when its time was up.
        stdout: What it printed, if that was asked for.
        stderr: The last few kB of its complaints.
    """

    code: int | None
    stdout: bytes
    stderr: str


class _Kept:
    """What is kept of a stream: all up to a limit, or only its end."""

    def __init__(self, limit: int, *, end: bool) -> None:
        self._limit, self._end = limit, end
        self.data = bytearray()

    def add(self, chunk: bytes) -> None:
        self.data += chunk
        if len(self.data) > self._limit and not self._end:
            raise ProgramError(f"the program printed more than {self._limit:,} bytes: write large outputs to a file")
        if len(self.data) > 2 * self._limit:
            del self.data[: -self._limit]


def run_program(
    words: Sequence[str],
    *,
    folder: Path | str,
    environment: Mapping[str, str] | None = None,
    timeout: float | None = None,
    stdout_limit: int = 0,
) -> Ended:
    """Run a program in a process group of its own; whatever of it is left when it ends is killed.

    Both streams are drained as they come and only the end of stderr is kept, so that a program that prints without
    end costs neither memory nor disk.

    Args:
        words: Executable and arguments.
        folder: Its working directory.
        environment: All of its environment; that of this process when None.
        timeout: Seconds.
        stdout_limit: Most bytes of stdout; 0 discards it.

    Raises:
        ProgramError: It cannot be started, or printed more than the limit.
    """
    out, err = _Kept(stdout_limit, end=False), _Kept(_TAIL, end=True)
    process = _start(words, folder, environment, subprocess.PIPE if stdout_limit else subprocess.DEVNULL)
    try:
        kept = {stream: sink for stream, sink in ((process.stdout, out), (process.stderr, err)) if stream is not None}
        in_time = _drain(process.pid, kept, None if timeout is None else time.monotonic() + timeout)
    finally:
        _kill_group(process.pid)  # before it is reaped: until then its number cannot be another's
        code = process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
    text = err.data[-_TAIL:].decode(errors="replace")
    return Ended(code if in_time else None, bytes(out.data), text)


def _start(
    words: Sequence[str], folder: Path | str, environment: Mapping[str, str] | None, stdout: int
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            bufsize=0,
            close_fds=False,  # Python's own are not inherited anyway, and closing them takes a tenth of a millisecond
            process_group=0,
        )
    except OSError as error:
        raise ProgramError(f"`{words[0]}` cannot be started: {error.strerror or error}") from error


def _drain(pid: int, kept: dict[IO[bytes], _Kept], deadline: float | None) -> bool:
    """Read until the program itself has ended, whoever may still hold its pipes; False when its time was up."""
    with selectors.DefaultSelector() as selector, _ExitSignal(pid) as ended:
        for stream in kept:
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, selectors.EVENT_READ)
        if ended.descriptor is not None:
            selector.register(ended.descriptor, selectors.EVENT_READ)
        while not ended():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            for key, _ in selector.select(ended.patience(left)):
                if key.fileobj in kept and not _read(key.fileobj, kept[key.fileobj]):  # type: ignore[index, arg-type]
                    selector.unregister(key.fileobj)
    _kill_group(pid)
    for stream, sink in kept.items():
        for _ in range(16):  # what the pipe still holds; one who fled the group may go on writing
            if not _read(stream, sink):
                break
    return True


def _read(stream: IO[bytes], sink: _Kept) -> bool:
    """Whether there was anything, so that there may be more."""
    try:
        chunk = os.read(stream.fileno(), _CHUNK)
    except BlockingIOError:
        return False
    sink.add(chunk)
    return bool(chunk)


class _ExitSignal(AbstractContextManager["_ExitSignal"]):
    """Whether a process has ended, without reaping it; a descriptor to wait on where the system has one."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self.descriptor = os.pidfd_open(pid) if hasattr(os, "pidfd_open") else None

    def __call__(self) -> bool:
        return os.waitid(os.P_PID, self._pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None

    def patience(self, left: float | None) -> float | None:
        if self.descriptor is not None:
            return left
        return _POLL if left is None else min(_POLL, left)

    def __exit__(self, *error: object) -> None:
        if self.descriptor is not None:
            os.close(self.descriptor)


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group of zombies
        os.killpg(group, signal.SIGKILL)
