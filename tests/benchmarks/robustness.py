"""Attacks on posteriors of five tasks, with and without Fisher-information regularisation, beside the published.

Trained as their recipes say: a masked autoregressive flow of 3 × [100, 100], an embedding for hodgkin_huxley and spatial_sir
alone. Attacks of 200 steps under L2, KL(q(.|x~) || q(.|x)) in nats, median over observations. Published: Gloeckler, Deistler &
Macke (2023), figures 3-5, 100,000 simulations.

python tests/benchmarks/robustness.py [--tasks robust_sir] [--rows 10000] [--observations 500] [--methods none fisher k5 trades adversarial noise]
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np
import torch

import simfer
from simfer.diagnostics.attacks import attack
from simfer.diagnostics.attacks.divergences import ATTACKED_CLEAN
from simfer.estimators.settings import (
    AdversarialSettings,
    NoiseSettings,
    TradesSettings,
    TrainingSettings,
)
from simfer.pipelines.config import TrainConfig
from simfer.pipelines.job import make_job
from simfer.pipelines.yaml_file import read_source
from simfer.simulators.campaign import Reference

EPS = (0.1, 0.5, 1.0, 2.0)
CHEAP = ("robust_sir", "robust_lotka_volterra", "robust_gaussian_linear")
TASKS = (*CHEAP, "hodgkin_huxley", "spatial_sir")
METHODS = ("none", "fisher", "k5", "trades", "adversarial", "noise")
PUBLISHED = {
    ("robust_sir", "none"): ((3.83, 43.9, 96.1, 214.0), (0.900, 0.114)),
    ("robust_sir", "fisher"): ((0.00029, 0.019, 0.097, 0.428), (0.927, 0.916)),
    ("robust_lotka_volterra", "none"): ((0.0735, 2.04, 8.12, 32.7), (0.882, 0.516)),
    ("robust_lotka_volterra", "fisher"): ((0.0055, 0.194, 0.789, 3.07), (0.983, 0.979)),
    ("robust_gaussian_linear", "none"): ((0.642, 16.2, 64.7, 292.0), (np.nan, np.nan)),
    ("robust_gaussian_linear", "fisher"): ((0.476, 12.4, 51.3, 235.0), (0.943, 0.031)),
    ("hodgkin_huxley", "none"): ((4.09, 123.0, 507.0, 6280.0), (0.859, 0.212)),
    ("hodgkin_huxley", "fisher"): ((0.0041, 0.154, 0.663, 3.93), (0.993, 0.991)),
    ("spatial_sir", "none"): ((0.0024, 0.155, 0.68, 2.95), (0.817, 0.769)),
    ("spatial_sir", "fisher"): ((0.00013, 0.0052, 0.030, 0.145), (0.923, 0.915)),
}


def recipe(task: str) -> TrainConfig:
    """How the task's recipe trains."""
    return make_job(read_source(task)).config.train


def robust(train: TrainConfig, method: str) -> TrainingSettings:
    """`fisher` as the recipe has it, `k5` as published: 5 draws for every row in every step; the rest with defaults."""
    assert train.fisher
    kinds: dict[str, dict[str, Any]] = {
        "none": {},
        "fisher": {"fisher": train.fisher},
        "k5": {"fisher": train.fisher.model_copy(update={"draws": 5, "rows": None, "every": 1})},
        "trades": {"trades": TradesSettings()},
        "adversarial": {"adversarial": AdversarialSettings()},
        "noise": {"noise": NoiseSettings()},
    }
    return train.training().model_copy(update={"fisher": None, **kinds[method]})


def pairs(simulator: Any, rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = simulator.prior.sample(rows, rng)
    return theta, simulator.simulate(theta, rng)["x"]


def line(task: str, method: str, cells: tuple[str, ...]) -> None:
    print(f"{task:24} {method:16} " + " ".join(f"{cell:>9}" for cell in cells), flush=True)


def shown(moved: Any, covered: Any) -> tuple[str, ...]:
    return (*(f"{value:.3g}" for value in moved), *(f"{share:.3f}" for share in covered))


def measure(task: str, methods: list[str], rows: int, observations: int) -> None:
    simulator: Any = Reference(task).load()
    theta, x = pairs(simulator, rows, seed=0)
    truth, seen = pairs(simulator, observations, seed=1)
    train, alone = recipe(task), 0.0
    estimator = train.estimator(impute=False)
    for method in methods:
        training = robust(train, method)
        started = time.process_time()  # of one thread: a busy machine changes it little
        model = simfer.train(theta, x, simulator.prior, estimator=estimator, training=training)
        seconds = time.process_time() - started
        alone = alone or seconds
        loss = -float(model.posterior.log_prob_batched(torch.from_numpy(truth)[None], seen).mean())
        found = attack(model.posterior, seen, EPS, theta=truth, coverage_draws=2000)
        covered = found.coverage(0.9)[[0, 2]]
        noise = np.median(found.moved_by_noise[ATTACKED_CLEAN], 1)[2]
        cells = (
            f"{loss:.3f}",
            *shown(found.median(), covered),
            f"{noise:.3g}",
            f"{seconds:.0f}",
            f"{seconds / alone:.1f}",
        )
        line(task, method, cells)
    for method in ("none", "fisher"):
        line("", f"{method}, published", ("", *shown(*PUBLISHED[task, method])))


def speed(rows: int = 1000, alone: int = 10) -> None:
    """200 steps for many observations at once, beside one after another, on a flow of ten parameters."""
    simulator: Any = Reference("robust_gaussian_linear").load()
    theta, x = pairs(simulator, 2000, seed=0)
    training = TrainingSettings(epochs=3)
    estimator = recipe("robust_gaussian_linear").estimator(impute=False)
    posterior = simfer.train(theta, x, simulator.prior, estimator=estimator, training=training).posterior
    started = time.perf_counter()
    attack(posterior, x[:rows], 0.5, evaluation=5, bound_draws=2)
    together = time.perf_counter() - started
    started = time.perf_counter()
    for k in range(alone):
        attack(posterior, x[k : k + 1], 0.5, evaluation=5, bound_draws=2, clip=False)
    apart = (time.perf_counter() - started) * rows / alone
    print(f"{rows:,} observations × 200 steps: {together:.1f} s; one after another {apart:.0f} s, from {alone} of them")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(CHEAP), choices=TASKS)
    parser.add_argument("--methods", nargs="+", default=["none", "fisher"], choices=METHODS)
    parser.add_argument("--speed", action="store_true", help="time many observations at once beside one after another")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--observations", type=int, default=500)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.rows:,} simulations, {arguments.observations} observations, one thread")
    header = ("-log q", *(f"KL at {eps:g}" for eps in EPS), "90 % at 0", "at 0.5", "noise 1", "CPU s", "ratio")
    if arguments.speed:
        speed()
    line("task", "training", header)
    for task in arguments.tasks:
        measure(task, arguments.methods, arguments.rows, arguments.observations)


if __name__ == "__main__":
    main()
