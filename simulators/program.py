"""Any executable as a simulator: a command with named parameters, run once per row or once per batch.

Each call has a scratch directory of its own, which is also its working directory. What the program needs comes by
arguments, by an input file rendered from a template or, for a batch, by a file of theta; what it made is read from one
file or from what it printed. A call that fails raises; the campaign keeps the reason with the row.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import shutil
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..data.errors import MissingFileError, ProgramError, SimulationTimeoutError, SimulatorError, did_you_mean
from ..data.files import fingerprint
from ..data.variables import Arrays, Variables
from .outputs import READERS, SUFFIXES, as_observables, read_output, seen_variables
from .prior import Prior
from .process import Ended, run_program
from .scratch import Scratch
from .template import Template

logger = logging.getLogger(__name__)

_STDOUT = "stdout"
_MOST_PRINTED = 1 << 28  # bytes
_LONGEST_REASON = 500  # characters
_LAST_LINES = 5
_LONGEST_NAME = 255  # bytes, of most file systems


class Program:
    """An external program.

    Args:
        command: Its words, or one string that is split as a shell would, though no shell runs. Names in braces are
            filled in: the parameters, ``{seed}``, ``{input}``, ``{output}``; for a batch ``{theta}`` and ``{rows}`` in
            place of the parameters. A word that names a file in ``folder`` is taken for that file.
        prior: A `Prior`, or its form in YAML.
        observables: `Variables`, or a mapping from name to ``{shape, dtype, units, ...}``; seen from one run of the
            program when None.
        input: Text with named parameters, or a file of such text, written anew for every call.
        output: Name of the file that the program writes, or ``stdout``.
        format: Of the output: npy, npz, csv, json, hdf5 or netcdf; by the suffix when None, csv for ``stdout``.
        datasets: Observable → name of its dataset in the output, where that is another.
        batch: Whether one call simulates all rows; outputs then have a leading row axis.
        theta: For a batch: name of the file of parameters, ``.npy`` or ``.csv`` (with a header).
        environment: Variables besides those of this process.
        timeout: Seconds for a call; the program and all its children are killed then.
        retries: How often the campaign tries a failed row again, with a new seed.
        files: Copied into the scratch directory of each call.
        scratch: Where the scratch directories are made; the system's temporary directory when None.
        keep: Whether the scratch directory of a failed call stays; the reason says where.
        folder: What relative paths are relative to; the working directory when None.

    Attributes:
        per_row: Whether the campaign should simulate row by row from the start.

    Raises:
        SimulatorError: No such executable, a name that is not known, or an option that cannot be.
        MissingFileError: A file of ``files``, or ``scratch``, is not there.
        PriorError: The prior is impossible.
    """

    operational: ClassVar[tuple[str, ...]] = ("timeout", "retries")

    def __init__(
        self,
        command: str | Sequence[str],
        *,
        prior: Prior | Mapping[str, Mapping[str, Any]],
        observables: Variables | Mapping[str, Mapping[str, Any]] | None = None,
        input: str | None = None,
        output: str = _STDOUT,
        format: str | None = None,
        datasets: Mapping[str, str] | None = None,
        batch: bool = False,
        theta: str = "theta.npy",
        environment: Mapping[str, str] | None = None,
        timeout: float | None = None,
        retries: int = 0,
        files: Sequence[str] = (),
        scratch: str | None = None,
        keep: bool = False,
        folder: str | Path | None = None,
    ) -> None:
        self.command = shlex.join(_words(command))
        self.input, self.output, self.format = input or "", output, format or _format(output)
        self.batch, self.theta, self.files = batch, theta, list(files)
        self.timeout, self.retries, self._keep = timeout, retries, keep
        self._folder = Path(folder or ".").resolve()
        self.prior = as_prior(prior, self._folder)
        self._datasets, self._environment = dict(datasets or {}), dict(environment or {})
        self._root = None if scratch is None else self._existing(scratch, "scratch")
        self._scratch = Scratch(self._root)
        _check_options(self)
        known = self._names()
        program, *words = _words(command)
        self._command = [_Word.of(_executable(program, self._folder, self._environment), known)]
        self._command += [_Word.of(self._located(word), known) for word in words]
        self._copied = [self._existing(name, "files") for name in self.files]
        self._input = _Input(self.input, self._folder, known - {"input"}) if input else None
        self._check_renders()
        self._tell_unused()
        self.source = self._fingerprint()
        self.observables = _variables(observables) if observables is not None else self._probed()

    def _tell_unused(self) -> None:
        """A parameter that never reaches the program would be inferred from nothing."""
        text = self.command + (self._input.text if self._input else "")
        unused = [name for name in self.prior.names if not re.search(rf"{{{name}\W", text)]
        if unused and not self.batch:
            logger.warning(
                "`command` and `input` do not use %s: write {%s} where it belongs, or leave it out of `prior`",
                ", ".join(unused),
                unused[0],
            )

    @property
    def per_row(self) -> bool:
        return not self.batch

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        """Run the program; see the contract.

        Raises:
            ProgramError: It could not be started, failed, or left nothing usable.
            SimulationTimeoutError: It took too long.
        """
        if self.batch:
            values = {"rows": len(theta), "seed": _seeds(1, rng)[0]}
            return self._call(values, theta, self.observables)
        x = {v.name: np.empty((len(theta), *v.shape), v.dtype) for v in self.observables}
        seeds = _seeds(len(theta), rng)
        for i, (row, seed) in enumerate(zip(theta.tolist(), seeds, strict=True)):
            values = {**dict(zip(self.prior.names, row, strict=True)), "seed": seed}
            for name, array in self._call(values, None, self.observables).items():
                x[name][i] = array
        return x

    def arguments(self) -> dict[str, Any]:
        """What makes this program again in another process, as JSON."""
        described = {item.pop("name"): item for item in self.observables.to_json()}
        return {
            "command": self.command,
            "prior": self.prior.to_json(),
            "observables": described,
            "input": self.input or None,
            "output": self.output,
            "format": self.format,
            "datasets": self._datasets,
            "batch": self.batch,
            "theta": self.theta,
            "environment": self._environment,
            "timeout": self.timeout,
            "retries": self.retries,
            "files": self.files,
            "scratch": None if self._root is None else str(self._root),
            "keep": self._keep,
            "folder": str(self._folder),
        }

    def _names(self) -> set[str]:
        """What may stand in braces."""
        own = {"seed"} | ({"output"} if self.output != _STDOUT else set()) | ({"input"} if self.input else set())
        own |= {"theta", "rows"} if self.batch else set()
        taken = sorted(own & set(self.prior.names))
        if taken:
            raise SimulatorError(f"`prior` has a parameter `{taken[0]}`, a name the command needs: rename it")
        return own | (set() if self.batch else set(self.prior.names))

    def _located(self, word: str) -> str | Path:
        """A word that names a file in the folder, as its full path."""
        path = self._folder / word
        return path if len(word) < _LONGEST_NAME and path.is_file() else word

    def _existing(self, name: str, key: str) -> Path:
        path = self._folder / name
        if not path.exists():
            raise MissingFileError(f"`{key}`: there is no {path}")
        return path

    def _check_renders(self) -> None:
        """Find a format that fits no number before the campaign does."""
        values = {**dict.fromkeys(self.prior.names, 0.5), "seed": 1, "rows": 1, "input": "", "output": "", "theta": ""}
        for word in self._command:
            word.template.render(values)
        if self._input is not None:
            self._input.template.render(values)

    def _fingerprint(self) -> str:
        """Of all that decides what comes out and is no plain attribute: the files above all."""
        own = [word.path for word in self._command if word.path is not None and self._folder in word.path.parents]
        inside = [path for top in (*own, *self._copied) for path in (sorted(top.rglob("*")) if top.is_dir() else [top])]
        hashes = [_hash(path) for path in inside if path.is_file()]
        template = self._input.text if self._input else ""
        return fingerprint([self._datasets, self._environment, template, hashes])[:16]

    def _probed(self) -> Variables:
        """The observables that a run on the prior's first draws shows."""
        rng = np.random.default_rng(0)
        theta = self.prior.sample(2 if self.batch else 1, rng)
        values = {"rows": 2} if self.batch else dict(zip(self.prior.names, theta[0].tolist(), strict=True))
        found = self._call({**values, "seed": 1}, theta if self.batch else None, None)
        return seen_variables(found, self._datasets, self.batch)

    def _call(self, values: dict[str, Any], theta: np.ndarray | None, observables: Variables | None) -> Arrays:
        """One run in a scratch directory; all datasets as they are where no observables are given."""
        scratch = self._scratch.take()
        try:
            return self._run(scratch, values, theta, observables)
        except SimulatorError as error:
            if not self._keep:
                raise
            kept, scratch = scratch, ""
            self._scratch.keep(kept)
            raise type(error)(f"{error}; its scratch directory is {kept}") from error
        finally:
            if scratch:
                self._scratch.give_back(scratch)

    def _run(
        self, scratch: str, values: dict[str, Any], theta: np.ndarray | None, observables: Variables | None
    ) -> Arrays:
        output = f"{scratch}/{self.output}"
        values = {**values, "output": output}
        for path in self._copied:
            _copy(path, scratch)
        if theta is not None:
            values["theta"] = _write_theta(f"{scratch}/{self.theta}", theta, self.prior.names)
        if self._input is not None:
            values["input"] = self._input.write(scratch, values)
        ended = run_program(
            [word.template.render(values) for word in self._command],
            folder=scratch,
            environment={**os.environ, **self._environment} if self._environment else None,
            timeout=self.timeout,
            stdout_limit=_MOST_PRINTED if self.output == _STDOUT else 0,
        )
        self._require_success(ended)
        try:
            return self._read(ended.stdout if self.output == _STDOUT else output, theta, observables)
        except ProgramError as error:
            missing = self.output != _STDOUT and not os.path.exists(output)
            nothing = f"the program ended with exit code 0, but there is no `{self.output}` in its scratch directory"
            raise ProgramError(_with_stderr(nothing if missing else str(error), ended.stderr)) from error

    def _require_success(self, ended: Ended) -> None:
        if ended.code is None:
            raise SimulationTimeoutError(
                _with_stderr(f"the program took longer than {self.timeout:g} s and was killed", ended.stderr)
            )
        if ended.code < 0:
            raise ProgramError(_with_stderr(f"the program was killed by {_signal(-ended.code)}", ended.stderr))
        if ended.code > 0:
            raise ProgramError(_with_stderr(f"the program ended with exit code {ended.code}", ended.stderr))

    def _read(self, source: str | bytes, theta: np.ndarray | None, observables: Variables | None) -> Arrays:
        if observables is None:
            return read_output(source, self.format, list(self._datasets.values()) or None)
        wanted = [self._datasets.get(name, name) for name in observables.names]
        lead = () if theta is None else (len(theta),)
        found = read_output(source, self.format, wanted)
        return as_observables(found, observables, self._datasets, lead, loose=self.format == "csv")


