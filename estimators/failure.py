"""A loss that is no number: what it was computed from is saved, and the likely reason is said."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ..data.batch import Batch
from ..data.errors import TrainingError

_EXTREME = 1e4  # times what is usual among the other rows
_NAMED = 5  # rows, in a message


@dataclass(frozen=True, slots=True)
class Step:
    """One step's batch and what came of it.

    Attributes:
        epoch: Counted from 0.
        index: Of the step in the epoch.
        batch: Its rows.
        losses: One per row.
    """

    epoch: int
    index: int
    batch: Batch
    losses: Float[Tensor, "rows"]

    @property
    def bad(self) -> Bool[Tensor, "rows"]:
        """Rows whose loss is no number."""
        return ~self.losses.cpu().isfinite()


def explain(step: Step, rows: np.ndarray | None, folder: Path | None) -> TrainingError:
    """The error to raise, its batch saved as ``batch-EPOCH-STEP.npz`` in ``folder``: theta, x_NAME, loss and row.

    Args:
        step: The step that went wrong.
        rows: What the batch's rows are called where they came from, if that is known.
        folder: None saves nothing.
    """
    mean = float(step.losses.mean())
    where, reason = f"in epoch {step.epoch}, step {step.index}, in {_named(step, rows)}", _reason(step)
    return TrainingError(f"the loss became {mean} {where}: {reason}. {_kept(step, rows, folder)}")


def _reason(step: Step) -> str:
    if step.bad.all():
        return "the network gives no row a number any more, so the step before was too large: lower `learning_rate`"
    found = _extreme(step)
    if found:
        name, value, ratio = found
        return (
            f"`{name}` reaches {value:.3g} there, {ratio:.0e} times what is usual in the batch: declare a transform for it, "
            "such as `arcsinh` or `log`, or leave such rows out"
        )
    return (
        "no value of theta or x stands out: lower `learning_rate`, or declare a transform for an observable with "
        "extreme values"
    )


def _extreme(step: Step) -> tuple[str, float, float] | None:
    """The observable or theta that stands out most in the bad rows: its value, and how far beyond the batch's median."""
    found = []
    for name, values in {"theta": step.batch.theta, **step.batch.x}.items():
        size = values.detach().cpu().double().abs().flatten(1)
        usual = size.nan_to_num(0.0).median(0).values.clamp(min=1e-300)
        ratio = (size / usual).nan_to_num(torch.inf)[step.bad]
        worst = int(ratio.argmax())
        value = float(values.detach().cpu().double().flatten(1)[step.bad].flatten()[worst])
        found.append((name, value, float(ratio.flatten()[worst])))
    most = max(found, key=lambda item: item[2])
    return most if most[2] > _EXTREME else None


def _named(step: Step, rows: np.ndarray | None) -> str:
    bad = np.flatnonzero(step.bad.numpy())
    if len(bad) == step.batch.rows:
        return "all rows of the batch"
    names = bad if rows is None else rows[bad]
    listed = ", ".join(str(name) for name in names[:_NAMED]) + (", …" if len(names) > _NAMED else "")
    return f"{'row' if len(names) == 1 else 'rows'} {listed}{' of the batch' if rows is None else ''}"


def _kept(step: Step, rows: np.ndarray | None, folder: Path | None) -> str:
    if folder is None:
        return "Give `folder` to have the batch saved"
    file = folder / f"batch-{step.epoch}-{step.index}.npz"
    arrays = {f"x_{name}": values.detach().cpu().numpy() for name, values in step.batch.x.items()}
    arrays |= {"theta": step.batch.theta.detach().cpu().numpy(), "loss": step.losses.cpu().float().numpy()}
    if rows is not None:
        arrays["row"] = rows
    partial = file.with_name(f".{file.name}.partial")
    with partial.open("wb") as stream:
        np.savez(stream, **arrays)  # type: ignore[arg-type]
    partial.replace(file)
    return f"The batch is in {file}"
