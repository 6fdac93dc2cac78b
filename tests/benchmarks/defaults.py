"""What the defaults of NPE are worth: mean log density of held-out parameters, 10,000 simulations, with one of them changed.

python tests/benchmarks/defaults.py [--tasks sir slcp] [--variants default mlp] [--seeds 1]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

import simfer
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, TrainingSettings
from simfer.simulators.campaign import Reference

ROWS, HELD_OUT = 10_000, 1000
VARIANTS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {}),
    "mlp": ({"embedding": EmbeddingSettings(kind="mlp")}, {}),
    "narrow": ({"embedding": EmbeddingSettings(kind="resnet", width=64)}, {}),
    "none": ({"embedding": EmbeddingSettings(kind="none")}, {}),
    "last weights": ({}, {"ema": None}),
    "mlp, last weights": ({"embedding": EmbeddingSettings(kind="mlp")}, {"ema": None}),
}


def held_out(task: str, variant: str, seed: int) -> tuple[float, float]:
    """Mean log density, and seconds of CPU."""
    simulator: Any = Reference(task).load()
    rng = np.random.default_rng(2024)
    theta = simulator.prior.sample(ROWS + HELD_OUT, rng)
    x = simulator.simulate(theta, rng)["x"]
    good, learn = np.isfinite(x).all(1), np.arange(len(x)) < ROWS
    estimator, training = VARIANTS[variant]
    started = time.process_time()
    posterior = simfer.train(
        theta[good & learn],
        x[good & learn],
        simulator.prior,
        estimator=EstimatorSettings(**estimator),
        training=TrainingSettings(**training),
        observables=simulator.observables,
        seed=seed,
    ).posterior
    held = good & ~learn
    found = posterior.log_prob_batched(torch.from_numpy(theta[held])[None], x[held])
    return float(found.mean()), time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["gaussian_linear", "sir", "slcp"])
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--seeds", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    for task in arguments.tasks:
        for variant in arguments.variants:
            for seed in range(arguments.seeds):
                found, seconds = held_out(task, variant, seed)
                print(f"{task:24} {variant:18} seed {seed}: {found:8.3f}  {seconds:6.1f} s", flush=True)


if __name__ == "__main__":
    main()
