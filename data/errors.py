"""The errors simfer raises on purpose.

One small tree: every leaf is also the built-in that a caller would catch. Messages follow one formula: the
argument in backticks, what is required, what was got, what to do. Anything else that escapes is a bug of simfer.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class SimferError(Exception):
    """Base of every error that simfer raises on purpose."""


class ConfigError(SimferError, ValueError):
    """The configuration is wrong; ``problems`` holds one message per mistake, all found at once."""

    def __init__(self, problems: str | Iterable[str]) -> None:
        self.problems = [problems] if isinstance(problems, str) else list(problems)
        super().__init__("\n".join(self.problems))


class UnknownNameError(SimferError, LookupError):
    """A name that no registry knows."""


class ShapeError(SimferError, ValueError):
    """An array of the wrong shape, or with the wrong names."""


class NotFiniteError(SimferError, ValueError):
    """NaN or infinity where a number is required."""


class PriorError(SimferError, ValueError):
    """A prior that is no distribution, or that simfer cannot use."""


class SimulatorError(SimferError, RuntimeError):
    """A simulator raised, or gave nothing usable."""


class ContractError(SimulatorError):
    """A simulator broke its contract: wrong names, number of rows or shapes."""


class ProgramError(SimulatorError):
    """An external program failed, or left nothing usable; the message has its exit code and last words."""


class SimulationTimeoutError(SimulatorError, TimeoutError):
    """A simulation took longer than it may, and was ended."""


class ExecutorError(SimferError, RuntimeError):
    """Workers that cannot be had, or that cannot do what they are given."""


class StoreError(SimferError, OSError):
    """A simulation store that cannot be read, or that belongs to another campaign."""


class CorruptStoreError(StoreError):
    """A shard whose checksum does not fit, or that is missing."""


class MissingFileError(SimferError, FileNotFoundError):
    """A file or folder that is not there."""


class UnsupportedError(SimferError, NotImplementedError):
    """A method that this density cannot have."""


class SymmetryError(SimferError, ValueError):
    """A symmetry that does not fit the prior or the observables."""


class ModelFormatError(SimferError, ValueError):
    """A model folder that this version cannot read."""


class TrainingError(SimferError, RuntimeError):
    """Training cannot go on."""


class RunFolderError(SimferError, RuntimeError):
    """A run folder that is in use, or that is none."""


class SchedulerError(SimferError, RuntimeError):
    """The batch scheduler is not there, or refuses."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Say which names are known, nearest first: ``did you mean `nsf`? Known: nsf, maf, gmm``."""
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    ordered = near + [other for other in names if other not in near]
    hint = f"did you mean `{near[0]}`? " if near else ""
    return f"{hint}Known: {', '.join(ordered) or 'none'}"
