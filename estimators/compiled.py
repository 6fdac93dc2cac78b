"""Compiled training steps, where compiling takes less time than it saves.

A flow chains transforms of one shape. One of them, its hyper-network and its spline, is compiled by ``torch.compile`` and
the code is called for each: the graph is a fifth of the whole loss's for five transforms, and so is the time to compile
it. Everything else of a step, and validation, stays as it is.

Whether it pays is a matter of rent or buy (Karlin et al. 1988, https://doi.org/10.1007/BF01762111): a shape is compiled
once the seconds that its trainings lost without, this one included, exceed what compiling takes; at worst twice the least
time is spent. What was lost and, later, measured is kept beside the compiler's own cache.

Compiled or not, losses agree to rounding; where they do not, or anything at all goes wrong, training goes on without.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import FunctionType
from typing import Literal

import torch
from torch import Tensor, nn
from torch.distributions import Transform, constraints
from zuko.flows.autoregressive import MaskedAutoregressiveTransform
from zuko.flows.coupling import GeneralCouplingTransform
from zuko.lazy import LazyComposedTransform, LazyTransform

from ..data.files import write_json
from .base import Estimator
from .trial import Trial

logger = logging.getLogger("simfer.train")

When = Literal["auto", "always", "never"]

_KINDS = (MaskedAutoregressiveTransform, GeneralCouplingTransform)
_STEPS_WORTH_A_LOOK = 300
_WORTH_A_LOOK = 3.0  # seconds of uncompiled steps in all
_COLD = 30.0  # seconds to compile where nothing is known
_AGAIN = 0.2  # of the time to compile, where the compiler's cache has it
_SAVED = 0.5  # share of a step that compiling saves where nothing is known
_TOLERANCE = 1e-4  # of the loss, relative where it exceeds 1


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of one shape, in seconds.

    Attributes:
        compiling: To compile, the next time.
        eager: A step without.
        compiled: A step with.
        lost: Spent by trainings so far that compiled steps would have saved.
        measured: Whether it was compiled before; a guess if not.
    """

    compiling: float
    eager: float
    compiled: float
    lost: float = 0.0
    measured: bool = False

    def pays(self, steps: int) -> bool:
        """Whether to compile for so many more steps."""
        return self.lost + steps * (self.eager - self.compiled) > self.compiling


class Compilation:
    """Compiled transforms of an estimator, in use until `undo`.

    Args:
        when: ``always``, ``never``, or ``auto`` where it pays.
    """

    def __init__(self, when: When) -> None:
        self.when = when
        self.active = False
        self._patched: list[LazyTransform] = []

    def decide(self, trial: Trial, steps: int) -> None:
        """Compile the estimator of ``trial`` if that pays within so many steps."""
        if self.when == "never" or trial.estimator.members > 1 or not _transforms(trial.estimator):
            return
        if self.when == "auto" and (steps < _STEPS_WORTH_A_LOOK or not _has_compiler(trial)):
            return
        record = _Record(trial)
        try:
            if self.when == "always" or _pays(trial, steps, record):
                self._compile(trial, record)
        except Exception as error:  # whatever a compiler raises: nothing of it may stop a training
            self.undo()
            logger.warning("compile: training goes on without, because `torch.compile` failed: %s", _first_line(error))

    def undo(self) -> None:
        """Back to uncompiled transforms; weights are the same objects all along."""
        for lazy in self._patched:
            del lazy.forward
        self._patched, self.active = [], False

    def _compile(self, trial: Trial, record: _Record) -> None:
        eager, (_, expected) = trial.seconds(), trial.step()
        if not math.isfinite(expected):
            return
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_cache()))
        started, before = time.perf_counter(), record.read()
        run = self._patch(trial.estimator)
        _, loss = trial.step()
        compiling = time.perf_counter() - started
        cached = before is not None and before.measured
        measured = Known(compiling if cached else _AGAIN * compiling, eager, trial.seconds(), measured=True)
        record.keep(measured)
        if not abs(loss - expected) <= _TOLERANCE * max(1.0, abs(expected)):
            raise ArithmeticError(f"its loss was {loss}, uncompiled {expected}")
        run.tried = True
        if measured.compiled >= measured.eager and self.when == "auto":
            self.undo()
        logger.info(
            "compile: %.1f s to compile; a step %.1f ms, %.1f ms without: %s",
            *(compiling, 1000 * measured.compiled, 1000 * measured.eager),
            "used" if self.active else "not used",
        )

    def _patch(self, estimator: Estimator) -> _Run:
        run = _Run()
        for lazy in _transforms(estimator):
            lazy.forward = partial(_Compiled, lazy, run)
            self._patched.append(lazy)
        self.active = True
        return run


