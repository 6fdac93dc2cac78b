"""Train on plain arrays: from simulations that are already there to a posterior, in one call."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import ShapeError
from ..data.loaders import as_batch
from ..data.variables import Arrays, Variable, Variables, check_finite
from ..simulators.prior import Prior
from .model import Model, build_estimator
from .settings import EstimatorSettings, TrainingSettings
from .training import EpochReport, Hardware, train_estimator

ArrayLike = Any


def train(
    theta: ArrayLike,
    x: ArrayLike | Mapping[str, ArrayLike],
    prior: Prior,
    *,
    estimator: EstimatorSettings | None = None,
    training: TrainingSettings | None = None,
    observables: Variables | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    hardware: Hardware | None = None,
    on_epoch: EpochReport = lambda epoch, train_loss, val_loss: None,
) -> Model:
    """Train an estimator on simulations.

    Args:
        theta: Parameters, shape ``(rows, parameter)``, in the order of ``prior.names``, drawn from the prior.
        x: What was simulated, row by row: one array ``(rows, *shape)``, called ``x``, or a mapping of several.
        prior: The prior theta was drawn from.
        estimator: Method, flow, embedding; NPE with a neural spline flow when None.
        training: Optimisation.
        observables: Names, units and support of x; taken from the arrays when None.
        seed: Of initial weights and of the order of rows.
        folder: Keeps checkpoints; training continues from what is there.
        hardware: Where to train.
        on_epoch: Called with (epoch, training loss, validation loss) after every epoch.

    Returns:
        The trained model; ``.posterior`` to ask, ``.save(folder)`` to keep. The last rows, a fraction
        ``training.validation`` of all, are the validation set.

    Raises:
        ShapeError: Arrays that do not fit each other or the prior.
        NotFiniteError: NaN or infinity.
    """
    estimator, training = estimator or EstimatorSettings(), training or TrainingSettings()
    theta, x = np.asarray(theta, dtype=np.float64), _named(x)
    observables = observables or _observables(x)
    _check(theta, x, prior, impute=estimator.impute)
    learn, validate = split(as_batch(theta, x), training.validation)
    network = build_estimator(prior, observables, estimator, seed)
    history = train_estimator(
        network, learn, validate, training, seed=seed, folder=_path(folder), hardware=hardware, on_epoch=on_epoch
    )
    facts = {
        "rows": {"train": learn.rows, "validation": validate.rows},
        "loss": {"train": history.train, "validation": history.validation, "best_epoch": history.best_epoch},
        "seconds": history.seconds,
        "training": training.model_dump(mode="json"),
        "transforms": network.transforms,
        "weights": sum(parameter.numel() for parameter in network.parameters()),
        "seed": seed,
    }
    return Model(network, prior, facts)


def split(rows: Batch, validation: float) -> tuple[Batch, Batch]:
    """The first rows to learn from, the last to validate with; simulations are independent, so any split is random.

    Raises:
        ShapeError: Too few rows for both.
    """
    held = max(1, round(validation * rows.rows))
    if rows.rows - held < 1:
        raise ShapeError(f"`theta` must have at least 2 rows to train and validate with; got {rows.rows}")
    return rows.select(slice(0, -held)), rows.select(slice(-held, None))


def _named(x: ArrayLike | Mapping[str, ArrayLike]) -> Arrays:
    named = x if isinstance(x, Mapping) else {"x": x}
    return {name: np.asarray(v.detach().cpu() if isinstance(v, Tensor) else v) for name, v in named.items()}


def _observables(x: Arrays) -> Variables:
    return Variables(Variable(name, values.shape[1:], str(values.dtype)) for name, values in x.items())


def _check(theta: np.ndarray, x: Arrays, prior: Prior, *, impute: bool) -> None:
    if theta.ndim != 2 or theta.shape[1] != prior.dim:
        raise ShapeError(f"`theta` must have shape (rows, {prior.dim}) for {', '.join(prior.names)}; got {theta.shape}")
    for name, values in x.items():
        if len(values) != len(theta):
            raise ShapeError(f"`x` must have one row per row of theta ({len(theta)}); got {len(values)} in {name!r}")
        if not impute:
            check_finite(values, f"x[{name!r}]")
    check_finite(theta, "theta")
    outside = ~prior.contains(torch.from_numpy(theta)).numpy()
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ShapeError(f"`theta` must lie in the prior's support; row {row} does not: {theta[row]}")


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)
