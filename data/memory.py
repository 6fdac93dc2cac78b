"""How much memory this process may use: of the machine, or of its control group, as Slurm and containers set it."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def memory_limit(groups: Path = _CGROUPS, own: Path = _OWN) -> int:
    """Bytes this process may use: physical memory, or less where its control group (v2) or one above it says so."""
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *_group_limits(groups, own)])


def default_budget() -> int:
    """A quarter of `memory_limit`, in bytes: does not change while other programs come and go."""
    return memory_limit() // 4


def _group_limits(groups: Path, own: Path) -> list[int]:
    if not own.is_file():
        return []
    names = [line.split(":", 2)[2] for line in own.read_text().splitlines() if line.startswith("0::")]
    folders = [folder for name in names for folder in _upward(groups / name.lstrip("/"), groups)]
    texts = [(folder / "memory.max").read_text().strip() for folder in folders if (folder / "memory.max").is_file()]
    return [int(text) for text in texts if text.isdigit()]


def _upward(folder: Path, top: Path) -> list[Path]:
    return [path for path in (folder, *folder.parents) if path == top or top in path.parents]
