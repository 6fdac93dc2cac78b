"""Fixtures that several rooms share."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Iterator
from typing import Any

import jaxtyping
import numpy as np
import pytest
import torch

from simfer.data.variables import Variable, Variables
from simfer.simulators.prior import Prior


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Shapes are checked in all tests but the slow ones, whose loops take twice as long with them."""
    jaxtyping.config.update("jaxtyping_disable", item.get_closest_marker("slow") is not None)


def pytest_collection_finish() -> None:
    """What was imported stays: it need not be looked through for garbage again and again."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The cluster's tests mostly wait: they begin first, beside others."""
    items.sort(key=lambda item: item.path.parent.name != "slurm")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Of several processes each has a file at a time; one has all tests of the cluster, of which there is one."""
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return "tests/slurm" if nodeid.startswith("tests/slurm/") else nodeid.partition("::")[0]

    return ByFile(config, log)


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are processors where there is a cluster to wait for."""
    return (os.cpu_count() or 1) + (shutil.which("slurmctld") is not None)


class Line:
    """theta ~ N(0, 1)^2, x = theta + noise: small, fast, and with the exact posterior N(x / (1 + s²), s² / (1 + s²))."""

    prior = Prior({"a": torch.distributions.Normal(0.0, 1.0), "b": torch.distributions.Normal(0.0, 1.0)})
    observables = Variables([Variable("x", (2,))])
    noise = 0.5

    def simulate(
        self, theta: np.ndarray, rng: np.random.Generator, context: dict[str, np.ndarray] | None = None
    ) -> dict[str, np.ndarray]:
        return {"x": theta + self.noise * rng.standard_normal(theta.shape)}


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Two threads on two busy cores can be ten times slower than one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _shapes_of_first_steps() -> Iterator[None]:
    """Shapes are checked in the first steps of a training; those that follow have the same."""
    from simfer.estimators.module import TrainingModule

    step = TrainingModule.training_step

    def training_step(self: TrainingModule, batch: Any, index: int) -> torch.Tensor:
        before = jaxtyping.config.jaxtyping_disable
        jaxtyping.config.update("jaxtyping_disable", before or self.global_step > 3)
        try:
            return step(self, batch, index)
        finally:
            jaxtyping.config.update("jaxtyping_disable", before)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TrainingModule, "training_step", training_step)
        yield


@pytest.fixture(autouse=True)
def _seeded() -> None:
    """What draws without a seed of its own (new networks, sbi's samplers) draws the same in every run."""
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - sbi draws from it


@pytest.fixture
def line() -> Line:
    return Line()


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
