"""Lanes: the parts of an epoch that give their parts of every batch, each in buffers of whole blocks.

The rows of a buffer are shuffled. While one is consumed, threads read the next, every block to a place of its own, so that no
batch depends on which thread was faster. Whole blocks are read, because a chunk decompresses as a whole; skipping to the middle
of an epoch reads none of the buffers before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch

from .batch import Batch


class Piece(NamedTuple):
    """Rows ``first`` to ``last`` of those wanted of one block."""

    block: int
    first: int
    last: int

    @property
    def rows(self) -> int:
        return self.last - self.first


class Span(NamedTuple):
    """Rows ``first`` to ``last`` of an epoch, so many of them ``each`` step."""

    first: int
    last: int
    each: int

    @property
    def steps(self) -> int:
        """Of which the last may have fewer rows."""
        return (self.last - self.first + self.each - 1) // self.each


@runtime_checkable
class Readable(Protocol):
    """Where rows are read from."""

    def fill(self, into: Batch, pieces: list[Piece], pool: ThreadPoolExecutor) -> list[Future[None]]: ...


class Blocks:
    """The blocks of an epoch, one behind the other.

    Args:
        numbers: Which, in order.
        counts: Rows of each.
    """

    def __init__(self, numbers: np.ndarray, counts: np.ndarray) -> None:
        self._numbers, self._counts, self._ends = numbers, counts, np.cumsum(counts)

    def pieces(self, span: Span) -> list[Piece]:
        """The rows of a span: whole blocks, but for the first and the last."""
        begin = int(np.searchsorted(self._ends, span.first, side="right"))
        end = int(np.searchsorted(self._ends, span.last, side="left")) + 1
        found = []
        for k in range(begin, min(end, len(self._ends))):
            start = int(self._ends[k] - self._counts[k])
            first, last = max(span.first - start, 0), min(span.last - start, int(self._counts[k]))
            if first < last:
                found.append(Piece(int(self._numbers[k]), first, last))
        return found


class Lane:
    """Parts of batches, one for each step, from the first that is not to be skipped.

    Args:
        span: Which of the epoch's rows.
        pieces: The same as they are stored.
        buffer_rows: Of a buffer, which has one block at least.
        order: Of the rows of a buffer, by its number and size.
        skip: Steps.
    """

    def __init__(
        self,
        span: Span,
        pieces: list[Piece],
        buffer_rows: int,
        order: Callable[[int, int], np.ndarray],
        skip: int,
    ) -> None:
        buffers = _buffers(pieces, buffer_rows)
        ends = np.cumsum([_size(buffer) for buffer in buffers])
        self._each, self._order = span.each, order
        self._skip = min(skip * span.each, span.last - span.first)
        self._begin = int(np.searchsorted(ends, self._skip, side="right"))
        self._buffers, self._ends = buffers[self._begin :], ends[self._begin :]
        self._capacity = max(map(_size, self._buffers), default=0)

    @property
    def room(self) -> int:
        """Rows of the two buffers at most that are in memory at once."""
        return self._capacity * min(len(self._buffers), 2)

    def begin(self, rows: Readable, place: Batch, offset: int, pool: ThreadPoolExecutor) -> None:
        """Read from ``rows``, to the ``room`` rows of a place that begin at ``offset``."""
        self._rows, self._place, self._offset, self._pool = rows, place, offset, pool
        self._ahead = self._fill(0)

    def steps(self) -> Iterator[np.ndarray | list[Batch]]:
        """What each step takes: which rows of the place; or, from the end of a buffer and the start of the next, the rows."""
        parts: list[Batch] = []
        missing = self._each
        for order in self._shuffled():
            while len(order):
                taken, order = order[:missing], order[missing:]
                if len(taken) == self._each:
                    yield taken
                    continue
                parts.append(self._place.select(torch.from_numpy(taken)))  # at once, for the next buffer may go there
                missing -= len(taken)
                if not missing:
                    yield parts
                    parts, missing = [], self._each
        if parts:
            yield parts

    def _shuffled(self) -> Iterator[np.ndarray]:
        """For each buffer the rows of the place in the order to take them in; the next is read while one is in use."""
        for i, (buffer, end) in enumerate(zip(self._buffers, self._ends, strict=True)):
            for future in self._ahead:
                future.result()
            self._ahead = self._fill(i + 1)
            size = _size(buffer)
            order = self._order(self._begin + i, size)[max(0, self._skip - int(end) + size) :]
            yield order + self._start(i)

    def _fill(self, i: int) -> list[Future[None]]:
        if i >= len(self._buffers):
            return []
        place = self._place.select(slice(self._start(i), self._start(i) + _size(self._buffers[i])))
        return self._rows.fill(place, self._buffers[i], self._pool)

    def _start(self, i: int) -> int:
        return self._offset + i % 2 * self._capacity


def _buffers(pieces: list[Piece], rows: int) -> list[list[Piece]]:
    buffers: list[list[Piece]] = []
    room = 0
    for piece in pieces:
        if piece.rows > room:
            buffers.append([])
            room = rows
        buffers[-1].append(piece)
        room -= piece.rows
    return buffers


def _size(pieces: list[Piece]) -> int:
    return sum(piece.rows for piece in pieces)
