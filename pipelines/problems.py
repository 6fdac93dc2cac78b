"""Mistakes of a configuration, collected, so that all are told at once."""

from __future__ import annotations

import re
from typing import Any

from ..data.errors import SimferError
from .yaml_file import Source


class Problems:
    """Collects mistakes: what raises a `SimferError` inside ``with problems.at(key)`` becomes a message of that key."""

    def __init__(self, source: Source, problems: list[str]) -> None:
        self.source = source
        self.problems = problems
        self._location: tuple[Any, ...] = ()

    def at(self, *location: Any) -> Problems:
        self._location = location
        return self

    def in_order(self) -> list[str]:
        """All messages, by line."""
        return sorted(self.problems, key=_line)

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> bool:
        if not isinstance(error, SimferError):
            return False
        self.problems.append(self.source.problem(self._location, str(error)))
        return True


def _line(problem: str) -> int:
    found = re.match(r"[^`]*?:(\d+): ", problem)
    return int(found[1]) if found else 0
