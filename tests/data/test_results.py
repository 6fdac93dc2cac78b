from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simfer.data.errors import MissingFileError
from simfer.data.results import columns, data_dataset, draws_dataset, read_tree, tree, write_tree
from simfer.data.variables import Variable, Variables

PARAMETERS = Variables([Variable("a", units="m"), Variable("b")])
OBSERVABLES = Variables([Variable("x", (3,), dims=("time",))])


def test_groups_dims_and_values_survive_the_disk(tmp_path: Path) -> None:
    theta = np.random.default_rng(0).normal(size=(7, 2))
    many = np.random.default_rng(1).normal(size=(4, 7, 2))
    made = tree(
        {
            "posterior": draws_dataset(PARAMETERS, columns(PARAMETERS, theta)),
            "prior": draws_dataset(PARAMETERS, columns(PARAMETERS, many)),
            "observed_data": data_dataset(OBSERVABLES, {"x": np.arange(3)}),
        },
        {"run": "test"},
    )
    write_tree(made, tmp_path / "p.zarr")
    found = read_tree(tmp_path / "p.zarr")
    assert found["posterior"]["a"].dims == ("chain", "draw")
    assert found["prior"]["b"].dims == ("observation", "chain", "draw")
    assert found["observed_data"]["x"].dims == ("time",)
    assert found["posterior"]["a"].attrs["units"] == "m"
    assert found.attrs["creation_library"] == "simfer"
    np.testing.assert_array_equal(found["posterior"]["b"][0], theta[:, 1])
    np.testing.assert_array_equal(found["prior"]["b"][:, 0], many[..., 1])


def test_nothing_there() -> None:
    with pytest.raises(MissingFileError, match="no results"):
        read_tree(Path("nowhere"))
