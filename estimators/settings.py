"""Settings of an estimator and of its training: the same objects in YAML, in ``model.json`` and in Python."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    InstanceOf,
    NonNegativeFloat,
    NonNegativeInt,
    PlainSerializer,
    PositiveFloat,
    PositiveInt,
    field_serializer,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic.json_schema import SkipJsonSchema

from ..data.errors import did_you_mean
from ..simulators.symmetry import from_json, to_json

LIKELIHOODS = ("nle", "nre")  # methods whose posterior needs Markov chains, and takes many observations

XTransform = Literal["identity", "log", "log1p", "sqrt", "arcsinh", "logit", "rank", "auto"]

_DENSE = ("features", "hidden")
_ATTENTION = ("features", "width", "layers", "heads", "mask", "channel_axis")
_CONVOLUTION = ("features", "hidden", "channels", "kernel", "channel_axis")
_OF_A_CLASS = frozenset({"mask", "channel_axis", "arguments"})
NETWORK_OPTIONS: dict[str, frozenset[str]] = {
    "none": frozenset(),
    "mlp": frozenset(_DENSE),
    "resnet": frozenset({"features", "width", "layers"}),
    "cnn1d": frozenset({*_CONVOLUTION, "mask"}),
    "cnn2d": frozenset(_CONVOLUTION),
    "resnet2d": frozenset(_CONVOLUTION),
    "circular1d": frozenset({*_CONVOLUTION, "position"}),
    "circular2d": frozenset({*_CONVOLUTION, "position"}),
    "deep_set": frozenset({*_DENSE, "mask", "channel_axis"}),
    "points3d": frozenset({*_DENSE, "mask", "position"}),
    "set_transformer": frozenset(_ATTENTION),
    "transformer": frozenset(_ATTENTION),
    "gru": frozenset({"features", "width", "layers", "mask", "channel_axis"}),
}
_ALIKE = {
    "deep_set": "members",
    "points3d": "coordinates",
    "set_transformer": "members",
    "circular1d": "bins",
    "circular2d": "pixels",
}
_OPTIONS = frozenset().union(_OF_A_CLASS, *NETWORK_OPTIONS.values()) - {*_DENSE}  # those two were always allowed


class Settings(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FlowSettings(Settings):
    """The conditional density, from zuko.

    Attributes:
        kind: ``nsf`` (neural spline flow), ``maf`` (masked autoregressive flow), ``coupling`` (splines in coupling layers),
            ``realnvp`` (affine coupling layers), ``cnf`` (continuous flow) or ``gmm`` (Gaussian mixture).
        transforms: How many transformations a flow chains; one of coupling layers needs twice the binary logarithm of the
            number of parameters for each to depend on each.
        hidden: Widths of the hidden layers; of a cnf one width, repeated for each block.
        bins: Bins of a spline (nsf, coupling).
        bound: A spline acts within ±bound in units of the prior's standard deviation and is the identity outside (nsf,
            coupling).
        components: Components of the mixture (gmm).
        steps: Of the solver, an even number (cnf).
        probes: Directions in which the divergence is taken (cnf): exact up to that many parameters.
    """

    kind: Literal["nsf", "maf", "coupling", "realnvp", "cnf", "gmm"] = "nsf"
    transforms: PositiveInt = 5
    hidden: tuple[PositiveInt, ...] = (64, 64)
    bins: PositiveInt = 8
    bound: PositiveFloat = 5.0
    components: PositiveInt = 8
    steps: int = Field(default=12, ge=2, multiple_of=2)
    probes: PositiveInt = 20

    @model_validator(mode="after")
    def _blocks_are_alike(self) -> FlowSettings:
        if self.kind == "cnf" and len(set(self.hidden)) != 1:
            raise ValueError(f"`hidden` of a cnf must be one width, repeated for each block; got {list(self.hidden)}")
        return self


class FieldSettings(Settings):
    """The velocity field of flow matching, and its solver.

    Attributes:
        hidden: Width of the hidden layers.
        blocks: How many residual blocks.
        sigma_min: Standard deviation, in units of the prior's, to which a path narrows around the parameters.
        alpha: Times are drawn with a density that goes as t to this power; above 0, late times, which decide about
            narrow posteriors, are seen more often.
        draws: Of time and noise for every row of a step.
        steps: Of the solver, an even number.
        probes: Directions in which the divergence is taken for the log density: exact up to that many parameters,
            Hutchinson's estimate beyond.
    """

    hidden: PositiveInt = 64
    blocks: PositiveInt = 4
    sigma_min: float = Field(default=1e-4, gt=0, lt=1)
    alpha: NonNegativeFloat = 1.0
    draws: PositiveInt = 4
    steps: int = Field(default=16, ge=2, multiple_of=2)
    probes: PositiveInt = 20


@dataclass(frozen=True, slots=True)
class NamedModule:
    """A network class, or a function, of the user's own, and the name that files know it by.

    Attributes:
        name: ``module:Class`` or ``file.py:Class``.
        build: Called with the shape of an observable and the `arguments`; gives a `torch.nn.Module`. Of a pose the function.
    """

    name: str
    build: Callable[..., Any]


class NetworkSettings(Settings):
    """One network and how what it sees is prepared. Options of other kinds than the one chosen must be left alone.

    Attributes:
        kind: ``resnet``, ``mlp``, which is meant where ``hidden`` is given alone, or ``none`` for the standardised entries
            as they are; ``cnn1d``, ``transformer``, ``gru`` for series; ``cnn2d``, ``resnet2d`` for images; ``circular1d``,
            ``circular2d`` for those whose ends meet; ``deep_set``,
            ``set_transformer`` for sets; ``points3d`` for points in space, which needs e3nn; or a class of your own: ``module:Class``, ``file.py:Class``, in Python the class
            itself.
        features: How many summaries.
        hidden: Widths of the hidden dense layers: all there is of ``mlp``, those behind the convolutions, and those of both
            networks of ``deep_set``.
        channels: Widths of the convolutions; every one but the first halves the resolution, but for circular ones.
        kernel: Extent of the convolutions, an odd number.
        position: Whether a circular network tells where things are, and `points3d` where and how turned; where not, summaries do
            not change with shifts, or motions.
        width: Of the residual layers (128), of the members or steps that attend to each other, of the recurrent state.
        layers: How many residual, attending or recurrent ones.
        heads: Of attention; they divide ``width``.
        mask: For sets and series of varying length: the observable that says how many members or steps are there, the
            first so many, or which, by 0 and 1. What the others hold has no effect.
        channel_axis: ``first`` or ``last``, for observables with an axis of channels: the first of images and the last of
            sets and series when not given.
        standardise: Whether mean and standard deviation are taken for every ``entry``, every ``channel`` or ``all`` of an
            observable; as the network needs it when not given.
        arguments: Of the constructor of a class of your own, behind the shape.
    """

    kind: str | SkipJsonSchema[InstanceOf[NamedModule]] = "resnet"
    features: PositiveInt = 32
    hidden: tuple[PositiveInt, ...] = (64, 64)
    channels: tuple[PositiveInt, ...] = Field(default=(16, 32, 64), min_length=1)
    kernel: PositiveInt = 3
    position: bool = True
    width: PositiveInt = 64
    layers: PositiveInt = 2
    heads: PositiveInt = 4
    mask: str | None = None
    channel_axis: Literal["first", "last"] | None = None
    standardise: Literal["entry", "channel", "all"] | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """The kind, in letters."""
        return self.kind.name if isinstance(self.kind, NamedModule) else self.kind

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_the_kind(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        kind = given.get("kind", "mlp" if "hidden" in given else "resnet")
        return {"kind": kind} | ({"width": 128} if kind == "resnet" else {}) | given

    @field_serializer("kind")
    def _named(self, kind: str | NamedModule) -> str:
        return kind.name if isinstance(kind, NamedModule) else kind

    @field_validator("kind", mode="before")
    @classmethod
    def _class(cls, kind: Any) -> Any:
        return NamedModule(f"{kind.__module__}:{kind.__qualname__}", kind) if isinstance(kind, type) else kind

    @field_validator("kind", mode="after")
    @classmethod
    def _known(cls, kind: str | NamedModule) -> str | NamedModule:
        if isinstance(kind, str) and ":" not in kind and kind not in NETWORK_OPTIONS:
            raise ValueError(f"unknown network `{kind}`; {did_you_mean(kind, NETWORK_OPTIONS)}; or module:Class")
        return kind

    @model_validator(mode="after")
    def _options_fit(self) -> NetworkSettings:
        known = self._own_options()
        for option in sorted(_OPTIONS - known):
            if getattr(self, option) != type(self).model_fields[option].get_default(call_default_factory=True):
                raise ValueError(f"`{option}` is no option of `{self.name}`; {did_you_mean(option, known)}")
        if self.kernel % 2 == 0:
            raise ValueError(f"`kernel` must be odd; got {self.kernel}")
        if "heads" in known and self.width % self.heads:
            raise ValueError(f"`width` must be a multiple of `heads` ({self.heads}); got {self.width}")
        if "heads" in known and self.width % 2:
            raise ValueError(f"`width` must be even; got {self.width}")
        if self.standardise == "channel" and self.name == "points3d":
            raise ValueError("`standardise` must be all for `points3d`, whose coordinates are alike; got channel")
        if self.standardise == "entry" and self.name in _ALIKE:
            raise ValueError(
                f"`standardise` must be channel or all for `{self.name}`, whose {_ALIKE[self.name]} are alike; got entry"
            )
        return self

    @model_serializer(mode="wrap")
    def _without_options_of_others(self, dump: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        kept = {*type(self).model_fields} - (_OPTIONS - self._own_options())
        empty = {name for name in ("standardise", "observables", "head") if not getattr(self, name, None)}
        return {name: value for name, value in dump(self).items() if name in kept - empty}

    def _own_options(self) -> frozenset[str]:
        return NETWORK_OPTIONS.get(self.name, _OF_A_CLASS)


class EmbeddingSettings(NetworkSettings):
    """What summarises x, context included, before the density sees it.

    One network: of all of x as one vector (`none`, `mlp`, `resnet`), or of the one observable that has the axes it needs;
    what it does not see, such as context, goes past it. Or one network for each of several observables.

    Attributes:
        observables: Observable → its network, in place of `kind` and its options.
        head: A network over all that comes out: ``mlp`` or ``resnet``.
    """

    observables: dict[str, NetworkSettings] = Field(default_factory=dict)
    head: NetworkSettings | None = None

    @model_validator(mode="after")
    def _one_or_several(self) -> EmbeddingSettings:
        if self.observables and self.kind not in ("resnet", "mlp"):  # the latter in models saved earlier
            raise ValueError(f"`kind` must be left out where `observables` have networks of their own; got {self.name}")
        if self.head and self.head.name not in ("mlp", "resnet"):
            raise ValueError(f"`head` must be mlp or resnet; got {self.head.name}")
        return self

    def networks(self) -> list[NetworkSettings]:
        """Those that look at observables."""
        return [*self.observables.values()] or [self]

    def replaced(self, kind: Callable[[NetworkSettings], str | NamedModule]) -> EmbeddingSettings:
        """The same with another ``kind`` for every network that is a class of the user's own."""
        seen = {name: _of_kind(network, kind) for name, network in self.observables.items()}
        return _of_kind(self, kind).model_copy(update={"observables": seen})


