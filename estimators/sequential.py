r"""Truncated sequential inference: simulate, train, truncate the prior to where the posterior is, and again.

Round r simulates from the prior truncated at the observation by the posteriors of the rounds before (`truncation`), and
trains on all simulations inside that truncation, of whatever round; the loss is that of the method, unchanged, because
those rows are draws of a prior. The last posterior is that of the prior truncated by the round before: exact inside if the
network is, and without the mass, :math:`\epsilon` a round, that truncation cuts off. Deistler, Goncalves & Macke (2022),
https://arxiv.org/abs/2210.04815.

All of it lives in one folder and may be killed at any instant: the campaign is extended by rows whose theta is recorded
before they are simulated (`data.proposals`), models are written in one step, training goes on from its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..data.errors import ConfigError
from ..data.files import fingerprint, new_folder, write_json
from ..data.proposals import inside, proposals, propose
from ..data.store import SimulationStore
from ..data.variables import Arrays
from ..simulators.base import ContextPrior, Simulator, context_of
from ..simulators.block import Protection, group_size_of
from ..simulators.campaign import Executor, OnInvalid, simulate
from ..simulators.prior import Prior
from ..simulators.trail import filling
from .embeddings.own import imported
from .hardware import Hardware
from .losses import EpochReport
from .model import Model, load_model
from .settings import EstimatorSettings, RoundsSettings, TrainingSettings
from .train import train
from .truncation import Proposed, Region, Truncation

SIMULATIONS = "simulations.zarr"
_PER_ROUND = 1000  # seeds of one round; far more than one needs


@dataclass(frozen=True, slots=True)
class Sequential:
    """What truncated rounds end with.

    Attributes:
        model: Of the last round.
        truncation: Of the prior that its posterior is under.
        store: All simulations; None where no folder was given to keep them.
        rounds: Numbers of every round: rows, losses, threshold, acceptance, mass outside.
    """

    model: Model
    truncation: Truncation
    store: SimulationStore | None
    rounds: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Rounds:
    """The rounds of one folder.

    Attributes:
        folder: Holds the simulations and, in ``01``, ``02`` …, what each round made.
        x: The observation, context included.
        settings: How many, and how much each cuts off.
        prior: Of theta.
        rows: Of every round.
        group_size: Rows in turn that share one theta.
        seed: Root of all randomness.
        fill: Simulates the pending rows of the store at a path.
        fit: Trains on a store: ``(store, round, its folder)``.
        say: Tells the user.
        modules: Classes of the user's own that the models are built of, by name.
    """

    folder: Path
    x: Arrays
    settings: RoundsSettings
    prior: Prior
    rows: int
    group_size: int
    seed: int
    fill: Callable[[Path], SimulationStore]
    fit: Callable[[SimulationStore, int, Path], Model]
    say: Callable[[str], None] = lambda text: None
    modules: Mapping[str, Any] = field(default_factory=dict)

    def run(self) -> Sequential:
        """Go on from whatever is there.

        Raises:
            SimferError: Whatever simulating or training raises; what was computed before stays.
        """
        truncation, numbers = Truncation(self.prior, self.x), []
        for number in range(1, self.settings.rounds + 1):
            store = self.fill(self.folder / SIMULATIONS)
            model = self._model(store, number)
            leaked = truncation.leaked(model.posterior, seed=self._seed(number, 1))
            numbers.append(self._numbers(number, store, model, leaked))
            if number < self.settings.rounds:
                truncation = self._truncated(store, truncation, model, number)
        return Sequential(model, truncation, store, numbers)

    def _model(self, store: SimulationStore, number: int) -> Model:
        """Of a round; from its file, trained or not, so that a run that was killed goes on with the same numbers."""
        where = self._of(number)
        if not (where / "model").exists():
            self.fit(store, number, where).save(where / "model")
        return load_model(where / "model", modules=self.modules)

    def _truncated(self, store: SimulationStore, before: Truncation, model: Model, number: int) -> Truncation:
        """By a round's posterior; as recorded in the store if the next round's rows were proposed already."""
        known = proposals(store)
        if len(known) >= number:
            region = Region.from_json(model.posterior, known[number - 1]["region"])
            return Truncation(self.prior, self.x, (*before.regions, region))
        after = before.narrowed(model.posterior, self.settings.epsilon, seed=self._seed(number, 2))
        proposed = self._proposed(after, number)
        held = inside(store)
        held[held] = after.contains(store.read_array("theta")[held])
        with filling(store, alone=True):
            propose(store, proposed.theta, held, self._facts(after, proposed, number))
        self.say(
            f"round {number}: truncated; {proposed.acceptance:.2%} of candidates and {held.mean():.2%} of the rows before are "
            f"inside; {self.rows:,} more rows by {proposed.method}"
        )
        return after

    def _proposed(self, truncation: Truncation, number: int) -> Proposed:
        rng = np.random.default_rng(np.random.SeedSequence((self.seed, 9), spawn_key=(number,)))
        drawn = truncation.sample(-(-self.rows // self.group_size), rng, seed=self._seed(number, 3))
        theta = np.repeat(drawn.theta, self.group_size, axis=0)[: self.rows]
        return Proposed(theta, drawn.method, drawn.acceptance)

    def _facts(self, truncation: Truncation, proposed: Proposed, number: int) -> dict[str, Any]:
        return {
            "round": number + 1,
            "epsilon": self.settings.epsilon,
            "method": proposed.method,
            "acceptance": proposed.acceptance,
            "weights_sha256": _hash_of(self._of(number) / "model"),
            "observation_sha256": fingerprint({name: np.asarray(v).tolist() for name, v in sorted(self.x.items())}),
            "region": truncation.regions[-1].to_json(),
        }

    def _numbers(self, number: int, store: SimulationStore, model: Model, leaked: float) -> dict[str, Any]:
        loss, known = model.facts["loss"], proposals(store)
        how = known[number - 2] if number > 1 else {}
        ends = [item["first"] for item in known] + [store.rows]
        return {
            "round": number,
            "rows": ends[number - 1] - (how["first"] if how else 0),
            "rows_used": sum(model.facts["rows"].values()),
            "validation_loss": loss["validation"][loss["best_epoch"]],
            "leaked_mass": leaked,
            **{key: how[key] for key in ("method", "acceptance") if key in how},
        }

    def _of(self, number: int) -> Path:
        return self.folder / f"{number:02d}"

    def _seed(self, number: int, which: int) -> int:
        return self.seed * _PER_ROUND + number * 10 + which


def sequential(
    simulator: Simulator,
    prior: Prior | None,
    x: Arrays,
    *,
    rounds: int = 3,
    rows: int = 10_000,
    epsilon: float = 1e-4,
    estimator: EstimatorSettings | None = None,
    training: TrainingSettings | None = None,
    context: ContextPrior | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    executor: Executor | None = None,
    on_invalid: OnInvalid = "mask",
    protection: Protection | None = None,
    hardware: Hardware | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Sequential:
    """Infer one observation in truncated rounds.

    Args:
        simulator: The forward model.
        prior: Of theta; the simulator's own when None.
        x: The observation, with the context if the simulator has one.
        rounds: How often to simulate and train.
        rows: Simulations of every round.
        epsilon: Mass of the posterior that each truncation may cut off.
        estimator: Method, flow, embedding; after the first round theta is measured in the spread of the rows
            (``scale: rows``).
        training: Optimisation in every round.
        context: Overrides the simulator's own.
        seed: Root of all randomness.
        folder: Keeps everything, and goes on from what is there. None keeps nothing.
        executor: Runs the simulations.
        on_invalid: As in `simulate`.
        protection: As in `simulate`.
        hardware: Where to train.
        say: Told of every round.

    Raises:
        SimferError: Whatever simulating or training raises; what was computed before stays.
    """
    prior, context = prior or simulator.prior, context or context_of(simulator)
    settings, training = RoundsSettings(rounds=rounds, epsilon=epsilon), training or TrainingSettings()
    estimator = (estimator or EstimatorSettings()).model_copy(update={"impute": on_invalid == "impute"})

    def fill(path: Path) -> SimulationStore:
        return simulate(
            simulator,
            SimulationStore.open(path).rows if path.exists() else rows,
            path,
            seed=seed,
            prior=prior,
            context=context,
            executor=executor,
            on_invalid=on_invalid,
            protection=protection,
        )

    def fit(store: SimulationStore, number: int, where: Path) -> Model:
        return fit_round(store, number, where, prior, estimator, training, seed=seed, hardware=hardware)

    modules = imported(estimator.embedding)
    with _kept(folder) as where:
        observed = Rounds(where, x, settings, prior, rows, group_size_of(simulator), seed, fill, fit, say, modules)
        _require_same(where, estimator, training, observed)
        found = observed.run()
    return found if folder is not None else Sequential(found.model, found.truncation, None, found.rounds)


def fit_round(
    store: SimulationStore,
    number: int,
    where: Path,
    prior: Prior,
    estimator: EstimatorSettings,
    training: TrainingSettings,
    *,
    rows: slice | np.ndarray = slice(None),
    seed: int = 0,
    hardware: Hardware | None = None,
    on_epoch: EpochReport = lambda epoch, train_loss, val_loss: None,
) -> Model:
    """Train one round's network on the rows inside the truncation, going on from its checkpoint."""
    if number > 1 and estimator.method == "npe":
        estimator = estimator.model_copy(update={"scale": "rows"})
    return train(
        store,
        prior=prior,
        rows=rows,
        estimator=estimator,
        training=training,
        seed=seed + _PER_ROUND * (number - 1),
        folder=where / "checkpoints",
        hardware=hardware,
        on_epoch=on_epoch,
    )


