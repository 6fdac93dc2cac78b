"""A line with noise, and a network, that take their time: what they wait for is no part of what they compute."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import torch

import simfer
from simfer.data.errors import ContractError


def wait(what: str) -> None:
    time.sleep(float(os.environ.get(f"SIMFER_TEST_{what}", "0")))


class Line:
    prior = simfer.Prior({"a": torch.distributions.Normal(0.0, 1.0), "b": torch.distributions.Normal(0.0, 1.0)})
    observables = simfer.Variables([simfer.Variable("x", (2,))])

    def simulate(self, theta, rng, context=None):
        wait("SIMULATE")
        return {"x": theta + 0.5 * rng.standard_normal(theta.shape)}


class Picky(Line):
    """Breaks its contract in the block that begins with a given theta, as long as a file is there."""

    def simulate(self, theta, rng, context=None):
        first = float(os.environ.get("SIMFER_TEST_FIRST", "nan"))
        if np.isclose(theta[0, 0], first, rtol=0, atol=1e-9) and Path(os.environ["SIMFER_TEST_BROKEN"]).exists():
            raise ContractError("the table of this block is missing")
        return super().simulate(theta, rng)


class Net(torch.nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.layer = torch.nn.Linear(sum(shape), 4)

    def forward(self, x):
        if self.training:
            wait("TRAIN")
        elif len(x) >= 200:  # a pass of the checks; validation has fewer rows
            wait("CHECK")
        return self.layer(x)
