"""Training on a GPU: steps per second, utilisation, and time to accuracy with a million simulations.

python tests/benchmarks/gpu.py [--rows 1000000] [--tasks two_moons slcp] [--seconds 400]

Steps: milliseconds of a step of the default estimator by batch, uncompiled and compiled, and sbi's. Accuracy: seconds and
the loss on rows that are not for learning, for budgets of epochs and batches, ``auto`` first. Utilisation is what NVML
says, the share of time in which any kernel ran.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from sbi.inference import NPE

import simfer
from simfer.data import registry
from simfer.estimators.hardware import Hardware
from simfer.estimators.settings import TrainingSettings

HELD_OUT = 20_000
STEPS = 60
DEVICE = "gpu" if torch.cuda.is_available() else "cpu"  # to try the script itself
BUDGETS: tuple[dict[str, Any], ...] = (
    {},
    {"batch_size": 2048, "epochs": 5, "learning_rate": 4e-3},
    {"batch_size": 2048, "epochs": 10, "learning_rate": 4e-3},
    {"batch_size": 8192, "epochs": 10, "learning_rate": 4e-3},
    {"batch_size": 8192, "epochs": 20, "learning_rate": 4e-3},
    {"batch_size": 8192, "epochs": 20, "learning_rate": 8e-3},
)


@contextmanager
def utilisation() -> Iterator[list[int]]:
    """Percent, every 50 ms."""
    seen: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while torch.cuda.is_available() and not ended.wait(0.05):
            seen.append(torch.cuda.utilization())

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        ended.set()
        thread.join()


def simulations(task: str, rows: int) -> tuple[Any, np.ndarray, np.ndarray]:
    simulator, rng = registry.resolve("simulators", task)(), np.random.default_rng(0)
    theta = simulator.prior.sample(rows, rng)
    return simulator.prior, theta, simulator.simulate(theta, rng)["x"].astype(np.float32)


def steps(task: str, batch: int, compile: str) -> str:
    """Of the epochs after the first, which loads, compiles and warms up."""
    prior, theta, x = simulations(task, int(STEPS * batch / 0.9) + 1)
    ends: list[float] = []

    def note(epoch: int, train_loss: float, val_loss: float) -> None:
        ends.append(time.perf_counter())  # the loss was read, so that the device is done

    hardware = Hardware(accelerator=DEVICE, devices=1, compile=compile)
    training = TrainingSettings(epochs=4, batch_size=batch)
    with utilisation() as busy:
        simfer.train(theta, x, prior, training=training, hardware=hardware, on_epoch=note)
    per_step = min(np.diff(ends)) / STEPS
    kind = "uncompiled" if compile == "never" else "compiled"
    return f"{kind:11} batch {batch:6}: {1000 * per_step:7.2f} ms a step, {batch / per_step:12,.0f} rows/s, GPU {max(busy, default=0)} %"


def sbis(task: str, batch: int) -> str:
    prior, theta, x = simulations(task, int(STEPS * batch / 0.9) + 1)
    trainer = NPE(
        prior.torch, density_estimator="nsf", device="cuda" if DEVICE == "gpu" else "cpu", show_progress_bars=False
    )
    trainer.append_simulations(torch.from_numpy(theta).float(), torch.from_numpy(x))
    trainer.train(training_batch_size=batch, max_num_epochs=1)
    started = time.perf_counter()
    trainer.train(training_batch_size=batch, max_num_epochs=3, resume_training=True)
    return f"sbi         batch {batch:6}: {1000 * (time.perf_counter() - started) / (3 * STEPS):7.2f} ms a step, validation included"


def accuracy(task: str, rows: int, budget: dict[str, Any], compile: str) -> str:
    prior, theta, x = simulations(task, rows + HELD_OUT)
    started = time.perf_counter()
    with utilisation() as busy:
        model = simfer.train(
            theta[:rows],
            x[:rows],
            prior,
            training=TrainingSettings(**budget),
            hardware=Hardware(accelerator=DEVICE, devices=1, compile=compile),
        )
    seconds, posterior = time.perf_counter() - started, model.to("cuda" if DEVICE == "gpu" else "cpu").posterior
    loss = -float(posterior.log_prob_batched(torch.from_numpy(theta[None, rows:]), x[rows:]).mean())
    said = ", ".join(f"{key} {value}" for key, value in budget.items()) or "auto"
    return f"{task:10} {said:50} {compile:7} {seconds:7.1f} s, loss {loss:8.4f}, GPU {np.mean(busy or [0]):.0f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--tasks", nargs="+", default=["two_moons", "slcp"])
    parser.add_argument("--batches", nargs="+", type=int, default=[256, 2048, 8192, 32768])
    parser.add_argument("--seconds", type=float, default=np.inf, help="begin nothing after so many")
    arguments = parser.parse_args()
    began = time.perf_counter()
    print(f"{torch.cuda.get_device_name() if DEVICE == 'gpu' else 'CPU'}, torch {torch.__version__}", flush=True)
    todo = [(steps, (arguments.tasks[0], b, c)) for b in arguments.batches for c in ("never", "always")]
    todo += [(sbis, (arguments.tasks[0], batch)) for batch in arguments.batches[:2]]
    for compile in ("never", "always"):
        todo += [(accuracy, (t, arguments.rows, b, compile)) for b in BUDGETS for t in arguments.tasks]
    for run, given in todo:
        if time.perf_counter() - began < arguments.seconds:
            print(run(*given), flush=True)


if __name__ == "__main__":
    main()
