"""Simulations and results on their way in and out: what `import`, `export` and `merge` do on the command line."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from ..data.errors import ConfigError, MissingFileError, did_you_mean
from ..data.exporting import export_store, export_tree
from ..data.store import SimulationStore
from ..simulators.imported import Imported
from ..simulators.merge import merge
from .forward import find_simulator
from .problems import Problems
from .progress import Reporter
from .upkeep import store_of
from .yaml_file import override_all, read_source, validate

_WHAT = ("simulations", "posterior")


def import_store(source: str, out: Path, sets: Sequence[str]) -> None:
    """Make a store as ``simulator: {import: …}`` of a configuration says, or of a file that describes itself.

    Raises:
        ConfigError: All that is wrong with the configuration.
        SimferError: Whatever is wrong with the files; see `Imported`.
    """
    simulator, rows = _of_config(source, sets) if _is_config(source) else (Imported(source), None)
    with _progress("import", rows or simulator.rows) as meter:
        store = simulator.write(out, rows, meter)
    _say(store)


def export_file(source: Path, out: Path, what: str = "simulations") -> None:
    """Write the simulations of a store or run, or the draws of a run, to one file.

    Raises:
        ConfigError: Neither simulations nor posterior, or a file name of no known ending.
        MissingFileError: No store there, or no posterior.
        StoreError: Something is at ``out``, or rows are pending.
    """
    if what not in _WHAT:
        raise ConfigError(f"`--what`: unknown `{what}`; {did_you_mean(what, _WHAT)}")
    if what == "posterior":
        _export_posterior(source, out)
    else:
        store = store_of(source)
        with _progress("export", store.rows) as meter:
            export_store(store, out, progress=meter)
    Console().print(f"Exported to {out}", highlight=False, soft_wrap=True)


def merge_stores(sources: Sequence[Path], out: Path) -> None:
    """Merge stores, or those of runs; see `merge`."""
    stores = [store_of(source) for source in sources]
    with _progress("merge", sum(store.rows for store in stores)) as meter:
        merged = merge([store.path for store in stores], out, progress=meter)
    _say(merged)


def _export_posterior(source: Path, out: Path) -> None:
    import xarray as xr

    path = source if source.name == "posterior.zarr" else source / "posterior.zarr"
    if not (path / "zarr.json").is_file():
        raise MissingFileError(f"no posterior at {path}: `--what posterior` needs a run that has inferred one")
    with xr.open_datatree(path, engine="zarr") as results:
        export_tree(results, out)


def _is_config(source: str) -> bool:
    return Path(source).suffix in (".yaml", ".yml")


def _of_config(given: str, sets: Sequence[str]) -> tuple[Imported, int | None]:
    source = read_source(given)
    override_all(source, sets)
    config, problems = validate(source)
    found = Problems(source, problems)
    simulator, _ = find_simulator(config, source.folder, found)
    if not isinstance(simulator, Imported) and not found.problems:
        found.problems.append(source.problem(("simulator",), "must have `import`, the file that holds the simulations"))
    if found.problems:
        raise ConfigError(found.in_order())
    assert isinstance(simulator, Imported)
    return simulator, config.simulate.rows if "rows" in config.simulate.model_fields_set else None


@contextmanager
def _progress(what: str, rows: int) -> Iterator[Callable[[int], None]]:
    with Reporter(Console()).bar(what, rows, "rows") as meter:
        yield meter


def _say(store: SimulationStore) -> None:
    counts = ", ".join(f"{n:,} {name}" for name, n in store.counts().items() if n)
    Console().print(f"Store {store.path}: {counts}", highlight=False, soft_wrap=True)
