"""Simulate one block of a campaign: all its rows in one call or, when that fails, one by one.

Block b uses the generator of ``SeedSequence(seed, spawn_key=b)`` for its theta, context and base random numbers, in
this order, and then for its one call of ``simulate``. When that call raises, crashes or overruns, row r is tried alone
with ``spawn_key=(chunk, r, attempt)``, so that one bad row costs one row and the rest do not depend on it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..data.layout import Block
from ..data.records import FAILED, INVALID, OK, PENDING, TIMEOUT, Records, no_reasons
from ..data.variables import Arrays
from .base import ContextPrior, HasBaseNumbers, HasGroups, Simulator, simulate_checked
from .guard import Outcome, attempt, guarded
from .prior import Prior

_LONGEST_REASON = 500


@dataclass(frozen=True, slots=True)
class Protection:
    """What a campaign does about rows that fail.

    Attributes:
        seconds: Time limit of a row; of a block, as many times that as it has rows. None for none.
        retries: How often a row that failed is tried again, with other random numbers.
        isolate: Whether to simulate in a child process, which may crash.
    """

    seconds: float | None = None
    retries: int = 0
    isolate: bool = False

    @property
    def guarded(self) -> bool:
        return self.isolate or self.seconds is not None


@dataclass(frozen=True, slots=True)
class Draw:
    """What a block is simulated from: all of its randomness but the noise."""

    theta: np.ndarray
    context: Arrays
    u: np.ndarray | None
    group: np.ndarray | None


class BlockSimulator:
    """Simulates blocks of one campaign.

    Args:
        simulator: The forward model.
        prior: Of theta.
        seed: Root of all randomness.
        protection: Against rows that fail.
        context: Of the known nuisance; None where there is none.
    """

    def __init__(
        self,
        simulator: Simulator,
        prior: Prior,
        seed: int | tuple[int, ...],
        protection: Protection,
        context: ContextPrior | None = None,
    ) -> None:
        self.simulator, self.prior, self.context = simulator, prior, context
        self.seed, self.protection = seed, protection

    def draw(self, block: Block) -> tuple[Draw, np.random.Generator]:
        """theta, context, u and group of a block, and the generator for its noise."""
        rng, rows, simulator = self._generator(block.key), block.length, self.simulator
        size = simulator.group_size if isinstance(simulator, HasGroups) else 1
        theta = self.prior.sample(-(-rows // size), rng)
        theta = np.repeat(theta, size, axis=0)[:rows] if size > 1 else theta
        context = self.context.draw(rows, rng) if self.context else {}
        u = simulator.sample_u(rows, rng) if isinstance(simulator, HasBaseNumbers) else None
        group = np.arange(block.rows.start, block.rows.stop) // size if size > 1 else None
        return Draw(theta, context, u, group), rng

    def __call__(self, block: Block) -> Records:
        """All rows of a block."""
        return self._simulate(block, *self.draw(block))

    def at(self, theta: np.ndarray, context: Arrays) -> Records:
        """Rows at given parameters and context, as one block."""
        block = Block((0,), slice(0, len(theta)))
        rng, simulator = self._generator(block.key), self.simulator
        u = simulator.sample_u(len(theta), rng) if isinstance(simulator, HasBaseNumbers) else None
        return self._simulate(block, Draw(theta, context, u, None), rng)

    def _simulate(self, block: Block, draw: Draw, rng: np.random.Generator) -> Records:
        started = time.perf_counter()
        outcome: Outcome[int, Arrays] = Outcome(0, None) if self._one_by_one else self.together(draw, rng)
        if outcome.result is None:
            return self._rows(block, draw, range(block.length), 0)
        seconds = np.full(block.length, (time.perf_counter() - started) / block.length, np.float32)
        return _records(draw, outcome.result, np.zeros(block.length, np.int8), seconds, no_reasons(block.length))

    def again(self, block: Block, records: Records, rows: Sequence[int], first_attempt: int) -> Records:
        """``records`` of a block with some of its rows tried once more."""
        draw, _ = self.draw(block)
        return self._rows(block, draw, rows, first_attempt, records)

    @property
    def _one_by_one(self) -> bool:
        return bool(getattr(self.simulator, "per_row", False))

    def together(self, draw: Draw, rng: np.random.Generator) -> Outcome[int, Arrays]:
        """All rows of a block in one call."""

        def task(_: int) -> Arrays:
            return simulate_checked(self.simulator, draw.theta, rng, draw.context, draw.u)

        limit = self.protection.seconds
        return next(self._outcomes(task, [0], None if limit is None else limit * len(draw.theta)))

    def _rows(
        self, block: Block, draw: Draw, rows: Sequence[int], first_attempt: int, before: Records | None = None
    ) -> Records:
        """Rows one by one; those not named as they were before."""
        records = before or self._nothing(draw)
        retries = int(getattr(self.simulator, "retries", 0)) or self.protection.retries
        for trial in range(first_attempt, first_attempt + retries + 1):
            rows = self._try(block, draw, list(rows), trial, records)
            if not rows:
                break
        return _judged(records)

    def _try(self, block: Block, draw: Draw, rows: list[int], trial: int, records: Records) -> list[int]:
        """Fill in ``records`` what succeeds; the rows that did not."""

        def task(row: int) -> tuple[Arrays, float]:
            chunk, offset = block.key[0], block.key[1] if len(block.key) > 1 else 0
            rng = self._generator((chunk, offset + row, trial))
            one = slice(row, row + 1)
            context = {name: values[one] for name, values in draw.context.items()}
            started = time.perf_counter()
            x = simulate_checked(self.simulator, draw.theta[one], rng, context, None if draw.u is None else draw.u[one])
            return x, time.perf_counter() - started

        failed = []
        assert records.reason is not None  # made here
        for outcome in self._outcomes(task, rows, self.protection.seconds):
            row = outcome.item
            if outcome.result is None:
                failed.append(row)
                records.status[row] = TIMEOUT if outcome.timed_out else FAILED
                records.reason[row] = outcome.reason[:_LONGEST_REASON]
                continue
            x, records.runtime[row] = outcome.result
            records.status[row], records.reason[row] = PENDING, ""
            for name, values in x.items():
                records.x[name][row] = values[0]
        return failed

    def _outcomes(
        self,
        task: Callable[[int], Arrays] | Callable[[int], tuple[Arrays, float]],
        items: list[int],
        seconds: float | None,
    ) -> Iterator[Outcome]:  # type: ignore[type-arg]
        if self.protection.guarded:
            return guarded(task, items, seconds)
        return (attempt(task, item) for item in items)

    def _nothing(self, draw: Draw) -> Records:
        rows = len(draw.theta)
        x = {v.name: _empty((rows, *v.shape), v.dtype) for v in self.simulator.observables}
        return _records(draw, x, np.full(rows, FAILED, np.int8), np.zeros(rows, np.float32), no_reasons(rows))

    def _generator(self, key: tuple[int, ...]) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


def _records(draw: Draw, x: Arrays, status: np.ndarray, runtime: np.ndarray, reason: np.ndarray) -> Records:
    return _judged(Records(draw.theta, x, status, runtime, draw.context, draw.u, draw.group, reason))


def _judged(records: Records) -> Records:
    """Mark rows that have been simulated as ok, or as invalid where x is not finite."""
    simulated = ~np.isin(records.status, (FAILED, TIMEOUT))
    finite = {n: _finite(v) for n, v in records.x.items()}
    valid = np.stack(list(finite.values())).all(0)
    status = np.select([~simulated, ~valid], [records.status, INVALID], OK).astype(np.int8)
    reason = no_reasons(records.rows) if records.reason is None else records.reason
    for row in np.flatnonzero(simulated & ~valid):
        reason[row] = f"not finite: {', '.join(name for name, ok in finite.items() if not ok[row])}"
    return replace(records, status=status, reason=reason)


def _finite(values: np.ndarray) -> np.ndarray:
    """Which rows are finite everywhere."""
    return np.asarray(np.isfinite(values).reshape(len(values), -1).all(axis=1))


def _empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0, dtype)