class _Run:
    """`_forward`, compiled; and as it is from the first failure after it was tried.

    The compiler keeps what it made with a function's code and makes so many versions of it, so that each training needs a
    copy of its own.
    """

    def __init__(self) -> None:
        own = FunctionType(_forward.__code__.replace(), _forward.__globals__, closure=_forward.__closure__)
        self._compiled: Callable[..., tuple[Tensor, Tensor]] | None = torch.compile(own, dynamic=False, fullgraph=True)
        self.tried = False

    def __call__(self, lazy: LazyTransform, context: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
        if self._compiled is not None:
            try:
                return self._compiled(lazy, context, x)
            except Exception as error:
                if not self.tried:
                    raise
                self._compiled = None
                logger.warning("compile: training goes on without, `torch.compile` failed: %s", _first_line(error))
        return _forward(lazy, context, x)


class _Compiled(Transform):
    """A transform given its context: compiled where gradients are recorded, as it was everywhere else."""

    domain = codomain = constraints.real_vector
    bijective = True

    def __init__(self, lazy: LazyTransform, run: _Run, context: Tensor | None) -> None:
        super().__init__()
        self._lazy, self._run, self._given = lazy, run, context

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not torch.is_grad_enabled():
            return _forward(self._lazy, self._given, x)
        # the first transform's input needs no gradient; were it to say so, it would be compiled apart from the others
        return self._run(self._lazy, self._given, x if x.requires_grad else x.detach().requires_grad_())

    def _call(self, x: Tensor) -> Tensor:
        return self._eager()._call(x)

    def _inverse(self, y: Tensor) -> Tensor:
        return self._eager()._inverse(y)

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._eager().log_abs_det_jacobian(x, y)

    def _eager(self) -> Transform:
        return type(self._lazy).forward(self._lazy, self._given)


def _forward(lazy: LazyTransform, context: Tensor | None, x: Tensor) -> tuple[Tensor, Tensor]:
    return type(lazy).forward(lazy, context).call_and_ladj(x)


def _transforms(estimator: nn.Module) -> list[LazyTransform]:
    """Those of every chain that can be compiled; continuous ones cannot."""
    chains = [module for module in estimator.modules() if isinstance(module, LazyComposedTransform)]
    return [lazy for chain in chains for lazy in chain.transforms if isinstance(lazy, _KINDS)]


def _has_compiler(trial: Trial) -> bool:
    """Whether the C++ compiler is there that code for a CPU needs; said if not."""
    wanted = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if trial.batch.theta.is_cuda or shutil.which(wanted):
        return True
    logger.info("compile: not used, because there is no C++ compiler `%s` here", wanted)
    return False


def _pays(trial: Trial, steps: int, record: _Record) -> bool:
    """Whether to compile now; if not, what is lost by that is remembered."""
    known = record.read() or _guess(trial.seconds(2))
    if steps * known.eager < _WORTH_A_LOOK:
        return False
    pays = known.pays(steps)
    if not pays and known.compiled < known.eager:
        record.keep(replace(known, lost=known.lost + steps * (known.eager - known.compiled)))
    return pays


def _guess(eager: float) -> Known:
    return Known(_COLD, eager, (1 - _SAVED) * eager)


class _Record:
    """What was measured of trainings of one shape on this machine, beside the compiler's cache."""

    def __init__(self, trial: Trial) -> None:
        self._file = _cache() / "simfer" / f"{_shape(trial)}.json"

    def read(self) -> Known | None:
        try:
            return Known(**json.loads(self._file.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return None

    def keep(self, known: Known) -> None:
        with suppress(OSError):  # a home that cannot be written to
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._file, asdict(known))


def _cache() -> Path:
    """Where the compiler keeps its code: not in a temporary folder, which a restart of the machine empties."""
    given = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(given) if given else home / "simfer" / "inductor"


def _shape(trial: Trial) -> str:
    """All that decides what is compiled: the transforms, the batch, the device, the compiler."""
    transforms = _transforms(trial.estimator)
    theta = trial.batch.theta
    described = [
        [[list(weights.shape) for weights in lazy.parameters()] for lazy in transforms],
        [type(lazy).__name__ for lazy in transforms],
        [list(theta.shape), str(theta.device), torch.get_num_threads()],
        [torch.__version__, platform.processor(), platform.node()],
    ]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()[:24]


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
