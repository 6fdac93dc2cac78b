"""Fisher-information regularisation of a normal posterior of robust_gaussian_linear, against its closed form.

The minimum of E[-log q] + β tr F is the exact posterior for noise of variance σ² + 2β (Gloeckler, Deistler & Macke, 2023, worked
out for theta ~ N(0, 1), x = a theta + N(0, σ²)): slope a / (a² + σ² + 2β), variance (σ² + 2β) / (a² + σ² + 2β). The worst
perturbation of length r then moves it by ½ r² max(slope² / variance).

python tests/benchmarks/robust_closed_form.py [--rows 10000] [--draws exact] [--betas 0.001 0.003 0.01]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch

import simfer
from simfer.diagnostics.attacks import attack
from simfer.estimators.settings import (
    EmbeddingSettings,
    EstimatorSettings,
    FisherSettings,
    FlowSettings,
    TrainingSettings,
)
from simfer.simulators.robust_gaussian_linear import RobustGaussianLinear

EPS = (0.1, 0.2, 0.3, 0.5)
SLOPES = np.array([-0.2633, -1.9402, 1.6822, -0.29684, -0.031292, -1.0250, 0.056811, 0.29649, 1.2073, -1.7704])
VARIANCE = 0.01
ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="gmm", components=1, hidden=(100, 100)),
    embedding=EmbeddingSettings(kind="none"),
    transforms={"x": "identity"},
)


def closed_form(beta: float) -> tuple[float, float]:
    """−log q of the truth on average, and the largest eigenvalue of F."""
    noise = VARIANCE + 2 * beta
    slope, variance = SLOPES / (SLOPES**2 + noise), noise / (SLOPES**2 + noise)
    errors = 1 - 2 * SLOPES * slope + slope**2 * (SLOPES**2 + VARIANCE)
    loss = (np.log(2 * np.pi * variance) + errors / variance).sum() / 2
    return float(loss), float((slope**2 / variance).max())


def measure(beta: float, arguments: argparse.Namespace) -> None:
    simulator, rng = RobustGaussianLinear(), np.random.default_rng(arguments.seed)
    theta = simulator.prior.sample(arguments.rows, rng)
    x = simulator.simulate(theta, rng)["x"]
    fisher = FisherSettings(beta=beta, draws=arguments.draws, rows=arguments.of, every=arguments.every)
    training = TrainingSettings(clip=75.0, fisher=fisher)
    model = simfer.train(theta, x, simulator.prior, estimator=ESTIMATOR, training=training, seed=arguments.seed)
    truth = simulator.prior.sample(5000, rng)
    seen = simulator.simulate(truth, rng)["x"]
    loss = -float(model.posterior.log_prob_batched(torch.from_numpy(truth)[None], seen).mean())
    found = attack(model.posterior, seen[:300], EPS)
    expected, largest = closed_form(beta)
    bounds = 0.5 * np.asarray(found.radius) ** 2 * largest
    moved = "  ".join(
        f"{value:.3g} / {bound:.3g} ({value / bound - 1:+.0%})"
        for value, bound in zip(found.median(), bounds, strict=True)
    )
    print(f"{beta:6g}  {loss:.3f} / {expected:.3f} ({abs(loss / expected - 1):.0%})  {moved}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.001, 0.003, 0.01])
    parser.add_argument("--draws", type=_draws, default=1, help="of theta, or `exact`")
    parser.add_argument("--of", type=int, default=128, help="rows of each batch")
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{arguments.rows:,} simulations; measured / closed form")
    print("     β  −log q of the truth      " + "  ".join(f"KL at ε = {eps}" for eps in EPS))
    for beta in arguments.betas:
        measure(beta, arguments)


def _draws(text: str) -> Any:
    return text if text == "exact" else int(text)


if __name__ == "__main__":
    main()