class RatioSettings(Settings):
    """The classifier of a ratio estimator, and its loss; see `nre`.

    Attributes:
        kind: ``contrastive`` (NRE-C) or ``balanced`` (BNRE).
        contrasts: Parameters drawn from the prior that each simulation is compared with (contrastive).
        gamma: Odds of a joint pair against none (contrastive).
        balance: Weight of the balancing condition (balanced).
        hidden: Width of each residual block.
    """

    kind: Literal["contrastive", "balanced"] = "contrastive"
    contrasts: PositiveInt = 5
    gamma: PositiveFloat = 1.0
    balance: NonNegativeFloat = 100.0
    hidden: tuple[PositiveInt, ...] = Field(default=(64, 64), min_length=1)


class SamplerSettings(Settings):
    """Markov chains, for estimators whose posterior is known up to a constant; see `mcmc`. They change no training.

    A sweep is one update per parameter.

    Attributes:
        method: ``slice``: slice sampling along differences of chains, all chains of all observations at once;
            ``slice_np_vectorized``: sbi's, coordinate by coordinate, which needs sbi.
        chains: Per observation. When not given one for 50 draws, 20 at least and 100 at most.
        warmup: Sweeps before the first draw.
        thin: Sweeps from one draw to the next of the same chain.
        candidates: Draws of the prior, or of the posterior that chains start from, among which starting points are
            chosen by their potential.
        seconds: Time budget of a question, or of 250 pairs of the checks; draws that are missing when it is spent are
            repetitions, and the diagnostics say so. None for no limit: a budget makes draws depend on the machine. sbi's
            sampler knows none.
    """

    method: Literal["slice", "slice_np_vectorized"] = "slice"
    chains: int | None = Field(default=None, ge=2)
    warmup: NonNegativeInt = 30
    thin: PositiveInt = 1
    candidates: int = Field(default=1000, ge=2)
    seconds: PositiveFloat | None = None

    @model_validator(mode="after")
    def _can_be_stopped(self) -> SamplerSettings:
        if self.seconds is not None and self.method != "slice":
            raise ValueError(f"`seconds` needs `method: slice`; `{self.method}` cannot be stopped")
        return self


