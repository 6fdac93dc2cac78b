"""How far a campaign is, from its store alone: any process may ask, also of one that runs elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from ..data.records import FAILED, INVALID, TIMEOUT
from ..data.store import SimulationStore

_RECENT_SHARDS = 8
_MOST_REASONS = 5
_NUMBER = re.compile(r"-?\d+\.\d+(e[-+]?\d+)?|\d{4,}")  # in which reasons of one kind differ; exit codes are shorter


@dataclass(frozen=True, slots=True)
class CampaignProgress:
    """Where a campaign stands.

    Attributes:
        counts: Rows by status.
        bytes: Size on disk.
        row_seconds: Mean time a row took, in the process that simulated it.
        rate: Rows per second over the last shards; 0 before there are two.
        seconds_left: At that rate; None when unknown or done.
        reasons: Why rows are not ok, the most frequent first: an example → (rows that differ from it in numbers only,
            the first of them).
    """

    counts: dict[str, int]
    bytes: int
    row_seconds: float
    rate: float
    seconds_left: float | None
    reasons: dict[str, tuple[int, int]]


def progress_of(store: SimulationStore) -> CampaignProgress:
    """Read where a campaign stands."""
    counts = store.counts()
    done = store.rows - counts["pending"]
    rate = _rate(store)
    left = counts["pending"] / rate if rate and counts["pending"] else None
    runtime = store.read_array("runtime")
    known = runtime[np.isfinite(runtime)]
    return CampaignProgress(
        counts,
        sum(file.stat().st_size for file in store.path.rglob("*") if file.is_file()),
        float(known.mean()) if done and len(known) else 0.0,
        rate,
        left,
        _reasons(store),
    )


def _rate(store: SimulationStore) -> float:
    """From when the last shards were finished: a pause before them does not count."""
    finished = sorted((time, shard) for shard, time in store.finished_at().items())[-_RECENT_SHARDS:]
    if len(finished) < 2:
        return 0.0
    rows = sum(store.layout.shard_length(shard) for _, shard in finished[1:])
    return rows / max(finished[-1][0] - finished[0][0], 1e-6)


def _reasons(store: SimulationStore) -> dict[str, tuple[int, int]]:
    bad = np.flatnonzero(np.isin(store.status, (INVALID, FAILED, TIMEOUT)))
    found: dict[str, tuple[str, int, int]] = {}
    shards = np.unique(bad // store.layout.shard)
    for shard in shards:
        rows = store.layout.shard_rows(int(shard))
        reasons = store.reasons(rows)
        for row in bad[(bad >= rows.start) & (bad < rows.stop)]:
            reason = str(reasons[row - rows.start])
            kind = _NUMBER.sub("#", reason)
            example, count, first = found.get(kind, (reason, 0, int(row)))
            found[kind] = (example, count + 1, first)
    ordered = sorted(found.values(), key=lambda item: -item[1])
    shown = {example: (count, first) for example, count, first in ordered[:_MOST_REASONS]}
    rest = ordered[_MOST_REASONS:]
    other = {f"{len(rest)} other reasons": (sum(n for _, n, _ in rest), rest[0][2])} if rest else {}
    return shown | other
