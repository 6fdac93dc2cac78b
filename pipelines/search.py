"""A search for hyper-parameters on the simulations of a run: what `simfer search` does."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.errors import ConfigError
from .engine import execute
from .folder import RunFolder
from .job import Job
from .progress import Reporter
from .stages import training_arguments

if TYPE_CHECKING:
    from ..estimators.search import Found, Trial


def run_search(job: Job, folder: RunFolder, reporter: Reporter) -> Found:
    """Search over ``search: space:``, in the folder ``search`` of the run; simulate first what is missing.

    Raises:
        ConfigError: Optuna is not installed, or there is no space.
        SimferError: Whatever simulation and training raise; what was computed before stays.
    """
    from ..estimators.search import require_optuna, search

    settings = job.config.search
    require_optuna()
    if not settings.space:
        raise ConfigError(
            "`search.space` must name something to search for, such as `learning_rate: [1e-4, 1e-2, log]`"
        )
    execute(job, folder, ["simulate"], reporter)
    with folder.in_use(), reporter.bar("search", settings.trials, "trials") as meter:

        def tell(trial: Trial) -> None:
            loss = "" if trial.loss is None else f" at {trial.loss:.4f}"
            reporter.say(f"search: {trial.state}{loss}: {_listed(trial)}{trial.reason and f': {trial.reason}'}")
            meter(1)

        found = search(
            **training_arguments(job, folder),
            space=settings.space,
            trials=settings.trials,
            seconds=settings.seconds,
            folder=folder / "search",
            on_trial=tell,
        )
    reporter.say(f"search: the best settings are in {folder / 'search' / 'best.yaml'}", style="bold")
    return found


def _listed(trial: Trial) -> str:
    return ", ".join(
        f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in trial.values.items()
    )