def copy_store(source: Path, target: Path) -> None:
    """A store whose shards are those of another, in one step; files of rows are shared where the disk allows.

    Every writer replaces files and none writes into them, so that neither store can change the other.
    """
    with new_folder(target) as folder:
        shutil.copytree(source, folder, dirs_exist_ok=True, copy_function=_linked, ignore=_notes)


def _linked(source: str, target: str) -> str:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
    return target


def _notes(folder: str, names: Sequence[str]) -> list[str]:
    return [name for name in names if name == ".campaign" or name.endswith(".partial")]


@contextmanager
def _kept(folder: str | Path | None) -> Iterator[Path]:
    if folder is None:
        with tempfile.TemporaryDirectory() as temporary:
            yield Path(temporary)
        return
    Path(folder).mkdir(parents=True, exist_ok=True)
    yield Path(folder)


def _require_same(folder: Path, estimator: EstimatorSettings, training: TrainingSettings, rounds: Rounds) -> None:
    """Hold the folder to one set of settings: what is there decides what comes next."""
    own = {
        "estimator": estimator.model_dump(mode="json"),
        "training": training.model_dump(mode="json"),
        "epsilon": rounds.settings.epsilon,
        "rows": rounds.rows,
        "seed": rounds.seed,
        "x": fingerprint({name: np.asarray(values).tolist() for name, values in sorted(rounds.x.items())}),
    }
    file = folder / "sequential.json"
    if not file.is_file():
        write_json(file, own)
    theirs = json.loads(file.read_text(encoding="utf-8"))
    for key, kind in (("estimator", EstimatorSettings), ("training", TrainingSettings)):  # newer settings have defaults
        theirs[key] = kind.model_validate(theirs[key]).model_dump(mode="json")
    differing = [key for key in own if theirs.get(key) != own[key]]
    if differing:
        raise ConfigError(
            f"`folder` {folder} holds rounds that differ in {', '.join(differing)}: give another folder, or remove it"
        )


def _hash_of(model: Path) -> str:
    return hashlib.sha256((model / "weights.safetensors").read_bytes()).hexdigest()
