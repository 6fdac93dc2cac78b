"""Posterior draws of many observations from an underfitted MAF on slcp, beside sbi's rejection; none may lie outside the prior.

python tests/benchmarks/draws.py [--observations 1000] [--draws 1000] [--sbi-observations 50] [--threads 2]

Both train for 15 epochs on the same 10,000 simulations. sbi's density has mass outside the prior's box, which it rejects:
its time is for ``--sbi-observations`` of the same observations, and is given per million draws besides.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from sbi.inference import NPE

import simfer
from simfer.estimators.settings import EstimatorSettings, FlowSettings, TrainingSettings
from simfer.simulators.slcp import SLCP

ROWS, EPOCHS = 10_000, 15


def said(name: str, draws: torch.Tensor, seconds: float) -> str:
    outside = int((~SLCP.prior.contains(draws.double())).sum())
    millions = draws[..., 0].numel() / 1e6
    return f"{name:8} {millions:6.3f} million draws in {seconds:7.2f} s, {seconds / millions:8.2f} s a million; {outside} outside"


def ours(theta: np.ndarray, x: np.ndarray, observed: np.ndarray, draws: int) -> str:
    posterior = simfer.train(
        theta,
        x,
        SLCP.prior,
        estimator=EstimatorSettings(flow=FlowSettings(kind="maf", transforms=5, hidden=(50, 50))),
        training=TrainingSettings(epochs=EPOCHS, batch_size=200),
    ).posterior
    posterior.sample_batched((10,), observed, seed=0)
    started = time.perf_counter()
    found = posterior.sample_batched((draws,), observed, seed=1)
    return said("simfer", found, time.perf_counter() - started)


def sbis(theta: np.ndarray, x: np.ndarray, observed: np.ndarray, draws: int) -> str:
    torch.manual_seed(1)
    trainer = NPE(SLCP.prior.torch, density_estimator="maf", show_progress_bars=False)
    trainer.append_simulations(*(torch.from_numpy(part).float() for part in (theta, x)))
    posterior = trainer.build_posterior(trainer.train(max_num_epochs=EPOCHS))
    started = time.perf_counter()
    found = posterior.sample_batched((draws,), torch.from_numpy(observed).float(), show_progress_bars=False)
    return said("sbi", found, time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--observations", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--sbi-observations", type=int, default=50)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rng = np.random.default_rng(0)
    theta = SLCP.prior.sample(ROWS + arguments.observations, rng)
    x = SLCP().simulate(theta, rng)["x"]
    learn, observed = slice(0, ROWS), x[ROWS:]
    print(ours(theta[learn], x[learn], observed, arguments.draws), flush=True)
    if arguments.sbi_observations:
        print(sbis(theta[learn], x[learn], observed[: arguments.sbi_observations], arguments.draws), flush=True)


if __name__ == "__main__":
    main()
