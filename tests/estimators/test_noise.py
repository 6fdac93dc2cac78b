"""Noise by key: the reference generator's numbers, the right distribution, and no dependence on anything else."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from simfer.estimators import noise


def test_numbers_are_those_of_splitmix64() -> None:
    """The first outputs of the generator seeded with 0, as published with its source."""
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    found = noise.uniform(torch.tensor(0), 3)
    assert found.tolist() == [((bits >> 12) + 0.5) * 2.0**-52 for bits in expected]


def test_numbers_are_uniform_normal_and_uncorrelated() -> None:
    keys = noise.key_of_rows(torch.arange(4000, dtype=torch.float64).reshape(2000, 2))
    uniform, normal = noise.uniform(keys, 5), noise.normal(noise.combine(keys, torch.tensor(3)), 5)
    assert stats.kstest(uniform.flatten().numpy(), "uniform").pvalue > 1e-3
    assert stats.kstest(normal.flatten().numpy(), "norm").pvalue > 1e-3
    both = np.corrcoef(torch.cat([uniform, normal], 1).T)
    assert np.abs(both[np.triu_indices(10, 1)]).max() < 5 / 2000**0.5


def test_numbers_of_a_row_depend_on_the_row_alone() -> None:
    rows = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    many = noise.uniform(noise.key_of_rows(rows), 4)
    assert torch.equal(noise.uniform(noise.key_of_rows(rows[order]), 4), many[order])
    assert torch.equal(noise.uniform(noise.key_of_rows(rows[7:8]), 4), many[7:8])
    assert len(torch.unique(noise.key_of_rows(rows))) == 50
    assert not torch.equal(noise.key_of_rows(rows), noise.key_of_rows(rows.flip(1)))


def test_it_works_under_vmap() -> None:
    keys = torch.arange(4)
    together = torch.func.vmap(lambda key: noise.uniform(key, 3))(keys)
    assert torch.equal(together, noise.uniform(keys, 3))
