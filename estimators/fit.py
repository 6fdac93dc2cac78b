"""The part of a training that every process takes part in: from prepared rows to the best weights."""

from __future__ import annotations

import logging
import signal
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import Tensor
from torch.distributions import Distribution

from ..data.errors import TrainingError
from ..data.loaders import Rows, SimulationsDataModule
from .averaging import MovingAverage
from .base import Estimator
from .checkpoints import Checkpoints
from .hardware import Hardware
from .loggers import make_loggers
from .losses import EpochReport, Losses
from .module import RowNames, TrainingModule
from .robust.objective import Objective
from .schedule import Budget
from .settings import TrainingSettings
from .tuning import Tuning

_IRRELEVANT = (
    ".*does not have many workers.*",
    ".*Checkpoint directory.*",
    ".*Experiment logs directory.*",
    ".*log_every_n_steps.*",
    ".*LeafSpec.*",
    ".*GPU available but not used.*",
    ".*not yet implemented the batching rule.*",  # an ensemble's members then take turns in one operation
    ".*`srun` command is available.*",  # processes are started here, or there are none
    ".*`broadcast_buffers` is deprecated.*",  # in favour of what older versions of torch do not have
    ".*sync_dist=True.*",  # what is logged is of all processes already
    ".*The dirpath has changed.*",  # a run folder may be moved
)

_LAST = "last.ckpt"


@dataclass(frozen=True, slots=True)
class Place:
    """A process among those that train together.

    Attributes:
        rank: Which it is, of ``world``.
        world: How many there are.
        address: Of the first, where all meet.
        port: Likewise.
        device: Number of its GPU; on a CPU it has none.
    """

    rank: int = 0
    world: int = 1
    address: str = "127.0.0.1"
    port: int = 0
    device: int = 0


class _Environment(ClusterEnvironment):
    """Tells Lightning its place, so that it neither starts processes nor looks for those of a queue."""

    creates_processes_externally = True

    def __init__(self, place: Place) -> None:
        self._place = place

    @property
    def main_address(self) -> str:
        return self._place.address

    @property
    def main_port(self) -> int:
        return self._place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self._place.world

    def set_world_size(self, size: int) -> None: ...

    def global_rank(self) -> int:
        return self._place.rank

    def set_global_rank(self, rank: int) -> None: ...

    def local_rank(self) -> int:
        return 0  # every process is given one device

    def node_rank(self) -> int:
        return 0


