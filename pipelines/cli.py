"""The command line.

Exit codes: 0 done, 1 a bug (or of ``check-symmetry``: no), 2 bad input, 3 a check failed under ``--strict``, 130 interrupted.
"""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .folder import RunFolder
    from .job import Job

NOT_SYMMETRIC, BAD_INPUT, CHECK_FAILED, INTERRUPTED = 1, 2, 3, 130

app = typer.Typer(
    name="simfer",
    help="Simulation-based inference: simulate, train, diagnose, infer, report.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

ConfigArgument = Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file, or the name of a shipped recipe.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set simulate.rows=20_000")
]
WorkdirOption = Annotated[
    Path | None, typer.Option("--workdir", metavar="DIR", help="The run folder; runs/NAME by default.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
DryOption = Annotated[bool, typer.Option("--dry-run", help="Write the batch files and submit nothing.")]
StrictOption = Annotated[bool, typer.Option("--strict", help="Exit with 3 when a check fails.")]


@app.command()
def run(
    config: ConfigArgument,
    to: Annotated[str, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")] = "report",
    sets: SetOption = None,
    workdir: WorkdirOption = None,
    strict: StrictOption = False,
) -> None:
    """Do the whole job; what is done already is not done again."""
    from ..data.errors import ConfigError, did_you_mean
    from .stages import STAGES

    if to not in STAGES:
        raise ConfigError(f"`--to`: unknown stage `{to}`; {did_you_mean(to, STAGES)}")
    names = list(STAGES)
    _execute(config, names[: names.index(to) + 1], sets, workdir, strict)


def _stage_command(name: str, text: str) -> None:
    def command(
        config: ConfigArgument, sets: SetOption = None, workdir: WorkdirOption = None, strict: StrictOption = False
    ) -> None:
        _execute(config, [name], sets, workdir, strict)

    app.command(name, help=f"{text}, and what that needs.")(command)


for _name, _text in {
    "simulate": "Fill the store of simulations",
    "train": "Train the estimator",
    "diagnose": "Check the trained posterior",
    "infer": "Infer the observation's posterior",
    "report": "Write summary.json and report.html",
}.items():
    _stage_command(_name, _text)


@app.command()
def search(config: ConfigArgument, sets: SetOption = None, workdir: WorkdirOption = None) -> None:
    """Search for hyper-parameters over `search: space:`; simulates what is missing, goes on with an earlier search."""
    from rich.console import Console

    from .progress import Reporter
    from .search import run_search

    job, folder = _job(config, sets, workdir)
    try:
        found = run_search(job, folder, Reporter(Console()))
    except KeyboardInterrupt:
        _fail("interrupted: nothing is lost; the same command continues", INTERRUPTED)
    typer.echo(found.yaml)


@app.command()
def plan(config: ConfigArgument, sets: SetOption = None, workdir: WorkdirOption = None) -> None:
    """Say what `run` would do, how much and for how long; do nothing."""
    from .tables import show_jobs_to_be, show_plan

    job, folder = _job(config, sets, workdir)
    show_plan(job, folder)
    if job.config.local.slurm != type(job.config.local.slurm)():
        show_jobs_to_be(job, folder)


@app.command()
def submit(
    config: ConfigArgument,
    sets: SetOption = None,
    workdir: WorkdirOption = None,
    dry_run: DryOption = False,
) -> None:
    """Do the whole job on a Slurm cluster, as a chain of batch jobs; what is done already is not done again."""
    from rich.console import Console

    from .progress import Reporter
    from .slurm.submit import submit

    job, folder = _job(config, sets, workdir)
    submit(job, folder, Reporter(Console()), dry=dry_run)


@app.command()
def resume(
    run_folder: RunArgument,
    keep: Annotated[
        bool, typer.Option("--keep", help="Keep simulations that are done, although the simulator was mended since.")
    ] = False,
    dry_run: DryOption = False,
) -> None:
    """Submit what is missing of a run that was submitted before."""
    from rich.console import Console

    from .progress import Reporter
    from .slurm.submit import resume

    resume(run_folder, Reporter(Console()), keep=keep, dry=dry_run)


@app.command()
def cancel(run_folder: RunArgument) -> None:
    """Cancel the batch jobs of a run; what is done stays."""
    from rich.console import Console

    from .progress import Reporter
    from .slurm.submit import cancel

    cancel(run_folder, Reporter(Console()))


@app.command("slurm-task", hidden=True)
def slurm_task(
    stage: Annotated[str, typer.Argument(metavar="STAGE")],
    shards: Annotated[str | None, typer.Option("--shards", metavar="FILE")] = None,
) -> None:
    """Do the work of one batch job, in the run folder; what `submit` writes calls this."""
    from .slurm.task import run_task

    try:
        run_task(Path(), stage, shards)
    except KeyboardInterrupt:
        _fail("interrupted: what is done is saved; the job goes on when it is requeued", INTERRUPTED)


@app.command("slurm-map", hidden=True)
def slurm_map() -> None:
    """Do what a task of an array owns; `executor: slurm` calls this, in the folder of the array."""
    from .executors.slurm import work

    try:
        work(Path())
    except KeyboardInterrupt:
        _fail("interrupted: what is done is saved; the job goes on when it is requeued", INTERRUPTED)


@app.command()
def status(
    run_folder: Annotated[Path, typer.Argument(metavar="RUN|STORE", help="A run folder or a store.")],
    watch: Annotated[bool, typer.Option("--watch", help="Go on until the jobs of the run have ended.")] = False,
    interval: Annotated[float, typer.Option("--interval", min=1.0, help="Seconds between looks.")] = 30.0,
) -> None:
    """Say how far a run or a campaign has come: rows, rate, bytes, time left, why rows failed, and its batch jobs."""
    from .tables import show_status, watch_status

    if watch:
        watch_status(run_folder, interval)
    else:
        show_status(run_folder)


@app.command()
def verify(
    path: Annotated[Path, typer.Argument(metavar="RUN|STORE", help="A run folder or a store.")],
    repair: Annotated[bool, typer.Option("--repair", help="Give damaged shards up, to be simulated anew.")] = False,
) -> None:
    """Read every byte of a store: checksums, attributes, seeds; name what is damaged."""
    from rich.console import Console

    from .progress import Reporter
    from .upkeep import verify_or_repair

    verify_or_repair(path, repair=repair, reporter=Reporter(Console()))


@app.command()
def retry(config: ConfigArgument, sets: SetOption = None, workdir: WorkdirOption = None) -> None:
    """Try simulations that failed or timed out once more, with new random numbers."""
    from rich.console import Console

    from .progress import Reporter
    from .upkeep import retry_failed

    job, folder = _job(config, sets, workdir)
    retry_failed(job, folder, Reporter(Console()))


@app.command("import")
def import_(
    source: Annotated[
        str,
        typer.Argument(metavar="CONFIG", help="A YAML file with `simulator: {import: …}`, or a file simfer exported."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new store, ending in .zarr.")],
    sets: SetOption = None,
) -> None:
    """Make a store of simulations in HDF5, NetCDF, npz, CSV or Parquet."""
    from .exchange import import_store

    import_store(source, out, sets or [])


@app.command()
def export(
    source: Annotated[Path, typer.Argument(metavar="STORE|RUN|MODEL", help="A store, a run folder or a model folder.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The new file, ending in .h5, .hdf5, .nc or .pt2.")],
    what: Annotated[
        str | None,
        typer.Option("--what", metavar="simulations|posterior|sampler|log_prob", help="The last two to .pt2."),
    ] = None,
) -> None:
    """Write simulations or draws to HDF5 or NetCDF, or the posterior as a program (.pt2) that runs without simfer."""
    from .exchange import export_file

    export_file(source, out, what)


@app.command()
def merge(
    stores: Annotated[
        list[Path], typer.Argument(metavar="STORE|RUN...", help="Two or more; the last is the new store.")
    ],
) -> None:
    """Merge campaigns of the same model into a new store: `simfer merge A B OUT`."""
    from .exchange import merge_stores

    merge_stores(stores[:-1], stores[-1])


@app.command("list")
def list_(what: Annotated[str, typer.Argument(metavar="simulators|estimators|checks|recipes")]) -> None:
    """List what can be named in a configuration."""
    from .tables import show_list

    show_list(what)


@app.command()
def show(name: Annotated[str, typer.Argument(metavar="NAME", help="A simulator, estimator, check or recipe.")]) -> None:
    """Describe one simulator, estimator, check or recipe."""
    from .tables import show_one

    show_one(name)


@app.command("check-symmetry")
def check_symmetry(
    simulator: Annotated[
        str, typer.Argument(metavar="SIMULATOR", help="A name, module:Class, file.py:Class, or a YAML file.")
    ],
    rows: Annotated[int, typer.Option("--rows", min=100, help="How many parameters are moved.")] = 500,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of parameters and noise.")] = 0,
) -> None:
    """Test the symmetry that a simulator declares; exit with 1 where it does not hold."""
    from ..diagnostics.symmetry import check_symmetry
    from .tables import show_symmetry

    found = check_symmetry(**_forward(simulator), rows=rows, seed=seed)
    show_symmetry(found)
    if not found.passed:
        sys.exit(NOT_SYMMETRIC)


new = typer.Typer(help="Write the skeleton of a plugin.", no_args_is_help=True)
app.add_typer(new, name="new")


@new.command("simulator")
def new_simulator(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the package and of the simulator in YAML.")],
    folder: Annotated[Path, typer.Option("--folder", metavar="DIR", help="Where its folder is made.")] = Path(),
) -> None:
    """Write an installable package with a simulator, its tests and a recipe."""
    from .new import new_simulator

    made = new_simulator(name, folder)
    typer.echo(f"{made}: pip install -e '{made}[test]' && pytest {made} && simfer run {made}/recipes/{name}.yaml")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the configuration, for editors."""
    import json

    from .config import Config

    typer.echo(json.dumps(Config.model_json_schema(), indent=2))


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, turning errors into one message and an exit code."""
    try:
        app(args=None if arguments is None else list(arguments))
    except OSError as error:
        _fail(_operating_system(error), BAD_INPUT)
    except Exception as error:
        from ..data.errors import ConfigError, SimferError

        if not isinstance(error, SimferError):
            raise
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        _fail("\n".join(problems), BAD_INPUT)


def _operating_system(error: OSError) -> str:
    from ..data.errors import SimferError

    if isinstance(error, SimferError):
        return str(error)
    remedies = {
        errno.ENOSPC: "free some space (`df -h` tells how much there is) and run the same command again",
        errno.EDQUOT: "your quota there is spent (`quota -s`, or `lfs quota -h` on Lustre, tells how much it is): free some space "
        "and run the same command again",
    }
    remedy = remedies.get(error.errno or 0, "mend that and run the same command again")
    where = f" ({error.filename})" if error.filename else ""
    return f"{error.strerror or error}{where}: {remedy}; what is done is kept"


def _fail(text: str, code: int) -> None:
    for line in text.splitlines():
        typer.echo(f"simfer: {line}", err=True)
    sys.exit(code)


def _job(config: str, sets: list[str] | None, workdir: Path | None) -> tuple[Job, RunFolder]:
    from .engine import workdir_of
    from .job import make_job
    from .yaml_file import override_all, read_source

    source = read_source(config)
    override_all(source, sets or [])
    job = make_job(source)
    return job, workdir_of(job, workdir)


def _forward(simulator: str) -> dict[str, Any]:
    """The forward model of a name, or of a configuration with its prior, context and the symmetry that it trains with."""
    from ..estimators.symmetry.view import declared_symmetry
    from ..simulators.campaign import Reference

    if not simulator.endswith((".yaml", ".yml")):
        return {"simulator": Reference(simulator).load()}
    job, _ = _job(simulator, None, None)
    symmetry = declared_symmetry(job.prior, job.conditions, trained) if (trained := job.symmetry) else None
    return {"simulator": job.simulator, "prior": job.prior, "context": job.context, "symmetry": symmetry}


def _execute(config: str, stages: list[str], sets: list[str] | None, workdir: Path | None, strict: bool) -> None:
    from rich.console import Console

    from .engine import execute
    from .progress import Reporter
    from .tables import failed_checks, show_outcome
    from .tasks import Task, follow, leading

    job, folder = _job(config, sets, workdir)
    task = Task.here()
    if task and task.rank:
        follow(task, folder)
        return
    try:
        with leading(task, folder, job.config.local):
            execute(job, folder, stages, Reporter(Console()))
    except KeyboardInterrupt:  # here, because Typer would end the process without a word
        _fail("interrupted: nothing is lost; the same command continues", INTERRUPTED)
    if "report" in stages:
        show_outcome(folder)
    if strict and failed_checks(folder):
        sys.exit(CHECK_FAILED)


if __name__ == "__main__":
    main()
