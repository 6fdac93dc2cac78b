"""The five stages of a run: what each reads, makes and reports. What decides whether one runs is in `engine`."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.errors import SimulatorError
from ..data.files import remove
from ..data.parts import kept
from ..data.store import SimulationStore
from ..data.variables import Arrays, Variables
from ..simulators.begin import identity
from ..simulators.imported import Imported
from ..simulators.progress import progress_of
from ..simulators.recorded import Recorded
from .config import Config
from .filling import fill
from .folder import ROUNDS, STORE, RunFolder
from .job import Job
from .progress import Reporter
from .refining import pose_shifts, refine_draws
from .rounds import numbers_of, run_rounds, simulations_of
from .staging import staged

if TYPE_CHECKING:
    from ..diagnostics.attacks import AttackSet
    from ..diagnostics.calibration import CalibrationSet
    from ..estimators.base import ChainReport, Posterior
    from ..estimators.model import Model

Numbers = dict[str, Any]

_INFERRED = "posterior.parts"  # of an inference, while it is made
_PARTS = "calibration.parts"  # of what the checks are about, while it is made
_LEAST_SETS = 100  # of replicated data: fewer give no p-value below 0.01


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage.

    Attributes:
        name: As on the command line.
        needs: Stages whose outputs it reads.
        outputs: What it makes in the run folder, all of it.
        precious: Whether outdated outputs are set aside rather than removed.
        inputs: The part of the job that decides what it makes, as JSON.
        run: Makes the outputs, going on from whatever part of them is there; returns numbers for ``summary.json``.
        grows: Whether outputs made from the first inputs are a part of those of the second.
        sometimes: What it makes besides, of some jobs.
    """

    name: str
    needs: tuple[str, ...]
    outputs: tuple[str, ...]
    precious: bool
    inputs: Callable[[Job], dict[str, Any]]
    run: Callable[[Job, RunFolder, Reporter], Numbers]
    grows: Callable[[dict[str, Any], dict[str, Any]], bool] = lambda old, new: False
    sometimes: tuple[str, ...] = ()

    @property
    def everything(self) -> tuple[str, ...]:
        """All that it may have made."""
        return (*self.outputs, *self.sometimes)


def _simulate_inputs(job: Job) -> dict[str, Any]:
    if isinstance(job.simulator, Imported):
        return {**job.simulator.campaign(), "rows": job.config.simulate.rows}
    own = identity(job.simulator, job.prior, job.config.seed, job.context)
    how = job.config.simulate
    shards = {"shards": how.shards} if how.shards else {}  # of which blocks may be made smaller
    return {**own, "rows": how.rows, "block": how.block, **shards}


def _more_rows(old: dict[str, Any], new: dict[str, Any]) -> bool:
    rows = old.get("rows")
    return isinstance(rows, int) and {**old, "rows": new["rows"]} == new and rows < new["rows"]


def _simulate(job: Job, folder: RunFolder, reporter: Reporter) -> Numbers:
    config = job.config
    if isinstance(job.simulator, Imported):
        return _import(job.simulator, config, folder, reporter)
    with reporter.bar("simulate", config.simulate.rows, "rows") as meter:
        how = config.simulate
        store = fill(
            job, folder / STORE, how.rows, block=how.block, shards=how.shards, there=meter.skip, progress=meter
        )
    return _counted(store, reporter, config.simulate.on_invalid)


def _import(simulator: Imported, config: Config, folder: RunFolder, reporter: Reporter) -> Numbers:
    """Copying is all or nothing: a store of so many rows is whole, unless damaged shards of it were given up."""
    path, rows = folder / STORE, config.simulate.rows
    if path.exists():
        store = SimulationStore.open(path)
        if store.rows == rows and not store.pending_shards():
            return _counted(store, reporter, config.simulate.on_invalid)
        reporter.say(f"import: copying all {rows:,} rows anew; the store that is there is replaced when they are whole")
    fresh = path.with_name(f".{path.name}.partial")  # of a killed run it is removed when the folder is next in use
    with reporter.bar("import", rows, "rows") as meter:
        simulator.write(fresh, rows, meter)
    remove(path)
    fresh.rename(path)
    return _counted(SimulationStore.open(path), reporter, config.simulate.on_invalid)


