from __future__ import annotations

import numpy as np
import pytest
import torch

from simfer.data.errors import ShapeError
from simfer.data.statistics import Moments, stream_statistics


def values(rows: int = 1000) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).normal(1e6, 1e-2, (rows, 3)))


@pytest.mark.parametrize("cuts", [[1000], [1, 999], [400, 0, 350, 250], [1] * 1000])
def test_merged_moments_are_those_of_the_whole(cuts: list[int]) -> None:
    moments = Moments(3)
    for part in values().split(cuts):
        moments.update(part)
    torch.testing.assert_close(moments.mean, values().mean(0), rtol=1e-15, atol=1e-9)
    torch.testing.assert_close(moments.sd, values().std(0, correction=0), rtol=1e-6, atol=0)
    assert moments.count.tolist() == [1000] * 3


def test_entries_that_are_not_finite_do_not_count() -> None:
    holed = torch.tensor([[1.0, torch.nan], [torch.inf, torch.nan], [3.0, torch.nan]])
    moments = Moments(2)
    for row in holed:
        moments.update(row[None])
    assert moments.count.tolist() == [2, 0]
    assert moments.mean.tolist() == [2.0, 0.0]
    assert moments.sd.tolist() == [1.0, 0.0]


def test_quantiles_are_exact_up_to_the_bound_and_near_beyond() -> None:
    whole, levels = values(5000), (0.1, 0.5, 0.9)
    exact = stream_statistics(whole.split(77), 5000, levels)
    torch.testing.assert_close(exact.quantiles, whole.quantile(torch.tensor(levels).double(), 0), rtol=1e-14, atol=0)
    few = stream_statistics(whole.split(77), 5000, levels, most=500)
    reached = (whole[:, None] <= few.quantiles).double().mean(0)
    assert (reached - torch.tensor(levels).double()[:, None]).abs().max() < 4 * np.sqrt(0.25 / 500)
    again = stream_statistics(whole.split(1234), 5000, levels, most=500)
    assert torch.equal(few.quantiles, again.quantiles)


def test_a_wrong_number_of_rows_is_an_error() -> None:
    with pytest.raises(ShapeError, match="`rows` must be the number of rows in all parts, 1000; got 999"):
        stream_statistics([values()], 999)
