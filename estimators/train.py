"""Train on arrays or on a store: from simulations that are already there to a posterior, in one call."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import ConfigError, ShapeError
from ..data.files import write_json
from ..data.loaders import Portions, Rows, as_batch
from ..data.proposals import inside
from ..data.splits import hold_out
from ..data.store import SimulationStore
from ..data.streaming import StoredRows, usable_rows
from ..data.variables import Arrays, Variable, Variables, check_finite
from ..simulators.prior import Prior
from .base import Estimator
from .embeddings.own import imported, with_classes
from .hardware import Hardware
from .losses import EpochReport
from .model import Model, build_estimator
from .robust.tradeoff import trade_off
from .settings import LIKELIHOODS, EstimatorSettings, TrainingSettings
from .symmetry.own import imported_symmetry, with_object
from .training import History, train_estimator

ArrayLike = Any


def train(
    theta: ArrayLike | SimulationStore | str | Path,
    x: ArrayLike | Mapping[str, ArrayLike] | None = None,
    prior: Prior | None = None,
    *,
    groups: ArrayLike | None = None,
    estimator: EstimatorSettings | None = None,
    training: TrainingSettings | None = None,
    observables: Variables | None = None,
    rows: slice | np.ndarray = slice(None),
    seed: int = 0,
    folder: str | Path | None = None,
    logs: str | Path | None = None,
    hardware: Hardware | None = None,
    on_epoch: EpochReport = lambda epoch, train_loss, val_loss: None,
) -> Model:
    """Train an estimator on simulations.

    Args:
        theta: Parameters, shape ``(rows, parameter)``, in the order of ``prior.names``, drawn from the prior; or a
            simulation store, or its path, which holds x as well: its usable rows are loaded, or streamed where they
            exceed the memory budget.
        x: What was simulated, row by row: one array ``(rows, *shape)``, of the only observable, called ``x`` if it has no
            name; or a mapping of several. None with a store.
        prior: The prior theta was drawn from; a store knows it.
        groups: Numbers, one per row of arrays; rows of one group are not divided between training and validation. A store
            knows its own.
        estimator: Method, flow, embedding; NPE with a neural spline flow when None.
        training: Optimisation.
        observables: Names, units and support of x; taken from the arrays, or the store, when None.
        rows: Which rows of a store, a slice or one truth value each.
        seed: Of initial weights and of the order of rows.
        folder: Keeps checkpoints; training continues from what is there, with the loader it began with. A batch whose loss
            is no number is saved there.
        logs: Keeps ``metrics.csv``, and what TensorBoard and other loggers write; ``folder`` when None.
        hardware: Where to train.
        on_epoch: Called with (epoch, training loss, validation loss) after every epoch.

    Returns:
        The trained model; ``.posterior`` to ask, ``.save(folder)`` to keep. The last rows, a fraction
        ``training.validation`` of all, are the validation set.

    Raises:
        ShapeError: Arrays that do not fit each other or the prior.
        NotFiniteError: NaN or infinity.
        CorruptStoreError: A checksum of the store does not fit; names the shard.
        ConfigError: Arrays are to be streamed.
    """
    estimator, training = _with_own_classes(estimator or EstimatorSettings()), training or TrainingSettings()
    hardware, where = hardware or Hardware(), _path(folder)
    if isinstance(theta, SimulationStore | str | Path):
        store = theta if isinstance(theta, SimulationStore) else SimulationStore.open(theta)
        prior = prior or _prior(store)
        learn, validate, mask = _stored(store, rows, prior, estimator, training, hardware, where)
        observables = observables or store.conditions
        estimator = _of_store(estimator, store)
    else:
        if prior is None or x is None:
            raise ShapeError("`x` and `prior` must be given with theta as an array; only a store knows them")
        named = _named(x, observables)
        learn, validate, mask = _arrays(np.asarray(theta, dtype=np.float64), named, prior, estimator, training, groups)
        observables = observables or _observables(named)

    def fit(training: TrainingSettings, part: str = "") -> tuple[Estimator, History]:
        network = build_estimator(prior, observables, estimator, seed)
        history = train_estimator(
            network,
            learn,
            validate,
            training,
            seed=seed,
            folder=where / part if where else None,
            logs=Path(logs) / part if logs else None,
            hardware=hardware,
            name_rows=_Named(np.flatnonzero(mask)),
            on_epoch=on_epoch,
        )
        return network, history

    undecided = training.undecided
    network, history = trade_off(fit, training, prior.dim, lambda: Portions(validate)) if undecided else fit(training)
    if estimator.failures:
        _learn_failures(network, theta, seed)
    facts = {
        "rows": {"train": learn.rows, "validation": validate.rows},
        "loss": {"train": history.train, "validation": history.validation, "best_epoch": history.best_epoch},
        **history.facts,
        "seconds": history.seconds,
        "loader": _described(learn),
        "training": training.model_dump(mode="json") | asdict(history.budget),
        "transforms": network.transforms,
        "weights": sum(parameter.numel() for parameter in network.parameters()),
        "seed": seed,
    }
    return Model(network, prior, facts)


@dataclass(frozen=True, slots=True)
class _Named:
    """What training rows are called where they came from."""

    names: np.ndarray

    def __call__(self, numbers: np.ndarray) -> np.ndarray:
        return np.asarray(self.names[numbers])


def split(rows: Batch, validation: float, groups: np.ndarray | None = None) -> tuple[Batch, Batch]:
    """The first rows to learn from, the last to validate with (`hold_out`); simulations are independent, so any split is
    random.

    Raises:
        ShapeError: Too few rows, or groups, for both.
    """
    return _divided(rows, hold_out(np.ones(rows.rows, dtype=bool), validation, groups), slices=groups is None)


def _divided(rows: Batch, masks: tuple[np.ndarray, np.ndarray], *, slices: bool) -> tuple[Batch, Batch]:
    if slices:  # they copy nothing
        first = int(masks[0].sum())
        return rows.select(slice(0, first)), rows.select(slice(first, None))
    learn, validate = (rows.select(torch.from_numpy(np.flatnonzero(mask))) for mask in masks)
    return learn, validate


def _groups(groups: ArrayLike, rows: int) -> np.ndarray:
    array = np.asarray(groups)
    if array.shape != (rows,):
        raise ShapeError(f"`groups` must have one number per row of theta ({rows}); got shape {array.shape}")
    return array


def _arrays(
    theta: np.ndarray,
    x: Arrays,
    prior: Prior,
    estimator: EstimatorSettings,
    training: TrainingSettings,
    groups: ArrayLike | None,
) -> tuple[Batch, Batch, np.ndarray]:
    """Rows to learn from and to validate with, and which the former are."""
    if training.loader == "stream":
        raise ConfigError("`loader` must be auto, device or memory for arrays: `stream` needs a simulation store")
    _check(theta, x, prior, impute=estimator.impute)
    for name, values in x.items():
        _check_told_apart(name, values)
    _check_drawn(theta, prior)
    named = None if groups is None else _groups(groups, len(theta))
    masks = hold_out(np.ones(len(theta), dtype=bool), training.validation, named)
    return *_divided(as_batch(theta, x), masks, slices=named is None), masks[0]


def _stored(
    store: SimulationStore,
    rows: slice | np.ndarray,
    prior: Prior,
    estimator: EstimatorSettings,
    training: TrainingSettings,
    hardware: Hardware,
    folder: Path | None,
) -> tuple[Rows, Rows, np.ndarray]:
    """Usable rows of a store, split as arrays are; whether x is finite has been asked when it was simulated.

    Of a store of truncated rounds those inside the last truncation: they alone are drawn from one prior. Which are to
    learn from comes last.
    """
    keep = usable_rows(store, rows, impute=estimator.impute) & inside(store)
    _check_stored(store, keep, prior)
    group = store.read_array("group") if store.schema.grouped else None
    masks = hold_out(keep, training.validation, group)
    memory = hardware.budget
    decided = _decided(StoredRows(store, keep, memory), training, folder)
    parts = [StoredRows(store, mask, memory, buffer_rows=decided.get("buffer_rows")) for mask in masks]
    if decided["kind"] == "stream":
        return parts[0], parts[1], masks[0]
    return parts[0].load(), parts[1].load(), masks[0]


def _of_store(estimator: EstimatorSettings, store: SimulationStore) -> EstimatorSettings:
    """What an estimator must know of a store: which of its arrays are context, and, of a likelihood, whether rows are not valid.

    A density of theta need not know the latter: leaving rows out does not bias it where x decides which are valid.

    Raises:
        ConfigError: Rows failed, of which others that are not valid are imputed.
    """
    found: dict[str, Any] = {"context": store.schema.context.names}
    if estimator.method not in LIKELIHOODS:
        return estimator.model_copy(update=found)
    counts = store.counts()
    if counts["invalid"] + counts["failed"] + counts["timeout"]:
        if estimator.impute and counts["failed"] + counts["timeout"]:
            raise ConfigError(
                f"`on_invalid` must be `mask` with method `{estimator.method}`, because {counts['failed']} rows of "
                f"{store.path} failed and {counts['timeout']} timed out: leaving them out would bias it, and how often "
                "theta makes rows fail is learned with `mask` only"
            )
        found["failures"] = not estimator.impute
    return estimator.model_copy(update=found)


def _learn_failures(network: Estimator, store: SimulationStore | str | Path, seed: int) -> None:
    """Give a likelihood of valid rows the probability of being valid, from all rows, the invalid ones included."""
    from .validity import learn_validity

    opened = store if isinstance(store, SimulationStore) else SimulationStore.open(store)
    network.get_submodule("validity").load_state_dict(learn_validity(opened, seed=seed).network.network.state_dict())


def _decided(rows: StoredRows, training: TrainingSettings, folder: Path | None) -> dict[str, Any]:
    """The loader and all of it that has an effect on results: chosen once, then kept beside the checkpoints."""
    file = folder / "loader.json" if folder else None
    if file and file.is_file():
        return dict(json.loads(file.read_text()))
    stream = training.loader == "stream" or (training.loader == "auto" and rows.nbytes > rows.memory)
    decided = {"kind": "stream", "buffer_rows": rows.buffer_rows} if stream else {"kind": "memory"}
    if file:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_json(file, decided)
    return decided


def _described(rows: Rows) -> dict[str, Any]:
    return {"kind": "stream", "buffer_rows": rows.buffer_rows} if isinstance(rows, StoredRows) else {"kind": "memory"}


def _prior(store: SimulationStore) -> Prior:
    described = store.attributes.get("campaign", {}).get("prior")
    if described is None:
        raise ShapeError(f"`prior` must be given: {store.path} does not say what its theta was drawn from")
    return Prior.from_json(described)


def _check_stored(store: SimulationStore, keep: np.ndarray, prior: Prior) -> None:
    if store.parameters.names != prior.names:
        raise ShapeError(
            f"`prior` must have the parameters {', '.join(store.parameters.names)} of the store; got {prior}"
        )
    for shard in range(store.layout.shards):
        rows = store.layout.shard_rows(shard)
        theta = store.read_array("theta", rows)[keep[rows]]
        _check_theta(theta, prior)
        if shard == 0:
            _check_drawn(theta, prior)


def _named(x: ArrayLike | Mapping[str, ArrayLike], observables: Variables | None) -> Arrays:
    only = observables.names[0] if observables and len(observables) == 1 else "x"
    named = x if isinstance(x, Mapping) else {only: x}
    if observables:
        observables.require_names(named, "x")
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
    _check_theta(theta, prior)


def _check_theta(theta: np.ndarray, prior: Prior) -> None:
    check_finite(theta, "theta")
    outside = ~prior.contains(torch.from_numpy(theta)).numpy()
    if outside.any():
        row = int(np.flatnonzero(outside)[0])
        raise ShapeError(f"`theta` must lie in the prior's support; row {row} does not: {theta[row]}")


def _with_own_classes(settings: EstimatorSettings) -> EstimatorSettings:
    """Classes and objects in place of the names that the caller gave."""
    embedding = with_classes(settings.embedding, imported(settings.embedding))
    symmetry = with_object(settings.symmetry, imported_symmetry(settings.symmetry))
    return settings.model_copy(update={"embedding": embedding, "symmetry": symmetry})


def _check_drawn(theta: np.ndarray, prior: Prior) -> None:
    """Refuse parameters that no draw from the prior has: one value in all rows, or those of another parameter."""
    if len(theta) < 2:
        return
    for i, name in enumerate(prior.names):
        if (theta[:, i] == theta[0, i]).all():
            raise ShapeError(
                f"`theta` must be drawn from the prior; `{name}` is {theta[0, i]:g} in all {len(theta)} rows: "
                "leave a parameter that is known out of the prior"
            )
        same = [other for j, other in enumerate(prior.names[:i]) if (theta[:, i] == theta[:, j]).all()]
        if same:
            raise ShapeError(
                f"`theta` must be drawn from the prior; `{name}` equals `{same[0]}` in all {len(theta)} rows: "
                "leave one of them out of the prior"
            )


def _check_told_apart(name: str, values: np.ndarray) -> None:
    """Refuse x whose differences are lost in float32, which is what networks take."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size or finite.min() == finite.max():
        return
    with np.errstate(over="ignore", under="ignore"):
        seen = finite.astype(np.float32)
    if seen.min() == seen.max() != 0:  # 0 is refused where it is cast
        raise ShapeError(
            f"`x[{name!r}]` lies between {finite.min():.17g} and {finite.max():.17g}, which float32, the precision of "
            "networks, cannot tell apart: subtract an offset"
        )


def _path(folder: str | Path | None) -> Path | None:
    return None if folder is None else Path(folder)
