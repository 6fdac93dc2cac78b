"""What a job hears of Slurm while it works.

USR1 is the warning that its time is nearly up: it is asked to stop where all is saved (`data/stopping.py`), and stopped when
it has not done so within its grace. TERM, which comes with `scancel` and preemption, stops it at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ...data.errors import ExecutorError
from ...data.stopping import ask_to_stop, go_on, late, leave_now

_HEARD = (signal.SIGUSR1, signal.SIGTERM, signal.SIGALRM)


@contextmanager
def heard(grace: float) -> Iterator[None]:
    """Turn signals into a wish to stop, and into KeyboardInterrupt.

    Args:
        grace: Seconds between the two.
    """

    def warn(*_: object) -> None:
        ask_to_stop()
        signal.setitimer(signal.ITIMER_REAL, grace)

    def stop(*_: object) -> None:
        for one in _HEARD:
            signal.signal(one, signal.SIG_IGN)  # once: what is written meanwhile is not to be disturbed
        ask_to_stop()
        leave_now()
        raise KeyboardInterrupt

    before = {one: signal.getsignal(one) for one in _HEARD}
    for one in _HEARD:
        signal.signal(one, warn if one == signal.SIGUSR1 else stop)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        for one, handler in before.items():
            signal.signal(one, handler)
        go_on()


@contextmanager
def getting_on(stage: str, done: Callable[[], float]) -> Iterator[None]:
    """End a job for good that was started again and again, and whose time is up once more before it has saved anything.

    Args:
        stage: Whose time it is.
        done: Grows when something is saved.

    Raises:
        ExecutorError: In place of KeyboardInterrupt, after which it would be requeued.
    """
    before = done()
    try:
        yield
    except KeyboardInterrupt:
        starts = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        if late() and starts >= int(os.environ.get("SIMFER_RESTARTS", "3")) and done() <= before:
            raise ExecutorError(
                f"started {starts + 1} times, and its time was up before a part of its work was saved: give "
                f"`local.slurm.{stage}.time` more, or `local.slurm.warning`, the seconds there are to save in"
            ) from None
        raise