@dataclass(frozen=True, slots=True)
class _Word:
    """A word of the command, and the file it stands for, if any."""

    template: Template
    path: Path | None

    @classmethod
    def of(cls, word: str | Path, known: set[str]) -> _Word:
        path = word if isinstance(word, Path) else None
        text = str(path).replace("{", "{{").replace("}", "}}") if path else str(word)
        return cls(Template(text, known, "command"), path)


def as_prior(given: Prior | Mapping[str, Mapping[str, Any]], folder: Path) -> Prior:
    """A prior as it is, as `Prior.to_json` wrote it, or as YAML has it, units and labels included.

    Raises:
        PriorError: It is impossible.
    """
    if isinstance(given, Prior):
        return given
    if any("joint" in item for item in given.values()):
        return Prior.from_json(given, run_code=True)
    bare = {name: {k: v for k, v in item.items() if k not in ("units", "label")} for name, item in given.items()}
    units = {name: str(item.get("units") or "") for name, item in given.items()}
    labels = {name: str(item.get("label") or "") for name, item in given.items()}
    return Prior(bare, units=units, labels=labels, folder=folder)


class _Input:
    """The input file of each call: text with named parameters, given as such or by its path."""

    def __init__(self, given: str, folder: Path, known: set[str]) -> None:
        path = folder / given
        inline = "\n" in given or "{" in given
        if not inline and not path.is_file():
            raise MissingFileError(f"`input`: no file {path}; text itself must hold a line break or a `{{name}}`")
        self.text = given if inline else path.read_text(encoding="utf-8")
        self.name = "input" if inline else path.name.removesuffix(".in").removesuffix(".template")
        self.template = Template(self.text, known, "input")

    def write(self, scratch: str, values: Mapping[str, Any]) -> str:
        path = f"{scratch}/{self.name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(self.template.render(values))
        return path


