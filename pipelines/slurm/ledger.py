"""Which jobs were submitted for a run, and which shards each task of an array owns: ``slurm/jobs.json`` and what it names."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from ...data.errors import RunFolderError
from ...data.files import write_json
from .scheduler import TaskKey
from .script import FOLDER

_FILE = f"{FOLDER}/jobs.json"


@dataclass(frozen=True, slots=True)
class Submission:
    """One job.

    Attributes:
        stage: What it does.
        job: Its number.
        tasks: Of its array; None where it is none.
        shards: File that says which shards each task owns.
        submitted_at: In seconds since the epoch.
    """

    stage: str
    job: str
    tasks: int | None
    shards: str | None
    submitted_at: float

    @property
    def keys(self) -> list[TaskKey]:
        """All its tasks, or itself."""
        return [(self.job, None)] if self.tasks is None else [(self.job, task) for task in range(self.tasks)]


class Ledger:
    """All jobs of a run, in the order of submission.

    Attributes:
        folder: The run folder.
        version: Of the simfer that submitted last.
        submissions: All of them.
    """

    def __init__(self, folder: Path, version: str, submissions: Sequence[Submission] = ()) -> None:
        self.folder, self.version, self.submissions = folder, version, list(submissions)

    @classmethod
    def read(cls, folder: Path) -> Ledger:
        """That of a run folder.

        Raises:
            RunFolderError: Nothing was submitted from there, or its file is damaged.
        """
        try:
            found = json.loads((folder / _FILE).read_text(encoding="utf-8"))
            return cls(folder, found["simfer"], [Submission(**item) for item in found["jobs"]])
        except FileNotFoundError as error:
            raise RunFolderError(f"no jobs were submitted from {folder}: `simfer submit` does that") from error
        except (ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{folder / _FILE} is damaged ({error}): see `squeue --me` for the jobs, and remove the file to submit anew"
            ) from error

    @staticmethod
    def there(folder: Path) -> bool:
        """Whether jobs were submitted from this run folder."""
        return (folder / _FILE).is_file()

    @property
    def jobs(self) -> list[str]:
        """Numbers of all jobs."""
        return [submission.job for submission in self.submissions]

    def of(self, stage: str) -> list[Submission]:
        """Those of one stage."""
        return [submission for submission in self.submissions if submission.stage == stage]

    def add(self, stage: str, job: str, tasks: int | None = None, shards: str | None = None) -> None:
        """Note a job, on disk as well."""
        self.submissions.append(Submission(stage, job, tasks, shards, time.time()))
        self.write()

    def write(self) -> None:
        write_json(
            self.folder / _FILE,
            {"simfer": self.version, "jobs": [asdict(submission) for submission in self.submissions]},
        )

    def new_shards(self, tasks: Sequence[Sequence[int]]) -> str:
        """Note which shards each task of a new array owns; gives the file."""
        name = f"{FOLDER}/shards-{len(self.of('simulate')) + 1}.json"
        write_json(self.folder / name, {"tasks": [list(map(int, shards)) for shards in tasks]})
        return name


def shards_of(folder: Path, file: str) -> list[list[int]]:
    """Which shards each task owns.

    Raises:
        RunFolderError: The file is gone or damaged.
    """
    try:
        found: list[list[int]] = json.loads((folder / file).read_text(encoding="utf-8"))["tasks"]
        return found
    except (OSError, ValueError, KeyError) as error:
        raise RunFolderError(
            f"{folder / file}, which says which shards each task owns, cannot be read ({error}): run "
            f"`simfer cancel {folder}`, then `simfer resume {folder}`"
        ) from error


def dealt(shards: Sequence[int], tasks: int) -> list[list[int]]:
    """Shards in order, in as many parts of nearly the same length."""
    size, more = divmod(len(shards), tasks)
    ends = [size * (k + 1) + min(k + 1, more) for k in range(tasks)]
    return [list(shards[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
