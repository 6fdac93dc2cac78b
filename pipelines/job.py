"""A job: a configuration whose names have become objects, checked against each other before anything runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..data import registry
from ..data.errors import ConfigError, did_you_mean
from ..data.observations import read_observation
from ..data.variables import Arrays, Variable, Variables
from ..diagnostics.base import Asks, Check
from ..estimators.embeddings.own import absolute_names, imported
from ..estimators.loggers import require_loggers
from ..estimators.preprocess import Preprocess, build_preprocess
from ..estimators.settings import LIKELIHOODS, EstimatorSettings, SymmetrySettings
from ..estimators.space import read_dimension
from ..estimators.symmetry.blur import build_blur
from ..estimators.symmetry.canonical import build_canonical
from ..estimators.symmetry.own import absolute_name, imported_symmetry, with_object
from ..estimators.symmetry.view import declared_symmetry
from ..simulators.base import ContextPrior, HasLikelihood, HasSymmetry, Simulator, context_of
from ..simulators.block import Protection
from ..simulators.campaign import Reference
from ..simulators.entries import absolute
from ..simulators.imported import Imported
from ..simulators.prior import Prior
from .config import CheckConfig, Config
from .context import read_context
from .executors.dask import require_dask
from .forward import absolute_simulator, find_simulator
from .imports import with_rows
from .problems import Problems
from .yaml_file import Source, validate


@dataclass(frozen=True, slots=True)
class Job:
    """All that a run needs.

    Attributes:
        config: Validated.
        simulator: The forward model.
        reference: The same by name, for other processes; None when it was given as an object.
        prior: With the configuration's overrides.
        context: Likewise, of the known nuisance; None where there is none.
        observation: Observable, or name of a context → array; or None. ``(trial, *shape)`` where there are several
            independent ones.
        checks: Those to run.
    """

    config: Config
    simulator: Simulator
    reference: Reference | None
    prior: Prior
    context: ContextPrior | None
    observation: Arrays | None
    checks: tuple[Check, ...]

    @property
    def protection(self) -> Protection:
        """What is done about simulations that fail."""
        simulate = self.config.simulate
        return Protection(simulate.timeout, simulate.retries, simulate.isolate)

    @property
    def modules(self) -> dict[str, Any]:
        """Networks, a symmetry and what gives a pose, of the user's own, that the configuration names."""
        return imported(self.config.train.embedding) | imported_symmetry(self.config.train.symmetry)

    @property
    def symmetry(self) -> SymmetrySettings | None:
        """What training takes to be symmetric, with an object where the configuration has its name."""
        given = self.config.train.symmetry
        return with_object(given, imported_symmetry(given))

    @property
    def conditions(self) -> Variables:
        """What the posterior is conditioned on: x and context."""
        return Variables([*self.simulator.observables, *(self.context.variables if self.context else ())])

    @property
    def trials(self) -> int | None:
        """How many independent observations there are, if several."""
        first = self.simulator.observables.names[0]
        with_trials = self.observation is not None and self.observed[first].shape != self.conditions[first].shape
        return self.observed[first].shape[0] if with_trials else None

    @property
    def observed(self) -> Variables:
        """`conditions` in the shapes of the observation."""
        return Variables(_as_observed(v, (self.observation or {}).get(v.name)) for v in self.conditions)

    @property
    def one_observation(self) -> Arrays:
        """The observation as one row of what is asked in batches, several independent ones as ``(1, trial, *shape)``."""
        observation = self.observation or {}
        return {name: values[None] for name, values in observation.items()} if self.trials else observation

    @property
    def context_of_trials(self) -> Arrays:
        """`observed_context`, a row for each of several independent observations."""
        shapes = {v.name: (self.trials or 1, *v.shape) for v in (self.context.variables if self.context else ())}
        return {name: np.broadcast_to(values, shapes[name]).copy() for name, values in self.observed_context.items()}

    @property
    def observed_context(self) -> Arrays:
        """The part of the observation that is context."""
        names = self.context.variables.names if self.context else ()
        return {name: self.observation[name] for name in names} if self.observation else {}