def _counted(store: SimulationStore, reporter: Reporter, on_invalid: str) -> Numbers:
    """Rows by status, and why some are not ok, said once."""
    found = progress_of(store)
    bad = store.rows - found.counts["ok"]
    if bad:
        kinds = ", ".join(f"{n:,} {name}" for name, n in found.counts.items() if n and name != "ok")
        reason, (_, row) = next(iter(found.reasons.items()))
        reporter.say(
            f"simulate: {bad:,} of {store.rows:,} rows are not ok ({kinds}; `on_invalid: {on_invalid}`), most of them "
            f"like row {row}: {reason}",
            style="yellow",
        )
    reasons = {"reasons": {reason: n for reason, (n, _) in found.reasons.items()}} if bad else {}
    return {"rows": store.rows, **{f"rows_{name}": n for name, n in found.counts.items()}, **reasons}


def _train_inputs(job: Job) -> dict[str, Any]:
    config = job.config
    train = config.train.model_dump(mode="json")
    if train["loader"] == "device":  # the same results
        train["loader"] = "memory"
    if config.train.method != "nre":
        train.pop("ratio")
    for name in ("fisher", "trades", "adversarial", "noise", "symmetry"):
        if train[name] is None:
            train.pop(name)
    own: dict[str, Any] = {}
    if config.train.rounds > 1:
        own = {"observation": {name: values.tolist() for name, values in (job.observation or {}).items()}}
    else:
        del train["rounds"], train["epsilon"]
    return {
        **own,
        "train": train,
        "on_invalid": config.simulate.on_invalid,
        "pairs": config.pairs,
        "seed": config.seed,
    }


def _train(job: Job, folder: RunFolder, reporter: Reporter) -> Numbers:
    _refuse_invalid(SimulationStore.open(folder / STORE), job.config)
    rounds = None
    if job.config.train.rounds > 1:
        rounds = run_rounds(job, folder, reporter)
        _counted(SimulationStore.open(simulations_of(folder.path)), reporter, job.config.simulate.on_invalid)
    model = rounds.model if rounds else _trained(job, folder, reporter)
    model.save(folder / "model")
    facts = model.facts
    best = facts["loss"]["best_epoch"]
    return {
        **(numbers_of(rounds) if rounds else {}),
        "epochs": len(facts["loss"]["train"]),
        "best_epoch": best + 1,
        "validation_loss": facts["loss"]["validation"][best],
        "training_loss": facts["loss"]["train"][best],
        "rows_train": facts["rows"]["train"],
        "rows_validation": facts["rows"]["validation"],
        "loader": facts["loader"]["kind"],
        "weights": facts["weights"],
        "transforms": facts["transforms"],
        **{name: facts[name] for name in ("ensemble", "fisher") if name in facts},
    }


def _trained(job: Job, folder: RunFolder, reporter: Reporter) -> Model:
    from ..estimators.schedule import budget
    from ..estimators.train import train

    epochs = budget(job.config.train, job.config.rows_train).epochs * job.config.train.training().trainings
    local = job.config.local
    to = local.stage_to if local.nodes == 1 else None  # other nodes would not find the copy
    with staged(folder / STORE, to) as store, reporter.bar("train", epochs, "epochs") as meter:
        return train(
            **training_arguments(job, folder, store),
            folder=folder / "checkpoints",
            logs=folder / "logs",
            on_epoch=meter.epoch,
        )


def training_arguments(job: Job, folder: RunFolder, simulations: Path | None = None) -> dict[str, Any]:
    """What `train` is given, but for its folder: the simulations, those of the run by default, settings and hardware."""
    from ..data.splits import held_out

    config = job.config
    store = SimulationStore.open(simulations or folder / STORE)
    _refuse_invalid(store, config)
    return {
        "theta": store,
        "prior": job.prior,
        "rows": ~held_out(store, config.pairs),
        "estimator": config.train.estimator(impute=config.simulate.on_invalid == "impute"),
        "training": config.train.training(),
        "observables": job.conditions,
        "seed": config.seed,
        "hardware": job.config.local.hardware(),
    }


def _refuse_invalid(store: SimulationStore, config: Config) -> None:
    counts = store.counts()
    bad = counts["invalid"] + counts["failed"] + counts["timeout"]
    if bad and config.simulate.on_invalid == "fail":
        raise SimulatorError(
            f"{bad} of {store.rows} simulations are unusable and `simulate.on_invalid` is `fail`: use `mask`"
        )


def _diagnose_inputs(job: Job) -> dict[str, Any]:
    config = job.config
    return {
        "checks": [{"name": check.name, **asdict(check)} for check in job.checks],  # type: ignore[call-overload]
        "draws": config.diagnose.draws,
        "pairs": config.pairs,
        "seed": config.seed,
        **_sampler_inputs(config),
    }


