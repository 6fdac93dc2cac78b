"""Simulate one block of a campaign: all its rows in one call or, when that fails, one by one.

Block b uses the generator of ``SeedSequence(seed, spawn_key=b)`` for its theta, context and base random numbers, in
this order, and then for its one call of ``simulate``. When that call raises, crashes or overruns, row r is tried alone
with ``spawn_key=(chunk, r, attempt)``, so that one bad row costs one row and the rest do not depend on it. With a time
limit rows are tried alone from the start: a block that overran would tell neither which row did, nor the same twice.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from ..data.layout import Block
from ..data.records import FAILED, INVALID, OK, TIMEOUT, Records, no_reasons, why_invalid
from ..data.variables import Arrays
from .base import ContextPrior, HasBaseNumbers, HasGroups, Simulator, simulate_checked
from .guard import Outcome, attempt, guarded
from .prior import Prior

_LONGEST_REASON = 500
_GLOBAL = 2**32 - 1  # begins the keys of what seeds global generators; no chunk has this number


@dataclass(frozen=True, slots=True)
class Protection:
    """What a campaign does about rows that fail.

    Attributes:
        seconds: Time limit of a row; rows are then simulated one by one. None for none.
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

    def select(self, row: int) -> Draw:
        """One row."""
        one = slice(row, row + 1)
        context = {name: values[one] for name, values in self.context.items()}
        parts = (None if values is None else values[one] for values in (self.u, self.group))
        return Draw(self.theta[one], context, *parts)


class BlockSimulator:
    """Simulates blocks of one campaign.

    Args:
        simulator: The forward model.
        prior: Of theta.
        seed: Root of all randomness.
        protection: Against rows that fail.
        context: Of the known nuisance; None where there is none.
        theta: Of the block, where it is not to be drawn from the prior.

    Attributes:
        crashed: Whether any call took its child process with it.
    """

    def __init__(
        self,
        simulator: Simulator,
        prior: Prior,
        seed: int | tuple[int, ...],
        protection: Protection,
        context: ContextPrior | None = None,
        theta: np.ndarray | None = None,
    ) -> None:
        self.simulator, self.prior, self.context, self.theta = simulator, prior, context, theta
        self.seed, self.protection = seed, protection
        self.crashed = False

    def draw(self, block: Block) -> tuple[Draw, np.random.Generator]:
        """theta, context, u and group of a block, and the generator for its noise."""
        rng, rows, simulator = self._generator(block.key), block.length, self.simulator
        size = group_size_of(simulator)
        theta = draw_theta(self.prior, rows, size, rng) if self.theta is None else self.theta
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
        outcome: Outcome[int, Arrays] = Outcome(0, None) if self._one_by_one else self.together(block, draw, rng)
        if outcome.result is None:
            return self._rows(block, draw, range(block.length), 0)
        seconds = (time.perf_counter() - started) / block.length
        return self._stored(_judged(_records(draw, outcome.result, seconds)))

    def again(self, block: Block, records: Records, rows: Sequence[int], first_attempt: int) -> Records:
        """``records`` of a block with some of its rows tried once more."""
        draw = Draw(records.theta, records.context, records.u, records.group)
        return self._rows(block, draw, rows, first_attempt, records)

    @property
    def _one_by_one(self) -> bool:
        return bool(getattr(self.simulator, "per_row", False)) or self.protection.seconds is not None

    def together(self, block: Block, draw: Draw, rng: np.random.Generator) -> Outcome[int, Arrays]:
        """All rows of a block in one call."""

        def task(_: int) -> Arrays:
            return self._called(draw, slice(None), rng, block.key)

        limit = self.protection.seconds
        outcome = next(self._outcomes(task, [0], None if limit is None else limit * block.length))
        self.crashed |= outcome.crashed
        return outcome

    def _rows(
        self, block: Block, draw: Draw, rows: Sequence[int], first_attempt: int, before: Records | None = None
    ) -> Records:
        """Rows one by one; those not named as they were before."""
        records = before or self._nothing(draw)
        for trial in range(first_attempt, first_attempt + attempts_of(self.simulator, self.protection)):
            rows = self._try(block, draw, list(rows), trial, records)
            if not rows:
                break
        return records

    def _try(self, block: Block, draw: Draw, rows: list[int], trial: int, records: Records) -> list[int]:
        """Fill in ``records`` what succeeds; the rows that did not."""

        def task(row: int) -> tuple[Arrays, float]:
            chunk, offset = block.key[0], block.key[1] if len(block.key) > 1 else 0
            key = (chunk, offset + row, trial)
            started = time.perf_counter()
            x = self._called(draw, slice(row, row + 1), self._generator(key), key)
            return x, time.perf_counter() - started

        failed = []
        assert records.reason is not None  # made here
        for outcome in self._outcomes(task, rows, self.protection.seconds):
            row = outcome.item
            self.crashed |= outcome.crashed
            if outcome.result is None:
                failed.append(row)
                records.status[row] = TIMEOUT if outcome.timed_out else FAILED
                records.reason[row] = outcome.reason[:_LONGEST_REASON]
                continue
            x, records.runtime[row] = outcome.result
            one = self._stored(_judged(_records(draw.select(row), x)))
            assert one.reason is not None
            records.status[row], records.reason[row] = one.status[0], one.reason[0]
            for name, values in one.x.items():
                records.x[name][row] = values[0]
        return failed

    def _called(self, draw: Draw, rows: slice, rng: np.random.Generator, key: tuple[int, ...]) -> Arrays:
        """x of some rows, from copies: what a simulator does to its arguments is its own affair."""
        context = {name: values[rows].copy() for name, values in draw.context.items()}
        u = None if draw.u is None else draw.u[rows].copy()
        with _seeded(np.random.SeedSequence(self.seed, spawn_key=(_GLOBAL, *key))):
            return simulate_checked(self.simulator, draw.theta[rows].copy(), rng, context, u)

    def _outcomes(
        self,
        task: Callable[[int], Arrays] | Callable[[int], tuple[Arrays, float]],
        items: list[int],
        seconds: float | None,
    ) -> Iterator[Outcome]:  # type: ignore[type-arg]
        if self.protection.guarded:
            return guarded(task, items, seconds)
        return (attempt(task, item) for item in items)

    def _stored(self, records: Records) -> Records:
        """x in the dtypes of the store: whole numbers have 0 where they are not finite, in rows that say so."""
        kinds = {v.name: np.dtype(v.dtype) for v in self.simulator.observables}
        x = {n: v if v.dtype == kinds[n] else _whole(v, kinds[n]) for n, v in records.x.items()}
        return replace(records, x=x)

    def _nothing(self, draw: Draw) -> Records:
        x = {v.name: _empty((len(draw.theta), *v.shape), v.dtype) for v in self.simulator.observables}
        return _records(draw, x)

    def _generator(self, key: tuple[int, ...]) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence(self.seed, spawn_key=key))


