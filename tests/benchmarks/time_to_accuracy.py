"""Seconds of a whole training, and the loss of other pairs after it, beside sbi 0.27 on the same simulations, one thread each.

python tests/benchmarks/time_to_accuracy.py [--task two_moons] [--rows 10000]

Every contender runs in a process of its own, one after another: sbi's default NPE `nsf`; simfer uncompiled; compiled with
an empty cache; and compiled with the cache that left. Times are of the training call, compilation included, imports not.
CPU seconds are given beside those of the wall: with one thread they are the same on an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import torch

import simfer
from simfer.data import registry
from simfer.estimators.hardware import Hardware
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings

HELD_OUT = 5000
SETTINGS = EstimatorSettings(
    flow=FlowSettings(kind="nsf", transforms=5, hidden=(50, 50), bins=10), embedding=EmbeddingSettings(kind="none")
)
TRAINING = TrainingSettings(epochs="auto", batch_size="auto", learning_rate="auto")
CONTENDERS = ("sbi", "uncompiled", "cold", "warm")


def cpu_seconds() -> float:
    """Of this process and of the compilers it has called."""
    return sum(os.times()[:4])


def simulations(task: str, rows: int) -> tuple[Any, np.ndarray, np.ndarray]:
    simulator, rng = registry.resolve("simulators", task)(), np.random.default_rng(0)
    theta = simulator.prior.sample(rows + HELD_OUT, rng)
    return simulator.prior, theta, simulator.simulate(theta, rng)["x"].astype(np.float32)


def sbis(task: str, rows: int) -> dict[str, Any]:
    from sbi.inference import NPE

    prior, theta, x = simulations(task, rows)
    theta32, x32 = torch.from_numpy(theta).float(), torch.from_numpy(x)
    torch.manual_seed(0)
    trainer = NPE(prior.torch, density_estimator="nsf")
    trainer.append_simulations(theta32[:rows], x32[:rows])
    wall, cpu = time.perf_counter(), cpu_seconds()
    network = trainer.train()
    found = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    with torch.no_grad():
        held_out = float(network.loss(theta32[rows:], x32[rows:]).mean())
    best = float(trainer.summary["best_validation_loss"][-1])
    return found | {"validation": best, "held_out": held_out, "epochs": int(trainer.summary["epochs_trained"][-1])}


def ours(task: str, rows: int, compile: str) -> dict[str, Any]:
    prior, theta, x = simulations(task, rows)
    wall, cpu = time.perf_counter(), cpu_seconds()
    hardware = Hardware(threads=1, compile=compile)
    model = simfer.train(theta[:rows], x[:rows], prior, estimator=SETTINGS, training=TRAINING, hardware=hardware)
    found = {"wall": time.perf_counter() - wall, "cpu": cpu_seconds() - cpu}
    with torch.no_grad():
        held_out = -float(model.posterior.log_prob_batched(torch.from_numpy(theta[None, rows:]), x[rows:]).mean())
    losses = model.facts["loss"]["validation"]
    return found | {"validation": min(losses), "held_out": held_out, "epochs": len(losses)}


def contend(name: str, arguments: argparse.Namespace, cache: str) -> dict[str, Any]:
    """One contender in a fresh process."""
    command = [sys.executable, __file__, "--task", arguments.task, "--rows", str(arguments.rows), "--one", name]
    one = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": cache}
    environment = os.environ | one
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def line(name: str, found: dict[str, Any], peer: dict[str, Any]) -> str:
    return (
        f"{name:11} {found['epochs']:7d} {found['validation']:11.3f} {found['held_out']:9.3f} {found['wall']:8.1f} "
        f"{found['cpu']:8.1f} {found['cpu'] / peer['cpu']:9.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", default="two_moons")
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--one", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.one == "sbi":
        print(f"\n{json.dumps(sbis(arguments.task, arguments.rows))}")  # sbi ends no line of its own
        return
    if arguments.one:
        compile = "never" if arguments.one == "uncompiled" else "always"
        print(json.dumps(ours(arguments.task, arguments.rows, compile)))
        return
    print(f"{arguments.task}, {arguments.rows:,} simulations, one thread; seconds, and CPU seconds relative to sbi's")
    print(f"{'':11} {'epochs':>7} {'validation':>11} {'held out':>9} {'wall':>8} {'CPU':>8} {'ratio':>9}")
    with tempfile.TemporaryDirectory() as cache:
        peer: dict[str, Any] = {}
        for name in CONTENDERS:
            found = contend(name, arguments, cache)
            peer = peer or found
            print(line(name, found, peer), flush=True)


if __name__ == "__main__":
    main()