def _seeds(rows: int, rng: np.random.Generator) -> list[int]:
    """Below 2^31, which fits every language's integers."""
    seeds: list[int] = (rng.random(rows) * 2**31).astype(np.int64).tolist()
    return seeds


def _words(command: str | Sequence[str]) -> list[str]:
    try:
        words = shlex.split(command) if isinstance(command, str) else [str(word) for word in command]
    except ValueError as error:
        raise SimulatorError(f"`command` must be words as a shell takes them; got {command!r}: {error}") from error
    if not words:
        raise SimulatorError("`command` must name a program; got nothing")
    return words


def _executable(word: str, folder: Path, environment: Mapping[str, str]) -> Path:
    """Where the program is: a path, relative to the folder, or a name, looked for on PATH and in the folder."""
    on_path = None if "/" in word else shutil.which(word, path=environment.get("PATH"))
    path = Path(on_path) if on_path else folder / word
    if not path.is_file():
        where = "" if "/" in word else " on PATH or"
        raise SimulatorError(f"`command`: there is no program `{word}`{where} in {folder}: build or install it")
    if not os.access(path, os.X_OK):
        raise SimulatorError(f"`command`: {path} is not executable: `chmod +x` it, or name its interpreter first")
    return path


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _format(output: str) -> str:
    return "csv" if output == _STDOUT else SUFFIXES.get(Path(output).suffix.lower(), "")


