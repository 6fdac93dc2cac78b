"""Flow matching beside NPE on the same simulations: accuracy against exact or reference posteriors, and time. Prints one table.

gaussian_linear: median KL(exact ‖ q) over 200 observations, in nats. two_moons: C2ST against the SBI benchmark's reference
draws, mean over observations, by the benchmark's own protocol (0.5 is perfect). Then the seconds of training, and those of
100 × 500 draws with their log density.

python tests/benchmarks/fmpe.py [FOLDER OF THE UNPACKED PACKAGE sbibm] [--rows 10000] [--observations 5] [--only METHOD ...]
"""

from __future__ import annotations

import argparse
import runpy
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

import simfer
from simfer.estimators.base import Posterior
from simfer.estimators.settings import (
    EmbeddingSettings,
    EstimatorSettings,
    FieldSettings,
    FlowSettings,
    TrainingSettings,
)
from simfer.simulators import benchmark
from simfer.simulators.campaign import Reference

NONE = EmbeddingSettings(kind="none")
METHODS = {
    "npe nsf": EstimatorSettings(flow=FlowSettings(kind="nsf"), embedding=NONE),
    "npe coupling": EstimatorSettings(flow=FlowSettings(kind="coupling"), embedding=NONE),
    "fmpe": EstimatorSettings(method="fmpe", embedding=NONE),
    "fmpe alpha 3": EstimatorSettings(method="fmpe", field=FieldSettings(alpha=3.0), embedding=NONE),
    "npe cnf": EstimatorSettings(flow=FlowSettings(kind="cnf", hidden=(64, 64, 64, 64)), embedding=NONE),
}
TRAINING = TrainingSettings(epochs=60, batch_size=256, learning_rate=4e-3, weight_decay=1e-2)
SLOW = {"npe cnf": TRAINING.model_copy(update={"epochs": 15})}  # every step solves an ODE


def of(script: str, name: str) -> Any:
    """A function of another benchmark."""
    return runpy.run_path(str(Path(__file__).with_name(script)))[name]


def trained(task: str, method: str, rows: int) -> tuple[Posterior, float]:
    """A posterior, and the seconds its training took."""
    simulator: Any = Reference(task).load()
    rng = np.random.default_rng(0)
    theta = simulator.prior.sample(rows, rng)
    x = simulator.simulate(theta, rng)
    started = time.perf_counter()
    model = simfer.train(theta, x, simulator.prior, estimator=METHODS[method], training=SLOW.get(method, TRAINING))
    return model.posterior, time.perf_counter() - started


def on_two_moons(posterior: Posterior, package: Path, observations: int) -> float:
    found, c2st, reference_draws = [], of("c2st.py", "c2st"), of("sbibm_tasks.py", "reference_draws")
    for k in range(1, observations + 1):
        x = np.array(benchmark.observations("two_moons")[f"observation_{k}"]["x"])
        reference = reference_draws(package, "two_moons", k)
        draws = posterior.sample((len(reference),), x, seed=k).numpy()
        found.append(c2st(reference, draws))
    return float(np.mean(found))


def seconds_of_draws(posterior: Posterior, task: str) -> float:
    """Of 100 × 500 draws with their log density."""
    simulator: Any = Reference(task).load()
    rng = np.random.default_rng(1)
    x = simulator.simulate(simulator.prior.sample(100, rng), rng)
    started = time.perf_counter()
    posterior.sample_with_log_prob((500,), x, seed=0)
    return time.perf_counter() - started


def lines(package: Path, rows: int, observations: int, methods: list[str]) -> Iterator[str]:
    for method in methods:
        posterior, training = trained("gaussian_linear", method, rows)
        seconds = seconds_of_draws(posterior, "gaussian_linear")
        kl = of("gaussian_linear.py", "median_kl")(posterior)
        yield f"{'gaussian_linear':16} {method:13} {kl:9.4f} {training:9.1f} {seconds:9.2f}"
        posterior, training = trained("two_moons", method, rows)
        seconds = seconds_of_draws(posterior, "two_moons")
        yield f"{'two_moons':16} {method:13} {on_two_moons(posterior, package, observations):9.4f} {training:9.1f} {seconds:9.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--observations", type=int, default=5)
    parser.add_argument("--only", nargs="*", default=list(METHODS)[:-1])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.rows:,} simulations, one thread; KL for gaussian_linear, C2ST for two_moons")
    print(f"{'task':16} {'method':13} {'KL | C2ST':>9} {'train s':>9} {'draw s':>9}")
    with of("sbibm_tasks.py", "unpacked")(arguments.folder) as package:
        for line in lines(package, arguments.rows, arguments.observations, arguments.only):
            print(line, flush=True)


if __name__ == "__main__":
    main()
