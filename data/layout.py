"""How the rows of a store are cut: into blocks, the unit of randomness and reading, and shards, the unit of writing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from .errors import StoreError
from .variables import Variables

_CHUNK_BYTES = 4 * 2**20
_SHARD_BYTES = 64 * 2**20
_BLOCK_ROWS = (1000, 10_000)
_SHARDS = 16


@dataclass(frozen=True, slots=True)
class Block:
    """Rows simulated by one call.

    Attributes:
        key: What tells its randomness from that of every other block.
        rows: Which rows of the store.
    """

    key: tuple[int, ...]
    rows: slice

    @property
    def length(self) -> int:
        return self.rows.stop - self.rows.start


@dataclass(frozen=True, slots=True)
class Layout:
    """How many rows there are, in a block and in a shard; block and shard are fixed when the store is made.

    Attributes:
        rows: All rows.
        block: Rows of a chunk.
        shard: Rows of a shard, whole blocks.
        segments: Numbers of rows the store has had, in order; more than one when it was extended.
    """

    rows: int
    block: int
    shard: int
    segments: tuple[int, ...] = ()

    @classmethod
    def choose(
        cls,
        rows: int,
        observables: Variables,
        *,
        block: int | None = None,
        multiple: int = 1,
        shards: int | None = None,
    ) -> Layout:
        """Blocks of at most 4 MiB and 10,000 rows, in shards of at most 64 MiB, 16 of them or more.

        Chunks of 4 MiB are read three times as fast as ones of 0.4 MiB (``tests/benchmarks/chunk_size.py``). Campaigns of less than 640,000
        rows have smaller ones, of 1,000 rows or a 64th of all, because a block is one call of the simulator. A shard
        is dealt to a worker, held in memory and lost by a kill, hence its bound.

        Args:
            rows: All rows.
            observables: Give the bytes of a row.
            block: Overrides the choice.
            multiple: Rows that must stay in one block.
            shards: How many at least, as far as blocks are that many; overrides the choice.
        """
        if rows < 1:
            raise StoreError(f"`rows` of a campaign must be at least 1; got {rows}")
        row_bytes = max(sum(v.size * np.dtype(v.dtype).itemsize for v in observables), 1)
        least, most = _BLOCK_ROWS
        several = min(max(least, rows // (4 * _SHARDS)), most, -(-rows // max(2 * _SHARDS, shards or 0)))
        chosen = block or max(1, min(several, _CHUNK_BYTES // row_bytes))
        chosen = -(-chosen // multiple) * multiple
        blocks = min(-(-rows // chosen) // (shards or _SHARDS), _SHARD_BYTES // (chosen * row_bytes))
        return cls(rows, chosen, chosen * max(1, blocks), (rows,))

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard)

    def shard_rows(self, shard: int) -> slice:
        return slice(shard * self.shard, min((shard + 1) * self.shard, self.rows))

    def shard_length(self, shard: int) -> int:
        rows = self.shard_rows(shard)
        return rows.stop - rows.start

    def blocks(self, shard: int) -> Iterator[Block]:
        """The blocks of ``shard``: its chunks, cut where the store once ended.

        The rows after such a cut are a block of their own, whose key (chunk, offset) no other has.
        """
        rows = self.shard_rows(shard)
        starts = {*range(rows.start, rows.stop, self.block), *(s for s in self.segments if rows.start < s < rows.stop)}
        edges = [*sorted(starts), rows.stop]
        for start, stop in pairwise(edges):
            chunk, offset = divmod(start, self.block)
            yield Block((chunk, offset) if offset else (chunk,), slice(start, stop))

    def extended(self, rows: int) -> Layout:
        """The same with more rows.

        Raises:
            StoreError: There would be fewer.
        """
        if rows < self.rows:
            raise StoreError(f"`rows` of an extended store must be at least the {self.rows} it has; got {rows}")
        if rows == self.rows:
            return self
        return Layout(rows, self.block, self.shard, (*(self.segments or (self.rows,)), rows))

    def to_json(self) -> dict[str, Any]:
        segments = list(self.segments or (self.rows,))
        return {"rows": self.rows, "block": self.block, "shard": self.shard, "segments": segments}

    @classmethod
    def from_json(cls, item: dict[str, Any]) -> Layout:
        return cls(item["rows"], item["block"], item["shard"], tuple(item.get("segments", (item["rows"],))))
