"""Results as an xarray DataTree in Zarr, in the group names of ArviZ's InferenceData schema.

``posterior``, ``prior``, ``posterior_predictive``, ``observed_data`` and ``sample_stats``; one variable per parameter
with dimensions ``(chain, draw)``, and a leading ``observation`` where there are several.
https://python.arviz.org/en/stable/schema/schema.html
"""

from __future__ import annotations

import datetime
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .errors import MissingFileError, UnsupportedError
from .files import new_folder
from .variables import Arrays, Variables

if TYPE_CHECKING:
    import xarray as xr

SAMPLE = ("chain", "draw")


def draws_dataset(variables: Variables, draws: Mapping[str, np.ndarray]) -> xr.Dataset:
    """One variable per name, each of shape ``(draw, *shape)`` or ``(observation, draw, *shape)``; one chain is added."""
    import xarray as xr

    data = {}
    for variable in variables:
        values = np.asarray(draws[variable.name])
        many = values.ndim == len(variable.shape) + 2
        values = np.expand_dims(values, 1 if many else 0)
        dims = (("observation",) if many else ()) + SAMPLE + variable.axes
        data[variable.name] = (dims, values, _attributes(variable))
    return xr.Dataset(data)


def columns(variables: Variables, theta: np.ndarray) -> Arrays:
    """Split ``theta (..., parameter)`` into one array per parameter."""
    return {name: theta[..., i] for i, name in enumerate(variables.names)}


def data_dataset(variables: Variables, x: Mapping[str, np.ndarray]) -> xr.Dataset:
    """One observation without sample dimensions, as ``observed_data`` has it."""
    import xarray as xr

    return xr.Dataset({v.name: (v.axes, np.asarray(x[v.name]).reshape(v.shape), _attributes(v)) for v in variables})


def tree(groups: Mapping[str, xr.Dataset], attributes: Mapping[str, Any] | None = None) -> xr.DataTree:
    """Gather datasets into one DataTree that says who made it and when."""
    from importlib.metadata import version

    import xarray as xr

    made = {
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(),
        "creation_library": "simfer",
        "creation_library_version": version("simfer"),
        "creation_library_language": "Python",
    }
    result = xr.DataTree.from_dict(dict(groups))
    result.attrs.update({**made, **(attributes or {})})
    return result


def write_tree(result: xr.DataTree, path: Path) -> None:
    """Write ``result`` as Zarr v3, replacing ``path`` in one step."""
    with new_folder(path) as folder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Consolidated metadata")
        warnings.filterwarnings("ignore", message=".*does not have a Zarr V3 specification")
        result.to_zarr(folder, mode="w", zarr_format=3)


def read_tree(path: Path) -> xr.DataTree:
    """Read what `write_tree` wrote, into memory.

    Raises:
        MissingFileError: Nothing there.
    """
    import xarray as xr

    if not (path / "zarr.json").is_file():
        raise MissingFileError(f"no results at {path}")
    with xr.open_datatree(path, engine="zarr") as lazy:
        return lazy.load()


def to_inference_data(results: xr.DataTree) -> Any:
    """The same results as ArviZ takes them: its `InferenceData` before ArviZ 1, the tree itself since.

    Raises:
        UnsupportedError: ArviZ is not installed.
    """
    try:
        import arviz
    except ImportError as error:
        raise UnsupportedError("`to_inference_data` needs ArviZ: pip install 'simfer[arviz]'") from error
    return arviz.InferenceData.from_datatree(results) if hasattr(arviz, "InferenceData") else results


def _attributes(variable: Any) -> dict[str, str]:
    return {"units": variable.units, "long_name": variable.label or variable.name}