def _check_options(program: Program) -> None:
    if program.format not in READERS:
        raise SimulatorError(f"`format` of `{program.output}` is {program.format!r}; {did_you_mean('', READERS)}")
    if program.timeout is not None and not program.timeout > 0:
        raise SimulatorError(f"`timeout` must be seconds above 0; got {program.timeout}")
    if program.retries < 0:
        raise SimulatorError(f"`retries` must be 0 or more; got {program.retries}")
    for name in (program.output, program.theta):
        if Path(name).name != name:
            raise SimulatorError(f"`output` and `theta` must be plain file names; got {name!r}")
    if Path(program.theta).suffix not in (".npy", ".csv"):
        raise SimulatorError(f"`theta` must end in .npy or .csv; got {program.theta!r}")


def _variables(given: Variables | Mapping[str, Mapping[str, Any]]) -> Variables:
    if isinstance(given, Variables):
        return given
    bare: dict[str, Any] = {"shape": [], "dims": [], "support": {}}
    return Variables.from_json([{**bare, **item, "name": name} for name, item in given.items()])


def _copy(path: Path, scratch: str) -> None:
    target = f"{scratch}/{path.name}"
    if path.is_dir():
        shutil.copytree(path, target)
    else:
        shutil.copy(path, target)


def _write_theta(path: str, theta: np.ndarray, names: Sequence[str]) -> str:
    if path.endswith(".npy"):
        np.save(path, theta)
    else:
        np.savetxt(path, theta, fmt="%.17g", delimiter=",", header=",".join(names), comments="")
    return path


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _with_stderr(text: str, stderr: str) -> str:
    """The text and the last lines of stderr, as far as there is room."""
    said = " | ".join(line.strip() for line in stderr.strip().splitlines()[-_LAST_LINES:])
    room = _LONGEST_REASON - len(text) - 120
    if not said:
        return text
    return f"{text}; stderr ends: {said if len(said) <= room else '…' + said[-room:]}"
