"""Run one program: no shell, bounded memory, a time limit for it and for all its children."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

from ..data.errors import ProgramError

_TAIL = 4096  # bytes of stderr kept
_CHUNK = 1 << 16  # what a pipe holds
_MOMENT = 0.01  # seconds, where the system cannot wait for a process and its pipes at once


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
    with _Pipe(_TAIL, end=True) as err, _Pipe(stdout_limit) if stdout_limit else _NOTHING as out:
        pipes = [pipe for pipe in (err, out) if pipe is not None]
        process = _start(words, folder, environment, err.inlet, subprocess.DEVNULL if out is None else out.inlet)
        try:
            in_time = _drain(process.pid, pipes, None if timeout is None else time.monotonic() + timeout)
        finally:
            _kill_group(process.pid)  # before it is reaped: until then its number cannot be another's
            code = process.wait()
        text = err.data[-_TAIL:].decode(errors="replace")
        return Ended(code if in_time else None, b"" if out is None else bytes(out.data), text)


class _Pipe(AbstractContextManager["_Pipe"]):
    """A pipe and what is kept of what comes through it: all up to a limit, or the end.

    This process keeps the inlet too, so that the outlet tells only of data and never of its end: one waking less.
    """

    def __init__(self, limit: int, *, end: bool = False) -> None:
        self._limit, self._end = limit, end
        self.data = bytearray()
        self.outlet, self.inlet = os.pipe()
        os.set_blocking(self.outlet, False)

    def read(self) -> bool:
        """Take what is there; whether there was anything, so that there may be more."""
        try:
            chunk = os.read(self.outlet, _CHUNK)
        except BlockingIOError:
            return False
        self.data += chunk
        if len(self.data) > self._limit and not self._end:
            raise ProgramError(f"the program printed more than {self._limit:,} bytes: write large outputs to a file")
        if len(self.data) > 2 * self._limit:
            del self.data[: -self._limit]
        return True

    def __exit__(self, *error: object) -> None:
        os.close(self.outlet)
        os.close(self.inlet)


_NOTHING: nullcontext[None] = nullcontext()


def _start(
    words: Sequence[str], folder: Path | str, environment: Mapping[str, str] | None, stderr: int, stdout: int
) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            words,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            close_fds=False,  # Python's own are not inherited anyway, and closing them takes a tenth of a millisecond
            process_group=0,
        )
    except OSError as error:
        raise ProgramError(f"`{words[0]}` cannot be started: {error.strerror or error}") from error


def _drain(pid: int, pipes: Sequence[_Pipe], deadline: float | None) -> bool:
    """Read until the program itself has ended, whoever may still hold its pipes; False when its time was up."""
    with Waiter(pid, [pipe.outlet for pipe in pipes]) as wait:
        ended = False
        while not ended:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            wait(left)
            for pipe in pipes:
                pipe.read()
            ended = has_ended(pid)
    for pipe in pipes:
        for _ in range(16):  # what the pipe still holds; one who fled the group may go on writing
            if not pipe.read():
                break
    return True


class Waiter(AbstractContextManager["Waiter"]):
    """Waits for the end of a child process or for something to read; where the system cannot, for a moment.

    Args:
        pid: Of the child, which has not been reaped.
        descriptors: What to read from.
    """

    def __init__(self, pid: int, descriptors: Sequence[int]) -> None:
        self._process = _watched(pid)
        self._poll = select.poll()
        for descriptor in [*descriptors, *(() if self._process is None else (self._process,))]:
            self._poll.register(descriptor, select.POLLIN)

    def __call__(self, left: float | None) -> None:
        if self._process is None:
            left = _MOMENT if left is None else min(_MOMENT, left)
        self._poll.poll(None if left is None else 1000 * left)

    def __exit__(self, *error: object) -> None:
        if self._process is not None:
            os.close(self._process)


def _watched(pid: int) -> int | None:
    """A descriptor that tells of the end of a process; None where there is none: macOS, old kernels, sandboxes."""
    with suppress(AttributeError, OSError):
        return os.pidfd_open(pid)
    return None


def has_ended(pid: int) -> bool:
    """Whether a child has ended, without reaping it."""
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None
    except ChildProcessError:  # reaped by another thread
        return True


def kill_session(leader: int) -> None:
    """Kill a child that may lead a session, and where there is /proc also the groups that left its own."""
    with suppress(ProcessLookupError):
        os.kill(leader, signal.SIGKILL)
    _kill_group(leader)
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():
        with suppress(ValueError, OSError):
            if os.getsid(int(name)) == leader:
                os.kill(int(name), signal.SIGKILL)


def _kill_group(group: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS says so of a group of zombies
        os.killpg(group, signal.SIGKILL)