@dataclass(frozen=True, slots=True)
class Fitted:
    """What came of it: the best weights, losses of every epoch as `Losses` has them, and seconds."""

    best: dict[str, Tensor]
    train: list[float]
    validation: list[float]
    members: list[list[float]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Fit:
    """A training, prepared; it can be sent to other processes.

    Attributes:
        estimator: With its normalisation.
        objective: What is minimised.
        train: Rows to learn from.
        validation: Rows for the validation loss.
        settings: Of the optimisation.
        budget: The same in numbers.
        seed: Of the order of rows.
        hardware: Where to train.
        folder: Where checkpoints live, and a batch whose loss is no number; None keeps nothing.
        logs: Where logs live; None writes none.
        name_rows: As `TrainingModule` has it.
    """

    estimator: Estimator
    objective: Objective
    train: Rows
    validation: Rows
    settings: TrainingSettings
    budget: Budget
    seed: int
    hardware: Hardware
    folder: Path | None
    logs: Path | None
    name_rows: RowNames | None

    def __call__(self, on_epoch: EpochReport, place: Place | None = None) -> Fitted:
        """Train in this process, alone or at its place among others."""
        place = place or Place()
        losses = Losses(on_epoch, self.logs)
        with ExitStack() as stack:
            stack.enter_context(quiet())
            threads = stack.enter_context(_threads(self.hardware.threads))
            stack.enter_context(_unvalidated())
            folder = self.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            data = self._data()
            module = self._module(data, place, threads, stack)
            trainer = self._trainer(folder, losses, place)
            last = folder / _LAST
            stack.enter_context(_interruptible())
            trainer.fit(module, datamodule=data, ckpt_path=_readable(last) if last.is_file() else None)
        return Fitted(losses.best, losses.train, losses.validation, losses.members, losses.seconds)

    def _data(self) -> SimulationsDataModule:
        resident = {"device": True, "memory": False}.get(self.settings.loader)
        size = self.budget.batch_size
        return SimulationsDataModule(self.train, self.validation, batch_size=size, seed=self.seed, resident=resident)

    def _module(
        self, data: SimulationsDataModule, place: Place, threads: int | None, stack: ExitStack
    ) -> TrainingModule:
        compile_ = (
            self.hardware.compile if self.objective.plain else "never"
        )  # what is compiled has no second derivative
        tuning = Tuning(self.train, max(self.budget.batch_size // place.world, 1), compile_, threads)
        stack.callback(tuning.compilation.undo)
        return TrainingModule(
            self.estimator,
            self.settings,
            self.budget.epochs * data.steps_per_epoch,
            self.budget.learning_rate,
            tuning=tuning,
            objective=self.objective,
            folder=self.folder,
            name_rows=self.name_rows,
        )

    def _trainer(self, folder: Path, losses: Losses, place: Place) -> L.Trainer:
        settings, hardware, logs = self.settings, self.hardware, self.logs
        loggers = make_loggers(hardware.loggers, logs or folder) if logs or hardware.loggers else []
        stop = _EarlyStopping("val_loss", patience=settings.patience, check_on_train_epoch_end=True, check_finite=False)
        average = [] if settings.ema is None else [MovingAverage(settings.ema)]
        return L.Trainer(
            accelerator=hardware.accelerator,
            devices=_devices(hardware, place),
            strategy=_strategy(hardware, place),
            plugins=[_Environment(place)],
            precision=hardware.precision,  # type: ignore[arg-type]
            max_epochs=self.budget.epochs,
            gradient_clip_val=settings.clip,
            callbacks=[*average, losses, stop, Checkpoints(folder / _LAST)],
            profiler=_NoProfiler(),
            logger=loggers,
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=self.objective.plain,  # in which nothing has a gradient, not even in x
            use_distributed_sampler=False,
        )


def _strategy(hardware: Hardware, place: Place) -> str | Strategy:
    if place.world == 1:
        return hardware.strategy
    # buffers never differ; to broadcast them in every step would need equally many steps of validation
    return DDPStrategy(broadcast_buffers=False, find_unused_parameters=hardware.finds_unused)


def _devices(hardware: Hardware, place: Place) -> int | list[int]:
    cuda = hardware.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return [place.device % torch.cuda.device_count()] if cuda and place.world > 1 else 1


class _EarlyStopping(EarlyStopping):
    """Lightning's, but a training that was stopped is not taken up again when it is resumed."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.wait_count >= max(self.patience, 1):
            trainer.should_stop = True


class _NoProfiler(PassThroughProfiler):
    """Lightning asks for a context fifty times a step; making them took a tenth of a millisecond."""

    _NOTHING = nullcontext()

    def profile(self, action_name: str) -> Any:
        return self._NOTHING


def _readable(checkpoint: Path) -> Path:
    try:
        torch.load(checkpoint, map_location="cpu", weights_only=True)
    except Exception as error:
        raise TrainingError(
            f"the checkpoint {checkpoint} cannot be read ({error}): remove it to train from the start"
        ) from error
    return checkpoint


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C be a KeyboardInterrupt: Lightning ignores further ones and turns it into SystemExit."""
    main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGINT) if main else None
    try:
        yield
    except SystemExit as error:
        raise KeyboardInterrupt from error
    finally:
        if main:
            signal.signal(signal.SIGINT, before)


@contextmanager
def _threads(threads: int | Literal["auto"] | None) -> Iterator[int | None]:
    """Use a given number of torch threads: two on two busy cores can be ten times slower than one.

    Yields how many may be used, where that is to be decided, one being in use until then.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1 if threads == "auto" else threads or before)
    try:
        yield before if threads == "auto" else None
    finally:
        torch.set_num_threads(before)


@contextmanager
def _unvalidated() -> Iterator[None]:
    """Let torch's distributions not look at every value of every step: the loss is looked at."""
    before = Distribution._validate_args
    Distribution.set_default_validate_args(False)
    try:
        yield
    finally:
        Distribution.set_default_validate_args(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Silence Lightning's talk about hardware and loaders; its errors still come through."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("pytorch", "fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in _IRRELEVANT:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
