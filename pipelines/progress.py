"""Progress: bars with rate and time left in a terminal, plain lines elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

logger = logging.getLogger("simfer.run")

_SECONDS_BETWEEN_LINES = 10.0


class Reporter:
    """Where a run speaks to its user; every line goes to the log of the stage too.

    Args:
        console: Prints; None is silent.
    """

    def __init__(self, console: Console | None) -> None:
        self.console = console

    def say(self, text: str, style: str = "") -> None:
        logger.info(text)
        self.show(text, style)

    def show(self, text: str, style: str = "") -> None:
        """Print without a line in the log."""
        if self.console is not None:
            self.console.print(text, style=style, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def bar(self, what: str, total: int, unit: str) -> Iterator[Meter]:
        """A meter of ``total`` steps; call it with (steps done since, a note)."""
        if self.console is None or not self.console.is_terminal or self.console.is_jupyter:
            yield Meter(self, what, total, unit)
            return
        columns = (
            TextColumn(what),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeRemainingColumn(),
        )
        with Progress(*columns, console=self.console, transient=True) as progress:
            yield Meter(self, what, total, unit, progress)


class Meter:
    """Counts steps, and shows them."""

    def __init__(self, reporter: Reporter, what: str, total: int, unit: str, progress: Progress | None = None) -> None:
        self.reporter, self.what, self.total, self.unit = reporter, what, total, unit
        self.done = 0
        self._skipped = 0
        self._epoch = self._before = 0
        self._started = self._spoken = time.monotonic()
        self._progress = progress
        self._task: TaskID | None = progress.add_task(what, total=total, note="") if progress else None

    def skip(self, steps: int) -> None:
        """Steps that an earlier run had done; they do not count for the rate."""
        self._skipped += steps
        self(steps)

    def epoch(self, epoch: int, train_loss: float, val_loss: float) -> None:
        """The end of an epoch, which may be of one training after others."""
        if epoch < self._epoch:
            self._before = self.done
        self._epoch = epoch
        self(self._before + epoch + 1 - self.done, f"loss {train_loss:.3f}, validation {val_loss:.3f}")

    def __call__(self, steps: int, note: str = "") -> None:
        self.done += steps
        now = time.monotonic()
        rate = (self.done - self._skipped) / max(now - self._started, 1e-9)
        text = f"{note}  {_per_second(rate)} {self.unit}/s".strip()
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=self.done, note=text)
        if now - self._spoken >= _SECONDS_BETWEEN_LINES or self.done >= self.total:
            self._spoken = now
            self._line(text, (self.total - self.done) / rate if rate > 0 else None)

    def _line(self, text: str, left: float | None) -> None:
        ending = f", {left:.0f} s left" if left and self.done < self.total else ""
        line = f"{self.what} {self.done:,}/{self.total:,}  {text}{ending}"
        if self._progress is None:
            self.reporter.say(line)
        else:
            logger.info(line)


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
