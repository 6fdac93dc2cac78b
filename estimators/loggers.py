"""Where losses are logged besides ``metrics.csv``: TensorBoard wherever it is installed, other services by name.

They are Lightning's, imported when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

from ..data.errors import ConfigError

LoggerName = Literal["wandb", "mlflow"]

_MODULES: dict[str, tuple[str, ...]] = {"wandb": ("wandb",), "mlflow": ("mlflow",)}
_TENSORBOARD = ("tensorboard", "tensorboardX")


def require_loggers(names: Iterable[str]) -> None:
    """Raise ConfigError for a logger that does not exist or whose package is not installed."""
    for name in names:
        if name not in _MODULES:
            raise ConfigError(f"`loggers` must be among {', '.join(get_args(LoggerName))}; got `{name}`")
        if not _installed(_MODULES[name]):
            raise ConfigError(
                f"`loggers` names `{name}`, which is not installed: `pip install {name}`, or leave it out"
            )


def make_loggers(names: Iterable[LoggerName], folder: Path) -> list[Any]:
    """Lightning's loggers, writing to ``folder`` what they keep on disk.

    Services that keep several runs know this one by the folder above, the run's own.

    Raises:
        ConfigError: One that is not installed.
    """
    names, run = tuple(dict.fromkeys(names)), folder.resolve().parent.name
    require_loggers(names)
    board = [_make("TensorBoardLogger", save_dir=folder, name="", version="")] if _installed(_TENSORBOARD) else []
    return board + [_BUILDERS[name](folder, run) for name in names]


def _wandb(folder: Path, run: str) -> Any:
    return _make("WandbLogger", name=run, project="simfer", save_dir=folder)


def _mlflow(folder: Path, run: str) -> Any:
    return _make("MLFlowLogger", run_name=run, experiment_name="simfer", save_dir=str(folder / "mlruns"))


def _make(kind: str, **arguments: Any) -> Any:
    return getattr(import_module("lightning.pytorch.loggers"), kind)(**arguments)


def _installed(modules: Iterable[str]) -> bool:
    return any(find_spec(module) is not None for module in modules)


_BUILDERS: dict[str, Callable[[Path, str], Any]] = {"wandb": _wandb, "mlflow": _mlflow}
