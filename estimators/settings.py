"""Settings of an estimator and of its training: the same objects in YAML, in ``model.json`` and in Python."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

XTransform = Literal["identity", "log", "log1p", "sqrt", "arcsinh"]


class Settings(BaseModel):
    """Immutable; an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FlowSettings(Settings):
    """The conditional density, from zuko.

    Attributes:
        kind: ``nsf`` (neural spline flow), ``maf`` (masked autoregressive flow) or ``gmm`` (Gaussian mixture).
        transforms: How many transformations a flow chains.
        hidden: Widths of the hidden layers.
        bins: Bins of a spline (nsf).
        bound: A spline acts within ±bound in units of the prior's standard deviation and is the identity outside (nsf).
        components: Components of the mixture (gmm).
    """

    kind: Literal["nsf", "maf", "gmm"] = "nsf"
    transforms: PositiveInt = 5
    hidden: tuple[PositiveInt, ...] = (64, 64)
    bins: PositiveInt = 8
    bound: PositiveFloat = 5.0
    components: PositiveInt = 8


class EmbeddingSettings(Settings):
    """What summarises x before the flow sees it.

    Attributes:
        kind: ``mlp``, or ``none`` to give the standardised x as it is.
        features: How many summaries.
        hidden: Widths of the hidden layers.
    """

    kind: Literal["mlp", "none"] = "mlp"
    features: PositiveInt = 32
    hidden: tuple[PositiveInt, ...] = (64, 64)


class DensitySettings(Settings):
    """What an estimator is built from.

    Attributes:
        method: A registered estimator; ``npe``.
        flow: The density.
        embedding: The summary network.
        transforms: Observable → function applied before standardisation. Where not given: ``log1p`` for counts,
            ``identity`` for the rest.
        whiten: Rotate the standardised x to its principal axes and scale those to unit variance: brings out what little
            tells neighbouring entries apart where they are nearly the same, as in smooth time series.
        ensemble: How many members, different in their initial weights alone, are trained in one pass and mixed.
    """

    method: str = "npe"
    flow: FlowSettings = FlowSettings()
    embedding: EmbeddingSettings = EmbeddingSettings()
    transforms: dict[str, XTransform] = Field(default_factory=dict)
    whiten: bool = False
    ensemble: PositiveInt = 1


class EstimatorSettings(DensitySettings):
    """One estimator.

    Attributes:
        impute: Replace what is not finite in x by the mean of that entry, in training and ever after.
    """

    impute: bool = False


class TrainingSettings(Settings):
    """Optimisation: AdamW, linear warm-up, cosine decay to zero, early stopping, best weights kept.

    Attributes:
        epochs: Passes over the training rows at most; the cosine ends there.
        batch_size: Rows in a step.
        learning_rate: Peak of the schedule.
        weight_decay: Of AdamW.
        warmup: Fraction of all steps spent rising to the peak.
        clip: Bound on the norm of the gradient.
        patience: Epochs without a better validation loss before stopping.
        validation: Fraction of the rows kept for the validation loss.
        loader: Where rows are kept: ``device``, ``memory``, or ``stream``ed from the store; ``auto`` streams what exceeds
            the memory budget and keeps on the device what fits there. Streaming shuffles otherwise, so results differ
            from those of the first two, which are the same.
    """

    epochs: PositiveInt = 60
    batch_size: PositiveInt = 256
    learning_rate: PositiveFloat = 1e-3
    weight_decay: NonNegativeFloat = 1e-4
    warmup: float = Field(default=0.05, ge=0, lt=1)
    clip: PositiveFloat = 5.0
    patience: NonNegativeInt = 15
    validation: float = Field(default=0.1, gt=0, lt=1)
    loader: Literal["auto", "device", "memory", "stream"] = "auto"


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
