"""Median KL(exact ‖ q) on gaussian_linear over 200 observations, for several densities. Prints one table.

python tests/benchmarks/gaussian_linear.py [--rows 10000]
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

import simfer
from simfer.estimators.base import Posterior
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.simulators.gaussian_linear import GaussianLinear

NONE = EmbeddingSettings(kind="none")
DENSITIES = {
    "maf": FlowSettings(kind="maf", transforms=3, hidden=(50, 50)),
    "nsf": FlowSettings(kind="nsf", transforms=3, hidden=(50, 50)),
    "gmm": FlowSettings(kind="gmm", components=2, hidden=(64, 64)),
}
TRAINING = TrainingSettings(epochs=30, batch_size=100, learning_rate=1e-3, weight_decay=0.1)


def median_kl(posterior: Posterior, observations: int = 200, draws: int = 500) -> float:
    """Median over observations of KL(N(x / 2, 0.05 I) ‖ q(. | x)), by draws from the exact posterior."""
    simulator, rng = GaussianLinear(), np.random.default_rng(1234)
    x = simulator.simulate(simulator.prior.sample(observations, rng), rng)["x"]
    exact = torch.distributions.Normal(torch.from_numpy(x) / 2, 0.05**0.5)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theta = exact.sample((draws,))
    gap = exact.log_prob(theta).sum(-1) - posterior.log_prob_batched(theta, x)
    return float(gap.mean(0).median())


def trained(rows: int, flow: FlowSettings) -> tuple[Posterior, float]:
    """A posterior trained on ``rows`` simulations, and the seconds that took."""
    simulator, rng = GaussianLinear(), np.random.default_rng(0)
    theta = simulator.prior.sample(rows, rng)
    started = time.perf_counter()
    model = simfer.train(
        theta,
        simulator.simulate(theta, rng),
        simulator.prior,
        estimator=EstimatorSettings(flow=flow, embedding=NONE),
        training=TRAINING,
    )
    return model.posterior, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    rows = parser.parse_args().rows
    torch.set_num_threads(1)
    print(f"gaussian_linear, {rows:,} simulations, median KL(exact ‖ q) over 200 observations")
    print(f"{'density':8} {'KL':>7} {'seconds':>8}")
    for name, flow in DENSITIES.items():
        posterior, seconds = trained(rows, flow)
        print(f"{name:8} {median_kl(posterior):7.4f} {seconds:8.1f}", flush=True)


if __name__ == "__main__":
    main()