def _sampler_inputs(config: Config) -> dict[str, Any]:
    sampler = config.infer.sampler
    return {"sampler": sampler.model_dump(mode="json")} if sampler else {}


def _posterior(job: Job, folder: RunFolder) -> Posterior:
    """The trained one, sampled as the configuration says."""
    from ..estimators.mcmc import MCMCPosterior
    from ..estimators.model import load_model

    posterior = load_model(folder / "model", modules=job.modules).posterior
    sampler = job.config.infer.sampler
    return posterior.with_sampler(sampler) if sampler and isinstance(posterior, MCMCPosterior) else posterior


def _sampled(stage: str, fared: ChainReport | None, reporter: Reporter) -> Numbers:
    if fared is None:
        return {}
    reporter.say(f"{stage}: {fared}")
    return {"sampler": fared.to_json()}


def _diagnose(job: Job, folder: RunFolder, reporter: Reporter) -> Numbers:
    from ..data.loaders import valid_rows
    from ..data.splits import held_out
    from ..diagnostics.attacks.check import ask

    config = job.config
    if not job.checks:
        return {}
    impute = config.simulate.on_invalid == "impute"
    with staged(simulations_of(folder.path), config.local.stage_to) as simulations:
        store = SimulationStore.open(simulations)  # the last rows: of rounds those of the last one
        theta, x = valid_rows(store, held_out(store, config.pairs), impute=impute)
    posterior = _posterior(job, folder)
    calibration = _calibration(job, posterior, theta, x, folder / _PARTS, reporter)
    sampled = _sampled("diagnose", calibration.fared, reporter)
    calibration.save(folder / "calibration.zarr")
    attacked = _attacked(job, posterior, theta, x, folder, reporter)
    remove(folder / _PARTS)
    results = [ask(check, calibration, attacked) for check in job.checks]
    for result in results:
        reporter.say(f"{result.name}: {result.verdict} — {result.finding}")
    return {"pairs": calibration.pairs, "checks": {result.name: result.to_json() for result in results}, **sampled}


def _calibration(
    job: Job, posterior: Posterior, theta: np.ndarray, x: Arrays, parts: Path, reporter: Reporter
) -> CalibrationSet:
    from ..diagnostics.calibration import CalibrationSet

    draws, seed = job.config.diagnose.draws, job.config.seed
    with reporter.bar("diagnose", len(theta), "pairs") as meter:
        return CalibrationSet.draw(posterior, theta, x, draws=draws, seed=seed, parts=parts, progress=meter)


def _attacked(
    job: Job, posterior: Posterior, theta: np.ndarray, x: Arrays, folder: RunFolder, reporter: Reporter
) -> AttackSet | None:
    from ..diagnostics.attacks.check import Attack

    simulator = None if isinstance(job.simulator, Imported | Recorded) else job.simulator
    for check in job.checks:
        if isinstance(check, Attack):
            with reporter.bar("attack", check.evaluations, "steps") as meter:
                found = check.attack(
                    posterior,
                    theta,
                    x,
                    simulator=simulator,
                    protection=job.protection,
                    seed=job.config.seed,
                    parts=folder / _PARTS,
                    progress=meter,
                )
            found.save(folder / "attack.zarr")
            return found
    return None


def _infer_inputs(job: Job) -> dict[str, Any]:
    observed = job.observation or {}
    return {
        "observation": {name: values.tolist() for name, values in observed.items()},
        "infer": job.config.infer.model_dump(mode="json", exclude={"sampler"}),
        "seed": job.config.seed,
        **_sampler_inputs(job.config),
    }