def make_job(source: Source, simulator: Simulator | None = None) -> Job:
    """Validate a configuration and resolve its names.

    Args:
        source: As written.
        simulator: Takes the place of ``simulator:``, for notebooks.

    Raises:
        ConfigError: With every mistake that was found.
    """
    if simulator is not None:
        kind = type(simulator)
        source.values["simulator"] = f"{kind.__module__}:{kind.__qualname__}"
    config, problems = validate(source)
    found, reference = Problems(source, problems), None
    if simulator is None:
        simulator, reference = find_simulator(config, source.folder, found)
    if isinstance(simulator, Imported):
        with found.at("simulate", "rows"):
            config = with_rows(config, simulator.rows)
    with found.at("train", "method"):
        _require_estimator(config.train.method)
    impute = config.simulate.on_invalid == "impute"
    for key, given in config.search.space.items():
        with found.at("search", "space", key):
            read_dimension(key, given, config.train.estimator(impute=impute), config.train.training())
    checks = tuple(c for i, item in enumerate(config.diagnose.checks) if (c := _check(item, i, found)))
    if simulator is None:
        raise ConfigError(found.in_order())
    prior = simulator.prior if isinstance(simulator, Imported) else _prior(simulator, config, source.folder, found)
    with found.at("local", "executor"):
        if config.local.executor == "dask":
            require_dask()
    with found.at("local", "loggers"):
        require_loggers(config.local.loggers)
    with found.at("train", "transforms"):
        Preprocess(_conditions(simulator), config.train.transforms)
    with found.at("train", "embedding"):
        imported(config.train.embedding, source.folder)
        build_preprocess(
            _conditions(simulator), EstimatorSettings(embedding=config.train.embedding, whiten=config.train.whiten)
        )
    with found.at("train", "symmetry"):
        config = _with_symmetry(config, simulator, prior, source.folder)
    with found.at("infer", "refine"):
        _require_likelihood(config, simulator)
    with found.at("infer", "sampler"):
        _require_chains(config)
    if impute and config.train.robust:
        with found.at("train", config.train.robust[0]):
            raise ConfigError(
                "needs all of x, and `on_invalid: impute` lets entries be missing: use `mask`, or leave it out"
            )
    for i, check in enumerate(checks):
        with found.at("diagnose", "checks", i, check.name):
            if isinstance(check, Asks):
                check.require_fit(_conditions(simulator), impute=impute)
    with found.at("train", "method"):
        _require_plain(config)
    context, known = read_context(simulator, config.context, source.folder, found)
    observation = None
    with found.at("observation"):
        observation = _observation(config, simulator, context, known, source.folder)
    with found.at("train", "rounds"):
        _require_observation(config, simulator)
    if found.problems:
        raise ConfigError(found.in_order())
    config = _absolute(config, source.folder)
    return Job(config, simulator, reference, prior, context, observation, checks)


def _with_symmetry(config: Config, simulator: Simulator, prior: Prior, folder: Path) -> Config:
    """The configuration with what the simulator declares, where it names no symmetry itself."""
    given = config.train.symmetry
    if given is None:
        return config
    for reason, wrong in (
        ("`rounds` truncate the prior, which a symmetry moves", config.train.rounds > 1),
        ("`on_invalid: impute` lets entries be missing, which cannot be moved", config.simulate.on_invalid == "impute"),
        (
            "the check `attack` needs gradients, which Gibbs chains have not, and `by: canonical` and `by: augmentation` have",
            given.by == "proxies" and any(check.name == "attack" for check in config.diagnose.checks),
        ),
    ):
        if wrong:
            raise ConfigError(f"does not go together with all that is asked for: {reason}; leave one of them out")
    declared = simulator.symmetry if isinstance(simulator, HasSymmetry) else None
    symmetry = given.model_copy(update={"declared": given.declared or declared})
    if symmetry.declared is not None and not isinstance(symmetry.declared, Mapping | str):
        raise ConfigError(
            "the simulator's symmetry is an object of its own, which files know by name only: name it, `declared: "
            "module:Object` or `file.py:Object`"
        )
    acting = with_object(symmetry, imported_symmetry(symmetry, folder))
    assert acting is not None
    if given.by == "proxies":
        build_blur(prior, _conditions(simulator), acting)
    elif given.by == "canonical":
        build_canonical(prior, _conditions(simulator), acting)
    else:
        declared_symmetry(prior, _conditions(simulator), acting)
    return config.model_copy(update={"train": config.train.model_copy(update={"symmetry": symmetry})})


def _require_estimator(method: str) -> None:
    known = registry.names("estimators")
    if method not in known:
        raise ConfigError(f"unknown estimator `{method}`; {did_you_mean(method, known)}")


def _require_chains(config: Config) -> None:
    method = config.train.method
    if config.infer.sampler and method not in LIKELIHOODS:
        raise ConfigError(f"only methods `nle` and `nre` sample by Markov chains, not `{method}`: leave `sampler` out")


def _require_plain(config: Config) -> None:
    if config.train.method == "nle":
        from ..estimators.nle import require_plain

        require_plain(config.train.estimator(impute=config.simulate.on_invalid == "impute"))


