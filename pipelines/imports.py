"""The `import:` of a configuration: simulations that are there already, in place of a simulator."""

from __future__ import annotations

from pathlib import Path

from ..data.errors import ConfigError
from ..data.importing import Names
from ..simulators.imported import Imported
from ..simulators.prior import Prior
from .config import IMPORT_KEYS, Config, SimulatorConfig


def read_import(settings: SimulatorConfig, prior: Prior | None, folder: Path) -> Imported:
    """What stands for the simulator; see `Imported` for what may be wrong."""
    names = Names(**{key: getattr(settings, key) for key in IMPORT_KEYS})
    return Imported([folder / file for file in settings.imported], names, prior)


def absolute_files(settings: SimulatorConfig, folder: Path) -> SimulatorConfig:
    """The same with paths that hold from anywhere."""
    return settings.model_copy(update={"import_": tuple(str((folder / file).resolve()) for file in settings.imported)})


def with_rows(config: Config, rows: int) -> Config:
    """All rows that are there, unless fewer are asked for.

    Raises:
        ConfigError: More rows are asked for than there are, or too few to train and be checked with.
    """
    if "rows" in config.simulate.model_fields_set:
        if config.simulate.rows > rows:
            raise ConfigError(f"must be at most the {rows} rows there are to import; got {config.simulate.rows}")
        return config
    counted = config.model_copy(update={"simulate": config.simulate.model_copy(update={"rows": rows})})
    counted.require_enough_rows()
    return counted
