"""Hares and lynx: the amortised network alone, truncated rounds, and refinement, against the exact posterior.

    python tests/benchmarks/pelts.py [plain] [refined] [rounds]

Every ODE solve counts, whether for a simulation or a likelihood. Shifts are of medians, in standard deviations of the exact
posterior; widths are ratios of 80 % intervals; the worst of eight parameters is shown.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from simfer.data.variables import Arrays
from simfer.estimators.adaptive import refine_adaptively
from simfer.estimators.model import Model
from simfer.estimators.sequential import sequential
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.simulators.lotka_volterra_pelts import LotkaVolterraPelts

REFERENCE = np.load(Path(__file__).parents[1] / "reference" / "hare_lynx_reference.npz")["samples"]
DRAWS, SEED = 10_000, 1
ROWS, ROUNDS, EPSILON, LIKELIHOODS = 90_000, 5, 1e-3, 100_000

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="maf", transforms=4, hidden=(64, 64)),
    embedding=EmbeddingSettings(kind="resnet", features=32, width=128),
    transforms={"hares": "log", "lynx": "log"},
    whiten=True,
)
TRAINING = TrainingSettings(
    epochs=15, batch_size=512, learning_rate=4e-3, weight_decay=0.01, validation=0.05, patience=15
)


class Counted(LotkaVolterraPelts):
    """Counts the rows it solves."""

    solved = 0

    def simulate(self, theta: np.ndarray, rng: np.random.Generator, context: Any = None) -> Arrays:
        Counted.solved += len(theta)
        return super().simulate(theta, rng, context)

    def log_likelihood(self, theta: np.ndarray, x: Arrays, context: Any = None) -> np.ndarray:
        Counted.solved += len(theta)
        return super().log_likelihood(theta, x, context)


def observed() -> Arrays:
    return {name: np.array(values) for name, values in Counted.observations["hare_lynx_1900_1920"].items()}


def trained(rounds: int) -> Model:
    found = sequential(
        Counted(),
        None,
        observed(),
        rounds=rounds,
        rows=ROWS,
        epsilon=EPSILON,
        estimator=ESTIMATOR,
        training=TRAINING,
        seed=SEED,
        say=_say,
    )
    return found.model


def plain() -> tuple[np.ndarray, str]:
    model = trained(1)
    alone = refine_adaptively(
        model.posterior, Counted().log_likelihood, observed(), method="importance", likelihoods=LIKELIHOODS, seed=SEED
    )
    theta = model.posterior.sample((DRAWS,), observed(), seed=SEED).numpy()
    return theta, f"importance: {alone.refusal or 'accepted'}"


def rounds() -> tuple[np.ndarray, str]:
    model = trained(ROUNDS)
    return model.posterior.sample((DRAWS,), observed(), seed=SEED).numpy(), f"{ROUNDS} rounds of {ROWS:,}"


def refined() -> tuple[np.ndarray, str]:
    posterior = trained(1).posterior
    found = refine_adaptively(
        posterior, Counted().log_likelihood, observed(), ess=DRAWS, likelihoods=LIKELIHOODS, seed=SEED
    )
    theta, _ = found.resample(DRAWS, np.random.default_rng(SEED))
    evidence = f"log evidence {found.log_evidence:.3f} ± {found.log_evidence_sd:.3f}"
    return theta, found.refusal or f"ESS {found.ess:,.0f}, Pareto k {found.pareto_k:.2f}, {evidence}"


def measure(name: str, infer: Any) -> None:
    Counted.solved, started, cpu = 0, time.perf_counter(), time.process_time()
    theta, note = infer()
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    (low, median, high), (first, middle, last) = (np.quantile(d, [0.1, 0.5, 0.9], axis=0) for d in (theta, REFERENCE))
    shift, width = np.abs(median - middle) / REFERENCE.std(0), (high - low) / (last - first)
    print(
        f"{name:8}  solved {Counted.solved:>8,}  {seconds:6.0f} s ({cpu:.0f} s of a core)  shift ≤ {shift.max():5.2f}  "
        f"width {width.min():.2f}–{width.max():.2f}  {note}",
        flush=True,
    )


def _say(text: str) -> None:
    print(f"  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    kinds = {"plain": plain, "refined": refined, "rounds": rounds}
    for wanted in sys.argv[1:] or list(kinds):
        measure(wanted, kinds[wanted])