def _infer(job: Job, folder: RunFolder, reporter: Reporter) -> Numbers:
    from ..data.results import columns, data_dataset, draws_dataset, tree, write_tree
    from ..diagnostics.calibration import Fared
    from ..diagnostics.predictive import predictive_check, replicate

    if job.observation is None:
        reporter.say("infer: nothing to do, the configuration has no `observation`")
        return {}
    config, parameters = job.config, job.prior.variables
    observables = Variables(job.observed[name] for name in job.simulator.observables.names)
    observed = {name: job.observation[name] for name in observables.names}
    if job.trials:
        reporter.say(f"infer: {job.trials} independent observations of the same parameters")
    posterior = _posterior(job, folder)
    seen = {**job.observation, **job.context_of_trials} if job.trials else job.observation
    outside = _outside(posterior, seen, reporter)
    parts = folder / _INFERRED
    drawn = kept(parts / "draws.npz", partial(_drawn, job, posterior))
    fared = Fared.unpacked(drawn["fared"])
    theta, log_density = amortised, _ = drawn["theta"], drawn["lp"]
    refined = refine_draws(job, posterior, parts, reporter)
    if refined and not refined.refusal:
        theta, log_density = refined.resample(config.infer.draws, np.random.default_rng((config.seed, 8)))
    prior = job.prior.sample(config.infer.draws, np.random.default_rng((config.seed, 6)))
    groups = {
        "posterior": draws_dataset(parameters, columns(parameters, theta)),
        "prior": draws_dataset(parameters, columns(parameters, prior)),
        "sample_stats": _log_probs(log_density),
        "observed_data": data_dataset(job.observed, job.observation),
    }
    numbers: Numbers = {
        "posterior": summarise(theta, parameters.names),
        "outside_training": outside,
        **_sampled("infer", fared, reporter),
    }
    if refined:
        groups["amortised"] = draws_dataset(parameters, columns(parameters, amortised))
        moved = pose_shifts(refined, parameters.names, amortised, theta, reporter)
        numbers |= {"amortised": summarise(amortised, parameters.names), "refine": {**refined.to_json(), **moved}}
    if config.infer.predictive and isinstance(job.simulator, Imported):
        reporter.say("predictive: no check, because imported simulations come without a simulator to replicate data by")
    elif config.infer.predictive:
        sets = max(config.infer.predictive // job.trials, _LEAST_SETS) if job.trials else config.infer.predictive
        context = job.context_of_trials if job.trials else job.observed_context
        again = partial(replicate, job.simulator, theta[:sets], config.seed, context, job.protection, job.trials)
        replicates = kept(parts / "replicates.npz", again)
        groups["posterior_predictive"] = draws_dataset(observables, replicates)
        result = predictive_check(replicates, observed, observables)
        reporter.say(f"{result.name}: {result.verdict} — {result.finding}")
        numbers["checks"] = {result.name: result.to_json()}
    write_tree(tree(groups, {"run": config.name}), folder / "posterior.zarr")
    remove(parts)
    return numbers


def _drawn(job: Job, posterior: Posterior) -> Arrays:
    """Draws given the observation, and how the chains fared, if there were any."""
    from ..diagnostics.calibration import Fared

    draws, lp = posterior.sample_with_log_prob((job.config.infer.draws,), job.one_observation, seed=job.config.seed)
    return {"theta": draws[:, 0].numpy(), "lp": lp[:, 0].numpy(), "fared": Fared.packed(posterior)}


def _outside(posterior: Posterior, x: Arrays, reporter: Reporter) -> list[str]:
    """Entries of the observation beyond the training data, said once and here."""
    from ..data.ranges import OutsideTrainingWarning, advice

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", OutsideTrainingWarning)
        entries = posterior.outside(x)
    if entries:
        reporter.say(f"infer: {advice(1, entries, 1)}", style="yellow")
    return [str(entry) for entry in entries]


def _log_probs(values: np.ndarray) -> Any:
    import xarray as xr

    return xr.Dataset({"lp": (("chain", "draw"), values[None])})


def summarise(theta: np.ndarray, names: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Mean, sd and quantiles of every parameter."""
    levels = {"q05": 0.05, "q10": 0.1, "median": 0.5, "q90": 0.9, "q95": 0.95}
    quantiles: Arrays = {key: np.quantile(theta, level, axis=0) for key, level in levels.items()}
    columns = {"mean": theta.mean(0), "sd": theta.std(0), **quantiles}
    return {name: {key: float(values[i]) for key, values in columns.items()} for i, name in enumerate(names)}


def _report_inputs(job: Job) -> dict[str, Any]:
    return {"name": job.config.name}


def _report(job: Job, folder: RunFolder, reporter: Reporter) -> Numbers:
    from .report import write_report, write_summary

    write_summary(job, folder)
    write_report(job, folder)
    return {}


STAGES: dict[str, Stage] = {
    stage.name: stage
    for stage in (
        Stage("simulate", (), (STORE,), True, _simulate_inputs, _simulate, _more_rows),
        Stage("train", ("simulate",), ("model", "checkpoints"), True, _train_inputs, _train, sometimes=(ROUNDS,)),
        Stage(
            "diagnose",
            ("simulate", "train"),
            ("calibration.zarr",),
            False,
            _diagnose_inputs,
            _diagnose,
            sometimes=("attack.zarr", _PARTS),
        ),
        Stage("infer", ("train",), ("posterior.zarr",), False, _infer_inputs, _infer, sometimes=(_INFERRED,)),
        Stage("report", ("diagnose", "infer"), ("summary.json", "report.html"), False, _report_inputs, _report),
    )
}