def _require_observation(config: Config, simulator: Simulator) -> None:
    if config.train.rounds == 1:
        return
    if config.observation is None:
        raise ConfigError(
            f"`rounds: {config.train.rounds}` truncate the prior at one observation, and there is none: give "
            "`observation`, or leave `rounds` out for a posterior of any x"
        )
    if isinstance(simulator, Imported):
        raise ConfigError(
            f"`rounds: {config.train.rounds}` need a simulator to go on with; these simulations come without: leave "
            "`rounds` out"
        )


def _require_likelihood(config: Config, simulator: Simulator) -> None:
    if config.infer.refine and config.train.method in LIKELIHOODS:
        raise ConfigError(
            f"`refine: {config.infer.refine}` needs draws of known density, which Markov chains do not give: leave it "
            "out, or train `npe`"
        )
    if config.infer.refine and not isinstance(simulator, HasLikelihood):
        raise ConfigError(
            f"`refine` needs a simulator with `log_likelihood`; {config.simulator.title} has none: leave `refine` out"
        )


def _check(item: CheckConfig, index: int, found: Problems) -> Check | None:
    with found.at("diagnose", "checks", index, item.name):
        kind = registry.resolve("checks", item.name)
        fields = [field.name for field in dataclasses.fields(kind)]
        for key in item.options:
            if key not in fields:
                raise ConfigError(f"unknown option `{key}`; {did_you_mean(key, fields)}")
        check: Check = kind(**item.options)
        return check
    return None


def _prior(simulator: Simulator, config: Config, folder: Path, found: Problems) -> Prior:
    prior = simulator.prior
    for name, described in config.prior.items():
        with found.at("prior", name):
            prior = prior.replace({name: described}, folder)
    return prior


def _observation(
    config: Config, simulator: Simulator, context: ContextPrior | None, known: dict[str, Any], folder: Path
) -> Arrays | None:
    """x and context of the observation; a context that `context:` gives takes the place of the source's."""
    given, finite = config.observation, config.simulate.on_invalid != "impute"
    if given is None:
        return None
    unknown = [v for v in (context.variables if context else ()) if v.name not in known]
    wanted = Variables([*simulator.observables, *unknown])
    many = config.train.method in LIKELIHOODS
    observed = read_observation(_source(given, simulator, set(known), folder), wanted, finite=finite, many=many)
    fixed = [v for v in (context.variables if context else ()) if v.name in known]
    given_context = {v.name: known[v.name] for v in fixed}
    return observed | (read_observation(given_context, Variables(fixed), many=many) if fixed else {})


def _as_observed(variable: Variable, values: np.ndarray | None) -> Variable:
    if values is None or values.shape == variable.shape:
        return variable
    return replace(variable, shape=values.shape, dims=("trial", *variable.axes))


def _source(given: str | dict[str, Any], simulator: Simulator, known: set[str], folder: Path) -> dict[str, Any] | Path:
    if isinstance(given, dict):
        if set(given) != {"values"}:
            raise ConfigError(f"must be a name, a file, or `values:` alone; got keys {', '.join(given) or 'none'}")
        return _values(given["values"], simulator)
    shipped: dict[str, Any] = getattr(simulator, "observations", {})
    if given in shipped:
        return {name: values for name, values in shipped[given].items() if name not in known}
    path = folder / given
    if not path.suffix and not path.exists():
        raise ConfigError(f"no file and no shipped observation `{given}`; {did_you_mean(given, shipped)}")
    return path


def _conditions(simulator: Simulator) -> Variables:
    context = context_of(simulator)
    return Variables([*simulator.observables, *(context.variables if context else ())])


def _absolute(config: Config, folder: Path) -> Config:
    """The same configuration with paths that hold from anywhere."""
    prior = {name: {**item, "dist": absolute(str(item.get("dist")), folder)} for name, item in config.prior.items()}
    simulator, train = absolute_simulator(config.simulator, folder), config.train
    own = {"embedding": absolute_names(train.embedding, folder), "symmetry": absolute_name(train.symmetry, folder)}
    train = train.model_copy(update=own)
    config = config.model_copy(update={"prior": prior, "simulator": simulator, "train": train})
    if isinstance(config.observation, str) and (folder / config.observation).exists():
        config = config.model_copy(update={"observation": str((folder / config.observation).resolve())})
    return config


def _values(values: Any, simulator: Simulator) -> dict[str, Any]:
    return values if isinstance(values, dict) else {simulator.observables.names[0]: values}
