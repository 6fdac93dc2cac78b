from __future__ import annotations

import json

import numpy as np
import pytest

from simfer.data.errors import NotFiniteError, ShapeError
from simfer.data.variables import COUNT, POSITIVE, Variable, Variables

MIXED = Variables(
    [
        Variable("a", (2, 3), units="m", dims=("row", "column")),
        Variable("n", (), "int32", support=COUNT),
        Variable("p", (4,), support=POSITIVE),
    ]
)


def test_json_round_trip() -> None:
    assert Variables.from_json(json.loads(json.dumps(MIXED.to_json(), allow_nan=False))) == MIXED


@pytest.mark.parametrize("rows", [1, 5])
def test_rows_from_mapping_and_from_flat_array_agree(rows: int) -> None:
    flat = np.random.default_rng(0).normal(size=(rows, MIXED.size))
    split = MIXED.rows(flat)
    assert {name: values.shape for name, values in split.items()} == {"a": (rows, 2, 3), "n": (rows,), "p": (rows, 4)}
    again = MIXED.rows(split)
    np.testing.assert_array_equal(np.concatenate([again[v.name].reshape(rows, -1) for v in MIXED], 1), flat)


def test_one_row_needs_no_leading_axis() -> None:
    one = {"a": np.zeros((2, 3)), "n": np.array(3), "p": np.ones(4)}
    assert {name: len(values) for name, values in MIXED.rows(one).items()} == {"a": 1, "n": 1, "p": 1}


@pytest.mark.parametrize(
    ("arrays", "error", "match"),
    [
        ({"a": np.zeros((2, 3)), "n": 1, "q": np.ones(4)}, ShapeError, "missing: p; unknown: q"),
        ({"a": np.zeros((2, 4)), "n": 1, "p": np.ones(4)}, ShapeError, r"must have shape \(2, 3\)"),
        (
            {"a": np.zeros((2, 3)), "n": 1, "p": [1, np.nan, 1, 1]},
            NotFiniteError,
            r"p'\]` must be finite; got nan at index \(0, 1\)",
        ),
        ({"a": np.zeros((5, 2, 3)), "n": [1, 2], "p": np.ones((5, 4))}, ShapeError, "equally many rows"),
        ({"a": np.zeros((2, 3)), "n": "one", "p": np.ones(4)}, ShapeError, "must be numbers"),
        (np.zeros(5), ShapeError, "must have 11 numbers in its last axis"),
    ],
)
def test_bad_rows_are_named(arrays: object, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        MIXED.rows(arrays)


@pytest.mark.parametrize("name", ["theta", "status", "not a name", "1st"])
def test_names_must_be_free_identifiers(name: str) -> None:
    with pytest.raises(ShapeError, match="must be an identifier"):
        Variable(name)


def test_names_are_unique() -> None:
    with pytest.raises(ShapeError, match="unique names"):
        Variables([Variable("a"), Variable("a")])
