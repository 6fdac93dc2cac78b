"""Milliseconds per training step, beside sbi 0.27 on the same simulations, batch size and network size.

python tests/benchmarks/training.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from torch.distributions import Independent, Uniform

import simfer
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.simulators.two_moons import TwoMoons

BATCH = 200


def ours(theta: np.ndarray, x: np.ndarray, epochs: int) -> float:
    flow = FlowSettings(kind="nsf", transforms=5, hidden=(50, 50), bins=10)
    settings = EstimatorSettings(flow=flow, embedding=EmbeddingSettings(kind="none"))
    training = TrainingSettings(epochs=epochs, batch_size=BATCH, patience=10_000)
    return simfer.train(theta, x, TwoMoons.prior, estimator=settings, training=training).facts["seconds"]


def sbis(theta: np.ndarray, x: np.ndarray, epochs: int) -> float:
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    trainer = NPE(prior, density_estimator=posterior_nn("nsf", hidden_features=50, num_transforms=5, num_bins=10))
    trainer.append_simulations(torch.from_numpy(theta).float(), torch.from_numpy(x).float())
    started = time.perf_counter()
    trainer.train(training_batch_size=BATCH, max_num_epochs=epochs, stop_after_epochs=10_000)
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=6)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    theta = TwoMoons.prior.sample(arguments.rows, rng)
    x = TwoMoons().simulate(theta, rng)["x"]
    steps = arguments.epochs * int(0.9 * arguments.rows) // BATCH
    print(
        f"two_moons, {arguments.rows:,} rows, batch {BATCH}, neural spline flow of 5 × 50, one thread, validation included"
    )
    for name, run in (("simfer", ours), ("sbi", sbis)):
        print(f"{name:7} {1000 * run(theta, x, arguments.epochs) / steps:6.1f} ms per step", flush=True)


if __name__ == "__main__":
    main()