@contextmanager
def _seeded(seeds: np.random.SeedSequence) -> Iterator[None]:
    """Seed the global generators for a call, and leave them as they were.

    For simulators that draw from those in spite of their contract: in forked children they would all draw the same.
    """
    words = seeds.generate_state(4)
    before, legacy, tensors = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    random.seed(int(words[0]))
    np.random.seed(words)  # noqa: NPY002
    torch.default_generator.manual_seed(int(words[1]))  # torch.manual_seed would queue work for CUDA on every call
    try:
        yield
    finally:
        random.setstate(before)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(tensors)


def draw_theta(prior: Prior, rows: int, group_size: int, rng: np.random.Generator) -> np.ndarray:
    """theta of a block, the rows of each group alike."""
    theta = prior.sample(-(-rows // group_size), rng)
    return np.repeat(theta, group_size, axis=0)[:rows] if group_size > 1 else theta


def group_size_of(simulator: Simulator) -> int:
    """How many rows in turn share one theta."""
    return simulator.group_size if isinstance(simulator, HasGroups) else 1


def attempts_of(simulator: Simulator, protection: Protection) -> int:
    """How often a row is tried before it is given up; a simulator's own ``retries`` count if it has any."""
    return 1 + (int(getattr(simulator, "retries", 0)) or protection.retries)


def _records(draw: Draw, x: Arrays, seconds: float = 0.0) -> Records:
    rows = len(draw.theta)
    status, runtime = np.full(rows, FAILED, np.int8), np.full(rows, seconds, np.float32)
    return Records(draw.theta, x, status, runtime, draw.context, draw.u, draw.group, no_reasons(rows))


def _judged(records: Records) -> Records:
    """Rows that have been simulated: ok, or invalid where x is not finite, or cannot be in float32."""
    status, reason = np.full(records.rows, OK, np.int8), no_reasons(records.rows)
    for row, why in why_invalid(records.x).items():
        status[row], reason[row] = INVALID, why
    return replace(records, status=status, reason=reason)


def _whole(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    return np.where(np.isfinite(values), values, 0).astype(dtype)


def _empty(shape: tuple[int, ...], dtype: str) -> np.ndarray:
    return np.full(shape, np.nan if np.dtype(dtype).kind == "f" else 0, dtype)
