"""The configuration: one YAML file, validated; every mistake is named with file, line, key and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    ByteSize,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
    model_serializer,
    model_validator,
)

from ..data.errors import ConfigError
from ..estimators.settings import (
    LIKELIHOODS,
    DensitySettings,
    EstimatorSettings,
    RoundsSettings,
    SamplerSettings,
    SearchSettings,
    Settings,
    TrainingSettings,
)
from .slurm.settings import SlurmConfig

if TYPE_CHECKING:
    from ..estimators.hardware import Hardware

IMPORT_KEYS = ("theta", "x", "context", "group", "u", "status", "reason", "runtime", "variables")


class SupportConfig(Settings):
    """Where an observable can lie, and whether it is counted."""

    low: float | None = None
    high: float | None = None
    integer: bool = False


class ObservableConfig(Settings):
    """One observable of an external program: as `Variable`, whose name is the key."""

    shape: tuple[PositiveInt, ...] = ()
    dtype: Literal["float64", "float32", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8"] = (
        "float64"
    )
    units: str = ""
    label: str = ""
    dims: tuple[str, ...] = ()
    support: SupportConfig = SupportConfig()


class ProgramConfig(Settings):
    """An external program; its prior is the whole of `prior:`. See `simulators/program.py`.

    Attributes:
        command: The program and its arguments, with ``{parameter}``, ``{seed}``, ``{input}``, ``{output}``; split as a
            shell would, but run by none.
        observables: What it gives; found by running it once when left out.
        input: A file of text with ``{parameter}``, or such text.
        output: The file it writes, or ``stdout``.
        format: Of the output, where its suffix does not say.
        datasets: Observable → name in the output, where that is another.
        batch: One call for many rows: the parameters come in the file ``{theta}``, their number as ``{rows}``.
        theta: Name of that file, ``.npy`` or ``.csv``; ``theta.npy`` when not given.
        environment: Variables to set.
        timeout: Seconds for one call.
        retries: How often a row that failed is tried again, with a new seed.
        files: Copied into the scratch directory of each call.
        scratch: Where scratch directories are made.
        keep: Keep those of failed calls.
        folder: What relative paths are relative to; that of the configuration when left out.
    """

    command: str | tuple[str, ...] = ""
    observables: dict[str, ObservableConfig] = Field(default_factory=dict)
    input: str | None = None
    output: str = "stdout"
    format: Literal["npy", "npz", "csv", "json", "hdf5", "netcdf"] | None = None
    datasets: dict[str, str] = Field(default_factory=dict)
    batch: bool = False
    theta: str | tuple[str, ...] | dict[str, str] | None = None
    environment: dict[str, str] = Field(default_factory=dict)
    timeout: PositiveFloat | None = None
    retries: NonNegativeInt = 0
    files: tuple[str, ...] = ()
    scratch: str | None = None
    keep: bool = False
    folder: str | None = None

    def program(self) -> dict[str, Any]:
        """The arguments of `Program`, but for the prior."""
        found = {name: getattr(self, name) for name in ProgramConfig.model_fields}
        observables = {name: item.model_dump(mode="json") for name, item in self.observables.items()}
        return {**found, "theta": self.theta or "theta.npy", "observables": observables or None}


class SimulatorConfig(ProgramConfig):
    """The forward model: `name` and `arguments`; or `command` and what belongs to an external program; or `import`,
    simulations that are there already.

    Attributes:
        name: A registered simulator, ``module:Class`` or ``file.py:Class``; also ``file.py:object``.
        arguments: Of its constructor.
        import_: In YAML ``import``: a file that holds simulations (HDF5, NetCDF, npz, CSV, Parquet, a simfer store), or
            several whose rows follow one another. The keys below say what is called how in it; a store, and a file that
            simfer exported, need none.
        theta: With ``import``: a 2-d array with a column per parameter in the prior's order, a list of columns in that
            order, or ``{parameter: column}``.
        x: ``{observable: array or list of columns}``, or names that stay.
        context: The same for known nuisance.
        group: Whole numbers; rows with the same are never split.
        u: Base random numbers.
        status: 1 ok, 2 invalid, 3 failed, 4 timeout; or whether a row is usable.
        reason: Why a row is not usable.
        runtime: Seconds that a row took.
        variables: ``{name: {units, label, dims, low, high, integer}}`` in place of what the file says.
    """

    name: str = ""
    arguments: dict[str, Any] = Field(default_factory=dict)
    import_: str | tuple[str, ...] = Field(default="", alias="import")
    x: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    context: str | tuple[str, ...] | dict[str, str | tuple[str, ...]] | None = None
    group: str | None = None
    u: str | None = None
    status: str | None = None
    reason: str | None = None
    runtime: str | None = None
    variables: dict[str, dict[str, Any]] = Field(default_factory=dict)

    @property
    def imported(self) -> tuple[str, ...]:
        """The files to be imported."""
        return (self.import_,) if isinstance(self.import_, str) else self.import_

    @property
    def title(self) -> str:
        """What messages call it."""
        if self.import_:
            return "what is imported"
        return self.name or (self.command if isinstance(self.command, str) else " ".join(self.command))

    @model_serializer(mode="wrap")
    def _without_defaults(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        """Of two dozen keys, those that were given."""
        kept = {
            key
            for name, field in type(self).model_fields.items()
            if getattr(self, name) != field.get_default(call_default_factory=True)
            for key in (name, field.alias)
        }
        return {name: value for name, value in dump(self).items() if name in kept}


class SimulateConfig(Settings):
    """The training set.

    Attributes:
        rows: How many simulations, those held out for validation and diagnosis included, in each of ``train.rounds``; of
            imported ones only the first so many, or all when not given.
        on_invalid: Rows that raise or are not finite: ``mask`` leaves them out, ``fail`` stops, ``impute`` keeps those
            that are not finite, with the mean in place of what is missing.
        timeout: Seconds a row may take; then it is given up, its process with it. Simulates in child processes.
        retries: How often a row that failed is tried again, with other random numbers.
        isolate: Simulate in child processes from the start, for simulators known to crash.
        block: Rows simulated by one call, and written as one chunk; chosen from the size of a row when not given.
        shards: Parts of the store that can be written at the same time, such as by the tasks of a batch array: as many at
            least; 16 to 31 for campaigns below 1 GiB when not given.
    """

    rows: PositiveInt = 10_000
    on_invalid: Literal["mask", "fail", "impute"] = "mask"
    timeout: PositiveFloat | None = None
    retries: NonNegativeInt = 0
    isolate: bool = False
    block: PositiveInt | None = None
    shards: PositiveInt | None = None


class TrainConfig(DensitySettings, TrainingSettings, RoundsSettings):
    """The estimator, its optimisation and truncated rounds."""

    def estimator(self, *, impute: bool) -> EstimatorSettings:
        return EstimatorSettings(**{name: getattr(self, name) for name in DensitySettings.model_fields}, impute=impute)

    @model_validator(mode="after")
    def _has_a_posterior_to_regularise(self) -> TrainConfig:
        if self.method in LIKELIHOODS and (given := [name for name in ("fisher", "trades") if getattr(self, name)]):
            raise ValueError(
                f"`{given[0]}` needs a method that learns a density of theta given x; `{self.method}` does not: use npe"
            )
        if self.method == "fmpe" and self.fisher and self.fisher.beta == "auto":
            raise ValueError(
                "`fisher: {beta: auto}` needs a loss that is -log q; that of `fmpe` is another: give a number"
            )
        return self

    def training(self) -> TrainingSettings:
        return TrainingSettings(**{name: getattr(self, name) for name in TrainingSettings.model_fields})

    def sequential(self) -> RoundsSettings:
        return RoundsSettings(rounds=self.rounds, epsilon=self.epsilon)


class CheckConfig(Settings):
    """One check and its options."""

    name: str
    options: dict[str, Any] = Field(default_factory=dict)


class DiagnoseConfig(Settings):
    """Which checks, on how many pairs. A bare list in YAML is the list of checks.

    Attributes:
        checks: Names, or a name with options: ``{tarp: {noise: 0.3}}``.
        pairs: Simulations held out from training to be checked on; a tenth of all, at most 1,000, when not given.
        draws: Posterior draws per pair.
    """

    checks: tuple[CheckConfig, ...] = tuple(CheckConfig(name=name) for name in ("sbc", "coverage", "tarp"))
    pairs: int | None = Field(default=None, ge=20)
    draws: int = Field(default=500, ge=20)

    @field_validator("checks", mode="before")
    @classmethod
    def _short_forms(cls, checks: Any) -> Any:
        return [_check(item) for item in checks] if isinstance(checks, list | tuple) else checks

    @field_validator("checks", mode="after")
    @classmethod
    def _each_once(cls, checks: tuple[CheckConfig, ...]) -> tuple[CheckConfig, ...]:
        names = [check.name for check in checks]
        if twice := [name for i, name in enumerate(names) if name in names[:i]]:
            raise ValueError(f"every check may be there once; got `{twice[0]}` twice")
        return checks


class RefineConfig(Settings):
    """How the network's posterior is refined by the simulator's likelihood; see docs/refinement.md.

    Attributes:
        method: ``importance`` weights the network's draws; ``adaptive`` and ``smc`` find a better proposal where those
            do not reach the ESS.
        ess: Effective sample size to reach; as many as ``draws`` when not given.
        likelihoods: Rows at which the likelihood may be evaluated.
        seconds: After which no more are; results then depend on the machine.
    """

    method: Literal["importance", "adaptive", "smc"] = "adaptive"
    ess: PositiveInt | None = None
    likelihoods: PositiveInt = 200_000
    seconds: PositiveFloat | None = None


class InferConfig(Settings):
    """The posterior of the observation.

    Attributes:
        draws: How many draws.
        refine: ``importance`` weights the network's draws by the simulator's likelihood and resamples them, which makes
            them exact at this observation; needs a simulator with `log_likelihood`. ``adaptive`` and ``smc``, or
            ``{method, ess, likelihoods, seconds}``, go on where that is refused.
        predictive: How many replicated data sets for the posterior predictive check; 0 for none. Where one has many
            independent observations, so many of those in all, of a hundred data sets at least.
        sampler: Of the Markov chains, with ``train.method`` nle or nre; in `diagnose` as well.
    """

    draws: PositiveInt = 10_000
    refine: Literal["importance"] | RefineConfig | None = None
    predictive: NonNegativeInt = 1000
    sampler: SamplerSettings | None = None

    @field_validator("refine", mode="before")
    @classmethod
    def _method_alone(cls, refine: Any) -> Any:
        return {"method": refine} if refine in ("adaptive", "smc") else refine


class LocalConfig(Settings):
    """What cannot change results: where and how fast things run. Not part of any fingerprint.

    Attributes:
        executor: ``inline`` simulates in this process, ``processes`` in several, ``dask`` on the workers of a Dask cluster,
            ``slurm`` by an array of jobs that this process waits for (`simfer submit` makes jobs of the whole run).
        workers: How many processes; of a cluster that has an ``address``, those that it has.
        address: Of a running Dask scheduler, such as ``tcp://10.0.0.1:8786``; ``dask`` without one starts a cluster on this
            machine.
        accelerator: Of the Lightning Trainer.
        devices: GPUs, or processes on a CPU, that train together on each node; they share every batch. ``auto``: all GPUs.
        nodes: How many there are; more than one needs ``srun`` with a task for every device.
        strategy: Of the Lightning Trainer; of several devices ``ddp``, or ``ddp_find_unused_parameters_true`` for networks of
            your own of which a step may leave out parts.
        precision: Of the Lightning Trainer; that of embeddings, because densities compute in float32 whatever it is.
        threads: torch threads; ``auto`` takes one for small networks and measures for large ones.
        compile: ``torch.compile``, ``never``, ``always``, or with ``auto`` where it takes less time than it saves; what that
            decides depends on the clock, so that two runs, or a resumed one, may differ by rounding.
        loggers: Where losses go besides CSV and TensorBoard: ``wandb``, ``mlflow``.
        slurm: What `simfer submit`, and `executor: slurm`, ask of a Slurm cluster; see docs/slurm.md.
        stage_to: Folder on the disk of the node, such as ``$TMPDIR``, to which the simulations are copied before training and
            checks read them; nothing is where training is shared by several nodes.
        memory: Budget for rows in training, such as ``512 MB``; a quarter of what the process may use when not given.
            Decides what ``train.loader: auto`` means; that is decided once for a run, and kept when it is resumed.
    """

    executor: Literal["inline", "processes", "dask", "slurm"] = "inline"
    workers: PositiveInt = 2
    address: str | None = None
    accelerator: str = "auto"
    devices: PositiveInt | Literal["auto"] = 1
    nodes: PositiveInt = 1
    strategy: str = "auto"
    precision: Literal["32-true", "bf16-mixed", "16-mixed"] = "32-true"
    threads: PositiveInt | Literal["auto"] = "auto"
    compile: Literal["auto", "always", "never"] = "never"
    loggers: tuple[Literal["wandb", "mlflow"], ...] = ()
    memory: ByteSize | None = None
    stage_to: str | None = None
    slurm: SlurmConfig = SlurmConfig()

    @model_validator(mode="after")
    def _has_a_use_for_the_address(self) -> LocalConfig:
        if self.address is not None and self.executor != "dask":
            raise ValueError(f"`address` is that of a Dask scheduler, and `executor` is {self.executor}: use dask")
        return self

    def hardware(self) -> Hardware:
        """What training is told of it."""
        from ..estimators.hardware import Hardware

        return Hardware(**{field.name: getattr(self, field.name) for field in fields(Hardware)})


class Config(Settings):
    """One run, complete.

    Attributes:
        name: Of the run and its folder.
        seed: Root of all randomness.
        simulator: The forward model; a bare string is its name.
        prior: Parameter → distribution, overriding the simulator's: ``{dist: Uniform, low: 0, high: 1}``; several
            parameters, as in ``a, b``, → a joint one. See docs/priors.md. Of
            imported simulations the whole prior, the one that theta was drawn from.
        context: Known nuisance → its value for the observation, or a distribution to draw it from for the simulations,
            overriding the simulator's, with the observation's value as ``observed``.
        observation: Shipped data by name, a file, or ``{values: {observable: numbers}}``; none, and nothing is inferred.
            With ``train.method`` nle or nre several rows are independent observations of the same parameters.
        simulate: The training set.
        train: The estimator.
        search: What ``simfer search`` looks for.
        diagnose: The checks.
        infer: The posterior of the observation.
        local: Where things run.
    """

    name: str = Field(default="run", pattern=r"^[\w.-]+$")
    seed: NonNegativeInt = 0
    simulator: SimulatorConfig
    prior: dict[str, dict[str, Any]] = Field(default_factory=dict)
    context: dict[str, Any] = Field(default_factory=dict)
    observation: str | dict[str, Any] | None = None
    simulate: SimulateConfig = SimulateConfig()
    train: TrainConfig = TrainConfig()
    search: SearchSettings = SearchSettings()
    diagnose: DiagnoseConfig = DiagnoseConfig()
    infer: InferConfig = InferConfig()
    local: LocalConfig = LocalConfig()

    @field_validator("simulator", mode="before")
    @classmethod
    def _named(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("diagnose", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return {"checks": value} if isinstance(value, list | tuple) else value

    @model_validator(mode="after")
    def _enough_rows(self) -> Config:
        counted = "rows" in self.simulate.model_fields_set or not self.simulator.import_
        if counted:
            self.require_enough_rows()
        return self

    def require_enough_rows(self) -> None:
        """Raise ConfigError where no rows are left to train on."""
        if self.simulate.rows < self.pairs + 2:
            raise ConfigError(
                f"`simulate.rows` ({self.simulate.rows}) must exceed the {self.pairs} pairs held out by `diagnose.pairs` by 2 at least"
            )

    @property
    def pairs(self) -> int:
        """Rows held out for the checks."""
        if not self.diagnose.checks:
            return 0
        return self.diagnose.pairs if self.diagnose.pairs is not None else max(20, min(1000, self.simulate.rows // 10))

    @property
    def rows_train(self) -> int:
        """Rows to learn from, if all simulations are usable."""
        return round((self.simulate.rows - self.pairs) * (1 - self.train.validation))


def _check(item: Any) -> Any:
    if isinstance(item, str):
        return {"name": item}
    if isinstance(item, dict) and len(item) == 1 and "name" not in item:
        ((name, options),) = item.items()
        return {"name": name, "options": options or {}}
    return item
