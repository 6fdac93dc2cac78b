"""Plain functions as simulators: batch, one row by vector or by name; in Python, in YAML, in other processes."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch.distributions import Normal

import simfer
from simfer.data.errors import ContractError, PriorError, SimulatorError
from simfer.data.variables import Variable, Variables
from simfer.pipelines.executors import Processes
from simfer.pipelines.job import make_job
from simfer.pipelines.yaml_file import read_source
from simfer.simulators.base import Simulator, describe, simulate_checked
from simfer.simulators.function import FunctionSimulator
from simfer.simulators.prior import Prior
from simfer.simulators.testing import SimulatorContract

PRIOR = Prior({"a": Normal(0.0, 1.0), "b": Normal(0.0, 1.0)})


def batch(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return theta.sum(1) + rng.standard_normal(len(theta))


def vector(theta: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    return {"total": theta.sum(), "counts": rng.poisson(3, size=4)}


def named(a: float, b: float, rng: np.random.Generator) -> float:
    return a + b + rng.standard_gamma(1 + a * a)


@simfer.simulator(prior=PRIOR)
def decorated(theta: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return theta + rng.standard_normal(theta.shape)


class TestAdapted(SimulatorContract):
    @pytest.fixture(params=["batch", "vector", "named", "decorated"])
    def simulator(self, request: pytest.FixtureRequest) -> Simulator:
        if request.param == "decorated":
            return decorated
        return simfer.simulator(globals()[request.param], prior=PRIOR, rows=request.param)


@pytest.mark.parametrize(
    ("function", "rows", "seen"),
    [
        (batch, "batch", {"x": ((), "float64")}),
        (vector, "vector", {"total": ((), "float64"), "counts": ((4,), "int64")}),
        (named, "named", {"x": ((), "float64")}),
    ],
)
def test_observables_are_seen_from_a_call(function: Any, rows: Any, seen: dict[str, Any]) -> None:
    observables = simfer.simulator(function, prior=PRIOR, rows=rows).observables
    assert {v.name: (v.shape, v.dtype) for v in observables} == seen


def test_given_observables_name_the_only_array(rng: np.random.Generator) -> None:
    made = simfer.simulator(batch, prior=PRIOR, observables=Variables([Variable("total", dtype="float32")]))
    x = simulate_checked(made, PRIOR.sample(4, rng), rng)
    assert {name: (values.shape, str(values.dtype)) for name, values in x.items()} == {"total": ((4,), "float32")}


def test_one_row_at_a_time_means_the_same_as_a_batch_in_law(rng: np.random.Generator) -> None:
    """The mean of a + b + Gamma(1 + a²) is a + b + 1 + a²; the error of 2,000 rows is at most sqrt(5 / 2000)."""
    theta = np.repeat([[1.0, 2.0]], 2000, axis=0)
    x = simfer.simulator(named, prior=PRIOR, rows="named").simulate(theta, rng)["x"]
    assert abs(x.mean() - 5.0) < 4 * np.sqrt(2.0 / 2000)


@pytest.mark.parametrize(
    ("function", "arguments", "error", "match"),
    [
        (lambda theta, rng: 1 / 0, {}, SimulatorError, "raised ZeroDivisionError: division by zero, when called"),
        (lambda theta, rng: "text", {}, ContractError, "must return numbers with one row for each row of theta"),
        (lambda theta, rng: theta[:-1], {}, ContractError, r"got `x` of dtype float64 and shape \(2, 2\) for three"),
        (lambda theta: theta, {}, SimulatorError, "raised TypeError"),
        (batch, {"rows": "one"}, SimulatorError, "`rows` must be"),
        (batch, {"prior": {"a": {"dist": "Normall"}}}, PriorError, "unknown `dist` 'Normall'; did you mean `Normal`"),
    ],
)
def test_what_cannot_be_adapted_is_told(function: Any, arguments: Any, error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        simfer.simulator(function, **{"prior": PRIOR, **arguments})


def test_functions_are_told_apart_by_name_and_source() -> None:
    one, other = (describe(simfer.simulator(f, prior=PRIOR, rows=f.__name__)) for f in (batch, vector))
    assert one != other
    assert one["arguments"]["function"] == "batch"
    assert one["arguments"]["source"] == other["arguments"]["source"]


def test_adapted_functions_travel(rng: np.random.Generator) -> None:
    assert pickle.loads(pickle.dumps(decorated)) is decorated
    sent = pickle.loads(pickle.dumps(simfer.simulator(batch, prior=PRIOR)))
    theta = PRIOR.sample(3, rng)
    first, second = (
        s.simulate(theta, np.random.default_rng(0))["x"] for s in (sent, simfer.simulator(batch, prior=PRIOR))
    )
    np.testing.assert_array_equal(first, second)


FILE = """\
import simfer

@simfer.simulator(prior={"a": {"dist": "Uniform", "low": 0, "high": 1}}, observations={"here": {"y": 0.3}})
def adapted(theta, rng):
    return {"y": theta[:, 0] + rng.standard_normal(len(theta))}
"""


@pytest.mark.slow
def test_a_function_in_a_file_is_named_in_yaml_and_runs_in_processes(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FILE)
    (tmp_path / "c.yaml").write_text("simulator: mine.py:adapted\nobservation: here\n")
    job = make_job(read_source(tmp_path / "c.yaml"))
    assert isinstance(job.simulator, FunctionSimulator)
    arguments = {"rows": 100, "reference": job.reference, "seed": 1}
    stores = [
        simfer.simulate(job.simulator, path=tmp_path / name, executor=executor, **arguments)
        for name, executor in (("inline", None), ("processes", Processes(1)))
    ]
    assert stores[0].digest() == stores[1].digest()
