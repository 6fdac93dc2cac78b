"""Training: one thin Lightning module that owns optimisation, whatever the estimator.

AdamW (Loshchilov & Hutter 2019, https://arxiv.org/abs/1711.05101), linear warm-up, cosine decay to zero, clipping of the
gradient's norm, early stopping on the validation loss, best weights kept; on request those of an exponential moving
average (Polyak & Juditsky 1992), whose decay rises as (1 + n) / (10 + n) to its value in n steps. After epochs, and
every ten minutes within one, the whole state, best weights included, goes to ``last.ckpt``; the order of rows depends on
(seed, epoch) alone and the loader counts what was consumed, so a run killed anywhere ends with the same losses.
"""

from __future__ import annotations

import logging
import math
import signal
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor
from torch.distributions import Distribution

from ..data.batch import Batch
from ..data.errors import TrainingError
from ..data.loaders import Portions, Rows, SimulationsDataModule
from ..data.ranges import Ranges
from .averaging import MovingAverage
from .base import Estimator
from .checkpoints import Checkpoints
from .cluster import cluster_environments
from .compiled import When
from .failure import Step, explain
from .loggers import LoggerName, make_loggers
from .losses import EpochReport, Losses, comparable, of_member
from .robust.objective import Objective
from .schedule import Budget, budget
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
    ".*`srun` command is available.*",  # one process needs none
    ".*The dirpath has changed.*",  # a run folder may be moved
)

_LAST = "last.ckpt"