class SymmetrySettings(Settings):
    """Equivariance, of a simulator that declares a symmetry; see `symmetry.gnpe`.

    Attributes:
        by: ``proxies``: data are seen from blurred poses, and poses sampled by Gibbs chains (GNPE). ``canonical``: data are seen
            from a pose that is a function of x, in one step. ``augmentation``: rows are moved to another pose in every step,
            and the posterior is that of the plain method.
        kernel: How far poses are blurred: one width, or component → width, in the units of the parameter; radians for angles,
            of the logarithm for factors. About the posterior's width, or two to three times that.
        law: ``normal``, the width its standard deviation, or ``uniform``, the width half of its range.
        exact: Whether the network is not told where it looks from; or the components of which it is not. Right where data and
            prior are symmetric.
        iterations: Steps of the Gibbs chains; ``auto`` until they have forgotten where they began.
        most: Of ``auto``.
        canonical: What gives the pose of x, in the units of the parameters that carry it: an observable, or a function of all
            of x, ``module:function``, in Python the function itself. Known for most declarations where it is not given.
        declared: Component → what the simulator declares; taken from there. Or a symmetry of your own: ``module:Object``,
            ``file.py:Object``, in Python the object itself; see `symmetry.own`.
    """

    by: Literal["proxies", "canonical", "augmentation"] = "proxies"
    kernel: PositiveFloat | dict[str, PositiveFloat | list[PositiveFloat]] | None = None
    law: Literal["normal", "uniform"] = "normal"
    exact: bool | tuple[str, ...] = True
    iterations: PositiveInt | Literal["auto"] = "auto"
    most: int = Field(default=300, ge=10)
    canonical: str | SkipJsonSchema[InstanceOf[NamedModule]] | None = None
    declared: Annotated[Any, BeforeValidator(from_json), PlainSerializer(to_json)] = None

    @model_validator(mode="after")
    def _proxies_have_a_kernel(self) -> SymmetrySettings:
        if self.by == "proxies" and self.kernel is None:
            raise ValueError("`kernel` must say how far poses are blurred, such as `kernel: {time: 0.1}`")
        return self

    @model_validator(mode="after")
    def _a_pose_is_of_canonical(self) -> SymmetrySettings:
        if self.canonical is not None and self.by != "canonical":
            raise ValueError(f"`canonical` needs `by: canonical`; got `by: {self.by}`")
        return self

    @field_validator("canonical", mode="before")
    @classmethod
    def _function(cls, given: Any) -> Any:
        return NamedModule(f"{given.__module__}:{given.__qualname__}", given) if callable(given) else given

    @field_serializer("canonical")
    def _named(self, given: str | NamedModule | None) -> str | None:
        return given.name if isinstance(given, NamedModule) else given


