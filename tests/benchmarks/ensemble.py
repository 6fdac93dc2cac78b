"""Five members in one pass beside five trainings in turn, and what mixing them gains on rows held out from all.

python tests/benchmarks/ensemble.py
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

import simfer
from simfer.estimators.ensemble import member_seeds
from simfer.estimators.model import Model
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.simulators.slcp import SLCP
from simfer.simulators.two_moons import TwoMoons

MEMBERS, BATCH, HELD_OUT = 5, 256, 2000
FLOWS = {
    "maf": FlowSettings(kind="maf", transforms=5, hidden=(50, 50)),
    "nsf": FlowSettings(kind="nsf", transforms=5, hidden=(50, 50)),
}


def timed(work: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, and the seconds on the clock and of the processor that it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, time.perf_counter() - wall, time.process_time() - cpu


def loss(model: Model, theta: np.ndarray, x: np.ndarray) -> float:
    with torch.no_grad():
        return -float(model.posterior.log_prob_batched(torch.from_numpy(theta)[None], x).mean())


def compare(simulator: Any, kind: str, rows: int, epochs: int) -> None:
    rng = np.random.default_rng(0)
    theta = simulator.prior.sample(rows + HELD_OUT, rng)
    x = simulator.simulate(theta, rng)["x"]
    settings = EstimatorSettings(flow=FLOWS[kind], embedding=EmbeddingSettings(kind="none"))
    training = TrainingSettings(epochs=epochs, batch_size=BATCH, patience=10_000)
    steps = epochs * (int(0.9 * rows) // BATCH)

    def train(members: int, seed: int) -> Model:
        estimator = settings.model_copy(update={"ensemble": members})
        return simfer.train(theta[:rows], x[:rows], simulator.prior, estimator=estimator, training=training, seed=seed)

    train(1, 99)  # warm up
    together, wall, cpu = timed(lambda: train(MEMBERS, 0))
    apart, wall_apart, cpu_apart = timed(lambda: [train(1, seed) for seed in member_seeds(0, MEMBERS)])
    held = theta[rows:], x[rows:]
    alone = [loss(model, *held) for model in apart]
    print(
        f"{type(simulator).__name__:9} {kind}  one {1e3 * wall_apart / MEMBERS / steps:6.1f}  five at once "
        f"{1e3 * wall / steps:6.1f} ({1e3 * cpu / steps:.1f})  five in turn {1e3 * wall_apart / steps:6.1f} "
        f"({1e3 * cpu_apart / steps:.1f})  ratio {wall_apart / wall:.2f} ({cpu_apart / cpu:.2f})  "
        f"loss: members {np.mean(alone):.3f}, best {min(alone):.3f}, mixture {loss(together, *held):.3f}",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{arguments.rows:,} rows, {arguments.epochs} epochs, batch {BATCH}, flows of 5 × 50, one thread, validation "
        f"included; ms per step on the clock (of the processor); losses on {HELD_OUT:,} more rows"
    )
    for simulator in (TwoMoons(), SLCP()):
        for kind in FLOWS:
            compare(simulator, kind, arguments.rows, arguments.epochs)


if __name__ == "__main__":
    main()
