"""Where to train."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from ..data.errors import UnsupportedError
from ..data.memory import default_budget
from .compiled import When
from .loggers import LoggerName

_SHARED = {"auto": False, "ddp": False, "ddp_find_unused_parameters_true": True}


@dataclass(frozen=True, slots=True)
class Hardware:
    """Where to train; cannot change what is trained beyond rounding, but for what ``memory`` decides.

    ``memory`` is the budget in bytes of each process for rows on their way to the network, a quarter of what the process
    may use when None: what is larger is streamed, with a smaller buffer where the budget is below 512 MiB. ``threads`` are
    torch's on a CPU: chosen when ``auto``, as they are when None. ``compile`` is when to use ``torch.compile``: where it pays
    when ``auto``. ``loggers`` are those besides TensorBoard. ``devices`` are those of each of ``nodes``, all there are when
    ``auto``: GPUs, or processes on a CPU, which share every batch. The rest is the Lightning Trainer's.
    """

    accelerator: str = "auto"
    devices: int | Literal["auto"] = 1
    nodes: int = 1
    precision: str = "32-true"
    threads: int | Literal["auto"] | None = "auto"
    memory: int | None = None
    strategy: str = "auto"
    compile: When = "never"
    loggers: tuple[LoggerName, ...] = ()

    @property
    def per_node(self) -> int:
        """Processes that train on each node."""
        if self.devices != "auto":
            return self.devices
        cuda = self.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
        return torch.cuda.device_count() if cuda else 1

    @property
    def world(self) -> int:
        """Processes that train together."""
        return self.per_node * self.nodes

    @property
    def budget(self) -> int:
        """Bytes for rows, of each process."""
        return self.memory or default_budget() // self.per_node

    @property
    def finds_unused(self) -> bool:
        """Whether weights may take no part in a step of several processes.

        Raises:
            UnsupportedError: A strategy for several processes that is not data-parallel.
        """
        if self.strategy not in _SHARED:
            raise UnsupportedError(
                f"`strategy` must be among {', '.join(_SHARED)} for several devices; got `{self.strategy}`"
            )
        return _SHARED[self.strategy]
