from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from simfer.data.batch import Batch
from simfer.data.ranges import MARGIN, Ranges, advice
from simfer.data.variables import Variable, Variables

OBSERVABLES = Variables([Variable("y", (2, 3)), Variable("n")])


def rows(n: int = 100, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"y": rng.standard_normal((n, 2, 3)).astype(np.float32), "n": rng.standard_normal(n).astype(np.float32)}


def seen(x: dict[str, np.ndarray], sizes: tuple[int, ...]) -> Ranges:
    starts = np.cumsum((0, *sizes))
    portions = [
        Batch(torch.zeros(b - a, 1).double(), {name: torch.from_numpy(v[a:b]) for name, v in x.items()})
        for a, b in pairwise(starts)
    ]
    ranges = Ranges()
    for _ in range(2):
        assert len(list(ranges.watch(portions))) == len(sizes)
    return ranges


@pytest.mark.parametrize("sizes", [(100,), (1, 99), (30, 40, 30)])
def test_ranges_are_those_of_all_rows_however_they_come(sizes: tuple[int, ...]) -> None:
    x, ranges = rows(), seen(rows(), sizes)
    assert ranges.rows == 100
    for name, values in x.items():
        np.testing.assert_array_equal(ranges.low[name].numpy(), values.min(0))
        np.testing.assert_array_equal(ranges.high[name].numpy(), values.max(0))


def test_what_was_seen_is_not_outside() -> None:
    assert seen(rows(), (100,)).outside(rows()) == (0, [])


def test_a_tenth_of_the_width_is_let_pass() -> None:
    ranges, x = seen(rows(), (100,)), rows()
    width = x["n"].max() - x["n"].min()
    x["n"][7] = x["n"].max() + 0.9 * MARGIN * width
    assert ranges.outside(x) == (0, [])
    x["n"][7] = ranges.high["n"].item() + 1.1 * MARGIN * width
    x["y"][7, 1, 2] = -50
    bad, entries = ranges.outside(x)
    assert bad == 1
    assert [(entry.observable, entry.index) for entry in entries] == [("y", (1, 2)), ("n", ())]
    assert entries[0].value == -50
    assert advice(bad, entries, 100).startswith(
        "1 of 100 observations lie outside the training data, as the first of them: `y[1, 2]`"
    )


def test_what_is_not_finite_does_not_count() -> None:
    x = rows()
    x["n"][3], x["y"][4, 0, 0] = np.nan, np.inf
    ranges = seen(x, (50, 50))
    assert ranges.low["n"].isfinite()
    assert ranges.high["y"].isfinite().all()
    assert ranges.outside({"y": x["y"][:4], "n": x["n"][:4]}) == (0, [])


def test_constant_entries_are_named() -> None:
    x = rows()
    x["y"][:, 1, 2], x["n"][:] = 3.0, 0.0
    assert seen(x, (60, 40)).constant() == ["y[1, 2]", "n"]


def test_tensors_give_the_same_ranges() -> None:
    ranges = seen(rows(), (100,))
    again = Ranges.from_tensors(ranges.to_tensors(), OBSERVABLES)
    assert all(torch.equal(again.low[name], ranges.low[name]) for name in OBSERVABLES.names)
    assert not Ranges.from_tensors({}, OBSERVABLES)
