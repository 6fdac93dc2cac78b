"""The whole job from Python: `run` a configuration, `load` what was left on disk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data.errors import ConfigError, MissingFileError
from ..data.results import read_tree, to_inference_data
from ..data.store import SimulationStore
from ..data.variables import Arrays
from ..diagnostics.base import CheckResult
from ..estimators.base import Posterior
from ..estimators.model import Model, load_model
from ..simulators.base import Simulator
from ..simulators.recorded import Recorded
from .engine import execute, workdir_of
from .folder import STORE, RunFolder
from .job import Job, make_job
from .progress import Reporter
from .report import check_results, posterior_rows
from .rounds import simulations_of
from .stages import STAGES
from .yaml_file import read_source

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class Run:
    """A finished run: what it made, as objects.

    Attributes:
        folder: The run folder.
        config: The complete configuration.
    """

    def __init__(self, job: Job, folder: Path, device: str | torch.device = "cpu") -> None:
        self.folder, self._device = folder, device
        self.config = job.config
        self._job = job

    @property
    def model(self) -> Model:
        """The trained estimator, loaded from its folder."""
        return load_model(self.folder / "model", self._device, modules=self._job.modules)

    @property
    def posterior(self) -> Posterior:
        """The posterior, with the run's observation as its default x."""
        posterior = self.model.posterior
        return posterior if self.observation is None else posterior.set_default_x(self.observation)

    @property
    def observation(self) -> Arrays | None:
        """Observable → array, or None."""
        return self._job.observation

    @property
    def checks(self) -> dict[str, CheckResult]:
        """Name → result of every check, from the stored draws."""
        return check_results(self._job, RunFolder(self.folder))

    @property
    def draws(self) -> torch.Tensor:
        """The stored posterior draws of the observation, ``(draw, parameter)``."""
        posterior = self.results["posterior"]
        return torch.stack([torch.as_tensor(posterior[name].to_numpy()[0]) for name in self._job.prior.names], dim=-1)

    @property
    def results(self) -> xr.DataTree:
        """All results of the observation, in ArviZ's groups."""
        return read_tree(self.folder / "posterior.zarr")

    def to_inference_data(self) -> Any:
        """The same results for ArviZ.

        Raises:
            UnsupportedError: ArviZ is not installed: ``pip install 'simfer[arviz]'``.
        """
        return to_inference_data(self.results)

    @property
    def simulations(self) -> SimulationStore:
        """The campaign's store, all rounds included."""
        return SimulationStore.open(simulations_of(self.folder))

    @property
    def summary(self) -> dict[str, Any]:
        """The numbers of every stage and check."""
        found: dict[str, Any] = json.loads((self.folder / "summary.json").read_text(encoding="utf-8"))
        return found

    @property
    def report(self) -> Path:
        """The page to read."""
        return self.folder / "report.html"

    def corner(self, reference: Any = None) -> Figure:
        """Marginals and pairs of the posterior, ``reference`` draws as outlines."""
        from ..diagnostics.plots import plot_corner

        return plot_corner(self.draws.numpy(), self._job.prior.variables, reference=reference)

    def __repr__(self) -> str:
        rows = [f"  {name}: {mean} ± {sd}" for name, mean, sd, *_ in posterior_rows(self.summary)]
        verdicts = ", ".join(f"{name} {check['verdict']}" for name, check in self.summary["checks"].items())
        return "\n".join([f"Run {self.config.name} in {self.folder}", *rows, f"  checks: {verdicts or 'none'}"])


def run(
    config: str | Path | Mapping[str, Any],
    *,
    workdir: str | Path | None = None,
    overrides: Mapping[str, Any] | None = None,
    simulator: Simulator | None = None,
    quiet: bool = False,
) -> Run:
    """Do the whole job: simulate, train, diagnose, infer, report. What is done already is not done again.

    Args:
        config: A YAML file, the name of a shipped recipe, or a mapping of the same form.
        workdir: The run folder; ``runs/NAME`` when None.
        overrides: ``{"simulate.rows": 20_000}`` and the like.
        simulator: An object in place of the configuration's ``simulator:``.
        quiet: Print nothing.

    Raises:
        ConfigError: All that is wrong with the configuration.
        SimferError: Whatever else is wrong; what was computed before stays.
    """
    from rich.console import Console

    source = read_source(config)
    for key, value in (overrides or {}).items():
        source.override(key, value)
    job = make_job(source, simulator)
    folder = workdir_of(job, workdir)
    execute(job, folder, list(STAGES), Reporter(None if quiet else Console()))
    return Run(job, folder.path)


def load(
    folder: str | Path, *, device: str | torch.device = "cpu", modules: Mapping[str, Any] | None = None
) -> Run | Model:
    """Open a run folder or a model folder.

    Args:
        folder: Of a run or of a model.
        device: Where the model is asked; any, wherever it was trained.
        modules: Networks and symmetries of your own that a model is built of, by name; a model folder imports nothing.

    Raises:
        MissingFileError: Neither, or a file of a model is missing.
        ModelFormatError: A file of a model is damaged, or was written by a newer simfer.
        UnsupportedError: There is no such device here.
    """
    folder = Path(folder)
    if any((folder / name).is_file() for name in ("model.json", "weights.safetensors")):
        return load_model(folder, device, modules=modules)
    if (folder / "config.yaml").is_file():
        return Run(_job_of(folder), folder, device)
    raise MissingFileError(f"no run and no model at {folder}: a run has `config.yaml`, a model has `model.json`")


def _job_of(folder: Path) -> Job:
    """The job of a finished run; where its simulator is not to be had, what its store says of it does."""
    try:
        return make_job(read_source(folder / "config.yaml"))
    except ConfigError:
        source = read_source(folder / "config.yaml")
        store = SimulationStore.open(folder / STORE)
        observations = {}
        if source.values.get("observation") is not None:
            observed = read_tree(folder / "posterior.zarr")["observed_data"]
            observations = {"stored": {name: observed[name].to_numpy() for name in store.conditions.names}}
            source.values["observation"] = "stored"
        return make_job(source, Recorded(store, observations))
