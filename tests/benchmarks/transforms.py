"""What the transforms that are chosen from the data are worth: validation losses of short trainings with and without.

For every simulator the choice, and where it is not the plain one (`sqrt` for counts, `identity` for the rest) the best
validation loss, in nats per row, of either: a MAF on an MLP, the same rows and seed. Prints one table.

    python tests/benchmarks/transforms.py [--rows 6000] [--epochs 12] [--only lotka_volterra g_and_k]
"""

from __future__ import annotations

import argparse

import numpy as np

import simfer
from simfer.data.loaders import as_batch
from simfer.estimators.preprocess import Preprocess
from simfer.estimators.settings import EstimatorSettings, FlowSettings, TrainingSettings, XTransform
from simfer.simulators.base import Simulator
from simfer.simulators.campaign import Reference

TASKS = (
    *("bernoulli_glm", "bernoulli_glm_raw", "gaussian_linear", "gaussian_linear_uniform", "gaussian_mixture"),
    *("lotka_volterra", "sir", "slcp", "slcp_distractors", "two_moons"),
    *("influenza_1978", "lotka_volterra_pelts", "g_and_k", "spatial_sir"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=6000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--only", nargs="+", default=TASKS)
    arguments = parser.parse_args()
    print(f"{'simulator':24} {'chosen':>20} {'plain':>8} {'auto':>8}")
    for name in arguments.only:
        simulator = Reference(name).load()
        theta, x = simulated(simulator, arguments.rows)
        preprocess = Preprocess(simulator.observables, {})
        plain = dict(preprocess.transforms)
        preprocess.fit(as_batch(theta, x).x)
        chosen = preprocess.transforms
        losses = [trained(simulator, theta, x, given, arguments.epochs) for given in (plain, chosen) if plain != chosen]
        print(f"{name:24} {', '.join(chosen.values()):>20}", *(f"{loss:8.2f}" for loss in losses), flush=True)


def simulated(simulator: Simulator, rows: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Rows that are finite."""
    rng = np.random.default_rng(1)
    theta = simulator.prior.sample(rows, rng)
    x = simulator.simulate(theta, rng)
    finite = np.all([np.isfinite(values.reshape(rows, -1)).all(1) for values in x.values()], axis=0)
    return theta[finite], {name: values[finite] for name, values in x.items()}


def trained(
    simulator: Simulator, theta: np.ndarray, x: dict[str, np.ndarray], transforms: dict[str, XTransform], epochs: int
) -> float:
    """The best validation loss."""
    model = simfer.train(
        theta,
        x,
        simulator.prior,
        observables=simulator.observables,
        estimator=EstimatorSettings(
            transforms=transforms, flow=FlowSettings(kind="maf", transforms=3, hidden=(48, 48))
        ),
        training=TrainingSettings(epochs=epochs, batch_size=200, learning_rate=4e-3),
    )
    return float(min(model.facts["loss"]["validation"]))


if __name__ == "__main__":
    main()
