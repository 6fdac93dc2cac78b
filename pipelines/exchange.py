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

_DATA = ("simulations", "posterior")
_PROGRAMS = ("sampler", "log_prob")
_PROGRAM_SUFFIX = ".pt2"


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


def export_file(source: Path, out: Path, what: str | None = None) -> None:
    """Write simulations or draws to one file of data, or the trained posterior as a program for torch alone.

    Args:
        source: A store, a model folder, or a run folder that has either.
        out: A new file; one ending in ``.pt2`` is a program.
        what: ``simulations`` or ``posterior`` draws, or a program's function, ``sampler`` or ``log_prob``; the first
            that fits the ending when None.

    Raises:
        ConfigError: Not among these, or of another kind than the ending.
        MissingFileError: No store, no posterior or no model there.
        StoreError: Something is at ``out`` already, or rows are pending.
        UnsupportedError: This posterior cannot be a program.
    """
    suited = _PROGRAMS if out.suffix.lower() == _PROGRAM_SUFFIX else _DATA
    what = what or suited[0]
    if what not in (*_DATA, *_PROGRAMS):
        raise ConfigError(f"`--what`: unknown `{what}`; {did_you_mean(what, (*_DATA, *_PROGRAMS))}")
    if what not in suited:
        raise ConfigError(
            f"`--what {what}` must go to a file of its kind; got `{out}`: {_PROGRAM_SUFFIX} holds "
            f"{' or '.join(_PROGRAMS)}, other files {' or '.join(_DATA)}"
        )
    if what in _PROGRAMS:
        _export_program(source, out, what)
    elif what == "posterior":
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


def _export_program(source: Path, out: Path, what: str) -> None:
    from ..estimators.export import export_posterior
    from ..estimators.model import load_model

    folder = source / "model" if (source / "model").is_dir() else source
    export_posterior(load_model(folder), out, what)


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