class DensitySettings(Settings):
    """What an estimator is built from.

    Attributes:
        method: A registered estimator: ``npe``, ``fmpe``, ``nle`` or ``nre``.
        flow: The density (npe, nle).
        field: The velocity field (fmpe).
        embedding: The summary network.
        transforms: Observable → function applied before standardisation; ``rank`` makes every entry normal. ``auto``, also
            where nothing is given, chooses from the data: ``sqrt`` for counts and ``identity`` for the rest, unless they
            are far from normal and another function brings them much nearer.
        sd_floor: Standardisation divides entries of x by this where their standard deviation, after the transform, is
            smaller (npe, fmpe, nre).
        whiten: Rotate the standardised x to its principal axes and scale those to unit variance: brings out what little
            tells neighbouring entries apart where they are nearly the same, as in smooth time series.
        ensemble: How many members, different in their initial weights alone, are trained in one pass and mixed.
        ratio: The classifier (nre).
        scale: What theta is measured in: ``prior``, the prior's own width; ``rows``, the spread of the training rows along
            their principal axes, for rows that fill little of the prior, as those of rounds after the first do.
        symmetry: Learn relative to a blurred pose (npe, fmpe), of a simulator that declares a symmetry.
    """

    method: str = "npe"
    flow: FlowSettings = FlowSettings()
    field: FieldSettings = FieldSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    transforms: dict[str, XTransform] = Field(default_factory=dict)
    sd_floor: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    whiten: bool = False
    ensemble: PositiveInt = 1
    ratio: RatioSettings = RatioSettings()
    scale: Literal["prior", "rows"] = "prior"
    symmetry: SymmetrySettings | None = None

    @model_validator(mode="after")
    def _scale_is_known(self) -> DensitySettings:
        if self.scale == "rows" and self.method in ("fmpe", *LIKELIHOODS):
            raise ValueError(
                f"`scale: rows` needs `method: npe`; `{self.method}` measures theta by the prior: leave it out"
            )
        return self

    @model_validator(mode="after")
    def _symmetry_is_of_a_density_of_theta(self) -> DensitySettings:
        if self.symmetry and self.method in LIKELIHOODS:
            raise ValueError(f"`symmetry` needs `method: npe` or `fmpe`; `{self.method}` has no poses to take out")
        return self


