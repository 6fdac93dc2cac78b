"""What campaigns record beside theta and x: context, base random numbers, groups."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from simfer.data.variables import Variable, Variables
from simfer.pipelines.executors import Inline, Processes
from simfer.simulators.campaign import Executor, simulate, verify
from simfer.simulators.prior import Prior


class Everything:
    """x = (theta + u) · gain, eight rows for every theta."""

    prior = Prior({"a": {"dist": "Normal", "loc": 0.0, "scale": 1.0}})
    context = Prior({"gain": {"dist": "Uniform", "low": 1.0, "high": 2.0}})
    observables = Variables([Variable("x", (3,))])
    u_shape = (3,)
    group_size = 8

    def sample_u(self, rows, rng):
        return rng.random((rows, 3))

    def simulate_from_u(self, theta, u, context=None):
        if (u[:, 0] < 0.02).any():
            raise FloatingPointError("u is too small")
        return {"x": (theta + u) * context["gain"][:, None]}

    def simulate(self, theta, rng, context=None):
        return self.simulate_from_u(theta, self.sample_u(len(theta), rng), context)


@pytest.mark.parametrize("executor", [Inline(), Processes(2)], ids=["inline", "processes"])
def test_x_is_the_recorded_function_of_what_was_recorded(tmp_path: Path, executor: Executor) -> None:
    store = simulate(Everything(), 1000, tmp_path / "s.zarr", seed=2, executor=executor)
    records = store.read_records()
    ok = records.status == 1
    assert records.u is not None
    np.testing.assert_array_equal(ok, records.u[:, 0] >= 0.02)  # rows that fail keep their u, alone
    expected = (records.theta + records.u) * records.context["gain"][:, None]
    np.testing.assert_array_equal(records.x["x"][ok], expected[ok])
    verify(store)


def test_rows_of_a_group_share_theta_and_no_other_does(tmp_path: Path) -> None:
    records = simulate(Everything(), 1000, tmp_path / "s.zarr", seed=2).read_records()
    assert records.group is not None
    np.testing.assert_array_equal(records.group, np.arange(1000) // 8)
    _, first = np.unique(records.group, return_index=True)
    np.testing.assert_array_equal(records.theta, records.theta[first][records.group])
    assert len(np.unique(records.theta[first])) == len(first)
