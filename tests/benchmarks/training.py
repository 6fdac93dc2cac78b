"""Milliseconds per training step, beside a bare loop and sbi 0.27 on the same simulations, batch and network size.

python tests/benchmarks/training.py [--compile always]

CPU time is given beside wall time: with one thread they are the same on an idle machine, and CPU time is what a busy one
leaves as it is. A step is the difference of a long and a short training by the difference of their steps: set-up and
compilation are none of it, validation after every epoch is. A bare loop is the same estimator, batches, optimiser, clipping,
schedule, average of weights and validation without Lightning, callbacks and checkpoints.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from sbi.inference import NPE
from sbi.neural_nets import posterior_nn
from torch.distributions import Independent, Uniform

import simfer
from simfer.data.loaders import WholeBatches, as_batch
from simfer.estimators.hardware import Hardware
from simfer.estimators.model import build_estimator
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.estimators.train import split
from simfer.simulators.two_moons import TwoMoons

BATCH = 200
SETTINGS = EstimatorSettings(
    flow=FlowSettings(kind="nsf", transforms=5, hidden=(50, 50), bins=10), embedding=EmbeddingSettings(kind="none")
)
Seconds = tuple[float, float]


def timed(run: Callable[[], object]) -> Seconds:
    """Wall and CPU seconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def ours(theta: np.ndarray, x: np.ndarray, epochs: int, compile: str) -> Seconds:
    training = TrainingSettings(epochs=epochs, batch_size=BATCH, patience=10_000)
    hardware = Hardware(threads=1, compile=compile)
    return timed(
        lambda: simfer.train(theta, x, TwoMoons.prior, estimator=SETTINGS, training=training, hardware=hardware)
    )


def bare(theta: np.ndarray, x: np.ndarray, epochs: int, compile: str) -> Seconds:
    estimator = build_estimator(TwoMoons.prior, TwoMoons.observables, SETTINGS)
    rows, held = (estimator.prepare(part) for part in split(as_batch(theta, {"x": x}), 0.1))
    estimator.fit_preprocess([rows])
    optimizer = torch.optim.AdamW(estimator.parameters(), lr=1e-3, weight_decay=1e-4, fused=True)
    loader, validation = WholeBatches(rows, BATCH, seed=0), WholeBatches(held, 10 * BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    weights = list(estimator.parameters())
    averages = [weight.detach().clone() for weight in weights]

    def loop() -> None:
        for _ in range(epochs):
            for batch in loader:
                optimizer.zero_grad()
                estimator.loss(batch).mean().backward()
                torch.nn.utils.clip_grad_norm_(estimator.parameters(), 5.0)
                optimizer.step()
                schedule.step()
                with torch.no_grad():
                    torch._foreach_lerp_(averages, weights, 0.01)
            with torch.no_grad():
                float(np.mean([estimator.loss(batch).mean().item() for batch in validation]))

    torch.distributions.Distribution.set_default_validate_args(False)
    try:
        return timed(loop)
    finally:
        torch.distributions.Distribution.set_default_validate_args(__debug__)


def sbis(theta: np.ndarray, x: np.ndarray, epochs: int, compile: str) -> Seconds:
    prior = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
    trainer = NPE(prior, density_estimator=posterior_nn("nsf", hidden_features=50, num_transforms=5, num_bins=10))
    trainer.append_simulations(torch.from_numpy(theta).float(), torch.from_numpy(x).float())
    return timed(lambda: trainer.train(training_batch_size=BATCH, max_num_epochs=epochs, stop_after_epochs=10_000))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=5, help="by which the long training is longer")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--compile", choices=("always", "never"), default="never")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    theta = TwoMoons.prior.sample(arguments.rows, rng)
    x = TwoMoons().simulate(theta, rng)["x"]
    steps = arguments.epochs * (int(0.9 * arguments.rows) // BATCH)
    print(f"two_moons, {arguments.rows:,} rows, batch {BATCH}, neural spline flow of 5 × 50, one thread; ms per step")
    ours(theta[:1000], x[:1000], 1, "never")  # imports and first calls
    found: dict[str, list[np.ndarray]] = {"bare loop": [], "simfer": [], "sbi": []}
    for _ in range(arguments.repeats):
        for name, run in (("bare loop", bare), ("simfer", ours), ("sbi", sbis)):
            short, long = (run(theta, x, epochs, arguments.compile) for epochs in (2, 2 + arguments.epochs))
            found[name].append(1000 * (np.array(long) - short) / steps)
    for name, times in found.items():
        wall, cpu = np.median(times, 0)
        spread = " ".join(f"{time:.2f}" for time, _ in times)
        print(f"{name:10} {wall:6.2f} ({cpu:.2f} of CPU); each: {spread}", flush=True)


if __name__ == "__main__":
    main()