class EstimatorSettings(DensitySettings):
    """One estimator.

    Attributes:
        impute: Replace what is not finite in x by the mean of that entry, in training and ever after.
        context: Which of the observables are known nuisance: a likelihood is conditioned on them, no attack and no noise
            touches them. A store knows them.
        failures: Whether a likelihood or ratio has the factor p(valid | theta) as well; training sets it where a store
            has rows that are not valid.
    """

    impute: bool = False
    context: tuple[str, ...] = ()
    failures: bool = False

    @property
    def fixed(self) -> tuple[str, ...]:
        """Observables that have no errors: context, and what says which entries of others are there."""
        masks = (network.mask for network in self.embedding.networks())
        return tuple(dict.fromkeys([*self.context, *(mask for mask in masks if mask)]))


class FisherSettings(Settings):
    """Fisher-information regularisation: posteriors that small changes of x move little; see `robust.fisher`.

    Attributes:
        beta: Weight of the trace of the Fisher information of q(theta | x) in x; its unit is that of x, squared. ``auto``
            trains with several and keeps the largest that costs no more than ``price``; see `robust.tradeoff`.
        price: Of ``auto``: nats for each parameter that the held-out -log q may rise by.
        trainings: Of ``auto``: how many at most, the one without included.
        kind: ``trace``, or ``largest`` eigenvalue.
        draws: Of theta for each estimate; an eigenvalue needs several. ``exact``, of a trace, needs none, where q is normal.
        rows: Of each batch that the estimate is made of; all when None.
        every: In which steps, with that many times the weight.
        ema: Decay of a moving average of the penalty's gradient, which is then added in every step with its own weight;
            None for none.
    """

    beta: PositiveFloat | Literal["auto"]
    price: PositiveFloat = 0.25
    trainings: int = Field(default=7, ge=2)
    kind: Literal["trace", "largest"] = "trace"
    draws: PositiveInt | Literal["exact"] = 1
    rows: PositiveInt | None = 128
    every: PositiveInt = 4
    ema: float | None = Field(default=None, gt=0, lt=1)

    @model_validator(mode="after")
    def _exact_is_of_a_trace(self) -> FisherSettings:
        if self.draws == "exact" and self.kind != "trace":
            raise ValueError(f"`draws: exact` needs `kind: trace`; got `{self.kind}`: give a number of draws")
        return self


class NoiseSettings(Settings):
    """Noise added to x in training; see `robust.augmentation`.

    Attributes:
        eps: Size, in units of the spread of x within an observation.
        kind: ``uniform`` in a ball, or ``spike_slab``: entries with large errors now and then, others nearly untouched.
        norm: Of the ball: ``l1``, ``l2`` or ``linf``.
        spikes: Share of the entries with large errors.
    """

    eps: PositiveFloat = 1.0
    kind: Literal["uniform", "spike_slab"] = "uniform"
    norm: Literal["l1", "l2", "linf"] = "l2"
    spikes: float = Field(default=0.1, gt=0, lt=1)