RowNames = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where to train; cannot change what is trained beyond rounding, but for what ``memory`` decides.

    ``memory`` is the budget in bytes of each process for rows on their way to the network, a quarter of what the process
    may use when None: what is larger is streamed, with a smaller buffer where the budget is below 512 MiB. ``threads`` are
    torch's on a CPU: chosen when ``auto``, as they are when None. ``compile`` is when to use ``torch.compile``: where it pays
    when ``auto``. ``loggers`` are those besides TensorBoard. The rest is the Lightning Trainer's.
    """

    accelerator: str = "auto"
    devices: int | str = "auto"
    precision: str = "32-true"
    threads: int | Literal["auto"] | None = "auto"
    memory: int | None = None
    strategy: str = "auto"
    compile: When = "never"
    loggers: tuple[LoggerName, ...] = ()


@dataclass(frozen=True, slots=True)
class History:
    """Losses in nats per row, one of each per epoch: of several members the mean.

    ``members`` has the validation loss of every member, ``facts`` what the estimator learned when it was trained,
    ``budget`` what ``auto`` stood for.
    """

    train: list[float]
    validation: list[float]
    seconds: float
    members: list[list[float]]
    facts: dict[str, Any]
    budget: Budget

    @property
    def best_epoch(self) -> int:
        return min(range(len(self.validation)), key=lambda epoch: comparable(self.validation[epoch]))


class TrainingModule(L.LightningModule):
    """Steps, schedule and mean losses of an estimator.

    Args:
        estimator: What is trained.
        settings: Of the optimisation.
        steps: In all epochs, at the end of which the schedule ends.
        learning_rate: Peak of the schedule.
        tuning: Looks at the machine before the first step; None leaves all as it is.
        objective: What is minimised; the estimator's own loss when None.
        folder: Where a batch is saved whose loss is no number; None saves none.
        name_rows: From numbers of training rows to what they are called where they came from.
    """

    def __init__(
        self,
        estimator: Estimator,
        settings: TrainingSettings,
        steps: int,
        learning_rate: float,
        *,
        tuning: Tuning | None = None,
        objective: Objective | None = None,
        folder: Path | None = None,
        name_rows: RowNames | None = None,
    ) -> None:
        super().__init__()
        self.estimator = estimator
        self.settings = settings
        self.steps, self.learning_rate = steps, learning_rate
        self._tuning, self._folder, self._name_rows = tuning, folder, name_rows
        self._objective = objective or Objective(TrainingSettings(), estimator)
        self._last: Step | None = None
        self._sum: Tensor | float = 0.0
        self._count = 0

    def __setattr__(self, name: str, value: Any) -> None:
        # fifty times a step Lightning notes which hook it is in; modules look for parameters in what they are given
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            super().__setattr__(name, value)

    def on_fit_start(self) -> None:
        self.trainer.datamodule.to(self.device)  # type: ignore[attr-defined]

    def on_train_start(self) -> None:
        if self._tuning:
            left, precision = self.steps - self.global_step, self.trainer.precision_plugin.train_step_context
            self._tuning.decide(self.estimator, left, self.device, precision)

    def on_train_epoch_start(self) -> None:
        # Lightning restores a loader's state only within an epoch; at its end the next order would be the first again
        self.trainer.datamodule.set_epoch(self.current_epoch)  # type: ignore[attr-defined]

    def training_step(self, batch: Batch, index: int) -> Tensor:
        losses = self._objective.losses(self.estimator, batch, self.global_step)
        added = self._objective.added(self.estimator, batch, self.global_step)
        means = losses.mean(1) + added
        if self.device.type != "cpu":  # a step late: asked now, the host would wait for the device in every step
            self._require_finite()
        self._last = Step(
            self.current_epoch, index, batch, losses.detach().sum(0) + torch.as_tensor(added).detach().sum()
        )
        if self.device.type == "cpu":
            self._require_finite()
        self._sum, self._count = self._sum + means.detach().mean(), self._count + 1
        return means.sum()

    def _require_finite(self) -> None:
        """Raise TrainingError if the last step's loss was no number."""
        step, self._last = self._last, None
        if step is not None and not math.isfinite(step.losses.mean()):
            raise explain(step, self._rows(step.index), self._folder)

    def _rows(self, index: int) -> np.ndarray | None:
        numbers = self.trainer.datamodule.numbers(index)  # type: ignore[attr-defined]
        return numbers if numbers is None or self._name_rows is None else self._name_rows(numbers)

    @property
    def mean_loss(self) -> float:
        """Mean training loss of the epoch so far."""
        return float(self._sum) / max(self._count, 1)

    def on_train_epoch_end(self) -> None:
        self._require_finite()
        self.log("train_loss", self.mean_loss)
        self._sum, self._count = 0.0, 0

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["epoch_so_far"] = (float(self._sum), self._count)
        checkpoint["objective"] = self._objective.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._sum, self._count = checkpoint["epoch_so_far"]
        self._objective.load_state_dict(checkpoint.get("objective", {}))

    def validation_step(self, batch: Batch, index: int) -> None:
        losses = self._objective.validate(self.estimator, batch, index)
        found = {"val_loss": losses.mean(), **{of_member(k): loss for k, loss in enumerate(losses)}}
        self.log_dict(found if len(losses) > 1 else {"val_loss": losses[0]}, batch_size=batch.rows, sync_dist=True)

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        if self.estimator.members > 1 and gradient_clip_val:
            clip_members(self.parameters(), gradient_clip_val)
        else:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)

    def configure_optimizers(self) -> Any:
        s = self.settings
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.learning_rate, weight_decay=s.weight_decay, fused=True)
        warmup = max(1, round(s.warmup * self.steps))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _schedule(step, warmup, self.steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def train_estimator(
    estimator: Estimator,
    train: Rows,
    validation: Rows,
    settings: TrainingSettings,
    *,
    seed: int = 0,
    folder: Path | None = None,
    logs: Path | None = None,
    hardware: Hardware | None = None,
    name_rows: RowNames | None = None,
    on_epoch: EpochReport = lambda epoch, train_loss, val_loss: None,
) -> History:
    """Train in place and leave the best weights in ``estimator``.

    Args:
        estimator: Freshly made; its normalisation is fitted here.
        train: Rows to learn from.
        validation: Rows for the validation loss.
        settings: Of the optimisation.
        seed: Of the order of rows. Initial weights are the caller's.
        folder: Where checkpoints live; training continues from what is there. None keeps nothing.
        logs: Where ``metrics.csv`` and what other loggers write live; ``folder`` when None.
        hardware: Where to train.
        name_rows: From numbers of training rows to what they are called where they came from, for messages.
        on_epoch: Called with (epoch, training loss, validation loss) after every epoch.

    Raises:
        TrainingError: The loss is no number, or a checkpoint cannot be read.
        ConfigError: A logger that is not installed.
    """
    hardware = hardware or Hardware()
    estimator.seen = Ranges()
    estimator.fit_preprocess(estimator.seen.watch(Portions(train)))
    _tell_constant(estimator.seen)
    train, validation = _prepared(estimator, train), _prepared(estimator, validation)
    resident = {"device": True, "memory": False}.get(settings.loader)
    numbers = budget(settings, train.rows)
    data = SimulationsDataModule(train, validation, batch_size=numbers.batch_size, seed=seed, resident=resident)
    with ExitStack() as stack:
        stack.enter_context(_quiet())
        threads = stack.enter_context(_threads(hardware.threads))
        stack.enter_context(_unvalidated())
        logs, kept = logs or folder, folder
        losses = Losses(on_epoch, logs)
        folder = folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        objective = Objective(settings, estimator, Portions(train), seed)
        compile_ = hardware.compile if objective.plain else "never"  # what is compiled has no second derivative
        tuning = Tuning(train, numbers.batch_size, compile_, threads)
        stack.callback(tuning.compilation.undo)
        steps, rate = numbers.epochs * data.steps_per_epoch, numbers.learning_rate
        module = TrainingModule(
            estimator, settings, steps, rate, tuning=tuning, objective=objective, folder=kept, name_rows=name_rows
        )
        loggers = make_loggers(hardware.loggers, logs or folder) if logs or hardware.loggers else []
        trainer = _trainer(folder, settings, numbers.epochs, hardware, [losses], loggers, objective.plain)
        last = folder / _LAST
        stack.enter_context(_interruptible())
        trainer.fit(module, datamodule=data, ckpt_path=_readable(last) if last.is_file() else None)
    estimator.cpu().load_state_dict(losses.best)
    with _quiet():
        facts = estimator.eval().finish(Portions(validation)) | objective.finish(estimator, Portions(validation))
    return History(losses.train, losses.validation, losses.seconds, losses.members, facts, numbers)


def _prepared(estimator: Estimator, rows: Rows) -> Rows:
    return estimator.prepare(rows) if isinstance(rows, Batch) else rows


def clip_members(parameters: Iterable[Tensor], bound: float) -> None:
    """Scale the gradient of every member, the leading axis, to a norm of at most ``bound``."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.linalg.vector_norm(torch.cat([gradient.flatten(1) for gradient in gradients], 1), dim=1)
    scale = (bound / (norms + 1e-6)).clamp(max=1.0)  # as torch does for one
    for gradient in gradients:
        gradient.mul_(scale.view(-1, *[1] * (gradient.dim() - 1)))


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


def _trainer(
    folder: Path,
    settings: TrainingSettings,
    epochs: int,
    hardware: Hardware,
    callbacks: list[Callback],
    loggers: list[Any],
    plain: bool,
) -> L.Trainer:
    stop = _EarlyStopping("val_loss", patience=settings.patience, check_on_train_epoch_end=True, check_finite=False)
    average = [] if settings.ema is None else [MovingAverage(settings.ema)]
    return L.Trainer(
        accelerator=hardware.accelerator,
        devices=hardware.devices,
        strategy=hardware.strategy,
        precision=hardware.precision,  # type: ignore[arg-type]
        max_epochs=epochs,
        gradient_clip_val=settings.clip,
        callbacks=[*average, *callbacks, stop, Checkpoints(folder / _LAST)],
        profiler=_NoProfiler(),
        plugins=cluster_environments(),
        logger=loggers,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        inference_mode=plain,  # in which nothing has a gradient, not even in x
        use_distributed_sampler=False,
    )


def _tell_constant(seen: Ranges) -> None:
    constant = seen.constant() if seen.rows > 1 else []
    if constant:
        named = ", ".join(f"`{name}`" for name in constant[:5]) + (" and others" if len(constant) > 5 else "")
        warnings.warn(
            f"{len(constant)} entries of x have one value in all {seen.rows} training rows ({named}): they tell nothing, and "
            "the network gets 0 for each; another value in an observation will be warned of",
            UserWarning,
            stacklevel=4,
        )


def _schedule(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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
def _quiet() -> Iterator[None]:
    """Silence Lightning's talk about hardware and loaders; its errors still come through."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for text in _IRRELEVANT:
                warnings.filterwarnings("ignore", message=text)
            yield
    finally:
        logger.setLevel(level)