class AdversarialSettings(Settings):
    """Training on the perturbation of x for which the loss is largest; see `robust.augmentation`.

    Attributes:
        eps: Size, in units of the spread of x within an observation.
        norm: Of the ball: ``l1``, ``l2`` or ``linf``.
        steps: Of the search, in every step of training.
    """

    eps: PositiveFloat = 1.0
    norm: Literal["l1", "l2", "linf"] = "l2"
    steps: PositiveInt = 20


class TradesSettings(AdversarialSettings):
    """Keeping the posterior of the worst perturbation near that of the data; see `robust.trades`.

    Attributes:
        weight: Of the divergence.
    """

    eps: PositiveFloat = 0.5
    weight: PositiveFloat = 0.1


class TrainingSettings(Settings):
    """Optimisation: AdamW, linear warm-up, cosine decay to zero, early stopping, best weights kept.

    Attributes:
        epochs: Passes over the training rows at most; the cosine ends there. ``auto``, as in the next two, is a function
            of the number of training rows.
        batch_size: Rows in a step.
        learning_rate: Peak of the schedule.
        weight_decay: Of AdamW.
        warmup: Fraction of all steps spent rising to the peak.
        clip: Bound on the norm of the gradient.
        patience: Epochs without a better validation loss before stopping.
        validation: Fraction of the rows kept for the validation loss.
        ema: Decay of an exponential moving average of the weights, which is validated and kept in their place; None for none.
        fisher: An addition to the objective that makes the posterior robust against small changes of x.
        trades: Another, against the worst of them.
        adversarial: Learn from the worst change of each x in its place.
        noise: Learn from x with noise.
        loader: Where rows are kept: ``device``, ``memory``, or ``stream``ed from the store; ``auto`` streams what exceeds
            the memory budget and keeps on the device what fits there. Streaming shuffles otherwise, so results differ
            from those of the first two, which are the same.
    """

    epochs: PositiveInt | Literal["auto"] = "auto"
    batch_size: PositiveInt | Literal["auto"] = "auto"
    learning_rate: PositiveFloat | Literal["auto"] = "auto"
    weight_decay: NonNegativeFloat = 1e-4
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip: PositiveFloat = 5.0
    patience: NonNegativeInt = 15
    validation: float = Field(default=0.1, gt=0, lt=1)
    ema: float | None = Field(default=0.99, gt=0, lt=1)
    fisher: FisherSettings | None = None
    trades: TradesSettings | None = None
    adversarial: AdversarialSettings | None = None
    noise: NoiseSettings | None = None
    loader: Literal["auto", "device", "memory", "stream"] = "auto"

    @property
    def undecided(self) -> bool:
        """Whether the weight of the Fisher information is to be found."""
        return self.fisher is not None and self.fisher.beta == "auto"

    @property
    def trainings(self) -> int:
        """How many there are at most."""
        return self.fisher.trainings if self.fisher and self.undecided else 1

    @property
    def robust(self) -> tuple[str, ...]:
        """What is to make the posterior robust, by name."""
        return tuple(name for name in ("fisher", "trades", "adversarial", "noise") if getattr(self, name))


class SearchSettings(Settings):
    """A search for hyper-parameters, by the validation loss.

    Attributes:
        trials: How many trainings, those that an earlier call has made included.
        seconds: After so many no other training is begun, and the one that runs is given up if there is a result already.
        space: Key of ``train:`` → ``[low, high]``, ``[low, high, log]``, or a list of values to choose from. Two numbers
            or lists to choose from are ``{choose: [...]}``. A range of whole numbers gives whole numbers.
    """

    trials: PositiveInt = 20
    seconds: PositiveFloat | None = None
    space: dict[str, Any] = Field(default_factory=dict)


_Network = TypeVar("_Network", bound=NetworkSettings)


def _of_kind(network: _Network, kind: Callable[[NetworkSettings], str | NamedModule]) -> _Network:
    return network.model_copy(update={"kind": kind(network)}) if ":" in network.name else network


class RoundsSettings(Settings):
    """Truncated sequential rounds; see `estimators.sequential`.

    Attributes:
        rounds: How often to simulate and train; 1 is amortised. Every round simulates as many rows as the first.
        epsilon: Mass of the posterior that each truncation may cut off.
    """

    rounds: PositiveInt = 1
    epsilon: float = Field(default=1e-4, gt=0, lt=0.5)
