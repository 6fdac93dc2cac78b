"""Our tasks of the SBI benchmark against its reference posteriors, by importance sampling. Prints one table.

A Gaussian mixture is fitted to half of the reference draws in the prior's unconstrained space and made a little wider;
its own draws are weighted by our prior times our likelihood. Columns, over the observations: the least effective sample size;
the largest difference of a mean, in standard deviations of the reference, and what chance alone gives at four standard
errors; the range of the ratios of standard deviations; the largest |difference| between the log evidence from the
mixture's draws alone and by a bridge to the other half, which is 0 where these follow our posterior.

python tests/benchmarks/sbibm_tasks.py [FOLDER OF THE UNPACKED PACKAGE sbibm] [--observations 10]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import logsumexp
from sklearn.mixture import GaussianMixture

from simfer.data import registry
from simfer.simulators import benchmark
from simfer.simulators.campaign import Reference

TASKS = (
    "gaussian_linear",
    "gaussian_linear_uniform",
    "gaussian_mixture",
    "two_moons",
    "slcp",
    "slcp_distractors",
    "bernoulli_glm",
    "bernoulli_glm_raw",
    "sir",
    "lotka_volterra",
)
SAME_POSTERIOR = {"slcp_distractors": "slcp", "bernoulli_glm_raw": "bernoulli_glm"}
ROUND = {"bernoulli_glm": 1, "bernoulli_glm_raw": 1, "gaussian_linear": 1, "gaussian_linear_uniform": 1}  # components


class Agreement(NamedTuple):
    effective: float
    shift: float
    chance: float
    least_ratio: float
    most_ratio: float
    evidence: float


def agreement(simulator: Any, x: dict[str, np.ndarray], reference: np.ndarray, components: int) -> Agreement:
    """How our posterior of x compares with draws of the benchmark's, ``(draws, parameter)``."""
    z = simulator.prior.to_unconstrained(torch.from_numpy(reference)).numpy()
    proposal, z = fitted(z[::2], components), z[1::2]
    draws = proposal.sample(50_000)[0]
    log_w, log_w_reference = (log_weight(simulator, x, proposal, at) for at in (draws, z))
    weight = np.exp(log_w - logsumexp(log_w))
    theta = simulator.prior.from_unconstrained(torch.from_numpy(draws)).numpy()
    mean, sd = weight @ theta, np.sqrt(weight @ theta**2 - (weight @ theta) ** 2)
    effective, ratio = 1 / (weight**2).sum(), sd / reference.std(0)
    shift = float((np.abs(mean - reference.mean(0)) / reference.std(0)).max())
    chance = 4 * np.sqrt(1 / effective + 1 / len(reference))
    alone = log_mean(log_w)
    bridge = log_mean(log_w / 2) - log_mean(-log_w_reference / 2)
    return Agreement(effective, shift, chance, ratio.min(), ratio.max(), abs(bridge - alone))


def fitted(z: np.ndarray, components: int) -> GaussianMixture:
    """A mixture that covers z: fitted, widened by a fifth, with a tenth of the prior N(0, I) mixed in."""
    mixture, identity = GaussianMixture(components, random_state=0, reg_covar=1e-8).fit(z), np.eye(z.shape[1])[None]
    mixture.weights_ = np.append(0.9 * mixture.weights_, 0.1)
    mixture.means_ = np.append(mixture.means_, np.zeros((1, z.shape[1])), axis=0)
    mixture.covariances_ = np.append(1.44 * mixture.covariances_, identity, axis=0)
    mixture.precisions_cholesky_ = np.append(mixture.precisions_cholesky_ / 1.2, identity, axis=0)
    return mixture


def log_weight(simulator: Any, x: dict[str, np.ndarray], proposal: GaussianMixture, z: np.ndarray) -> np.ndarray:
    """Log of prior times likelihood over the proposal's density, all in unconstrained space."""
    tensor = torch.from_numpy(z)
    theta = simulator.prior.from_unconstrained(tensor)
    prior = (simulator.prior.log_prob(theta) - simulator.prior.log_abs_det(theta, tensor)).numpy()
    return prior + simulator.log_likelihood(theta.numpy(), x) - proposal.score_samples(z)


def log_mean(values: np.ndarray) -> float:
    return float(logsumexp(values) - np.log(len(values)))


def reference_draws(package: Path, task: str, k: int) -> np.ndarray:
    folder = package / "tasks" / SAME_POSTERIOR.get(task, task) / "files" / f"num_observation_{k}"
    return np.loadtxt(folder / "reference_posterior_samples.csv.bz2", delimiter=",", skiprows=1)


def why_skipped(task: str) -> str:
    if task not in registry.names("simulators"):
        return "not registered"
    return "" if hasattr(Reference(task).load(), "log_likelihood") else "no log_likelihood"


@contextmanager
def unpacked(folder: Path | None) -> Iterator[Path]:
    """The folder of sbibm's files: the one given, or one downloaded by pip. Nothing of it is imported."""
    if folder is not None:
        yield folder
        return
    with tempfile.TemporaryDirectory() as temporary:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", temporary, "sbibm==1.1.0"]
        subprocess.run(command, check=True)
        with zipfile.ZipFile(next(Path(temporary).glob("*.whl"))) as wheel:
            wheel.extractall(temporary)
        yield Path(temporary) / "sbibm"


def row(package: Path, task: str, observations: int) -> str:
    simulator: Any = Reference(task).load()
    (name,), shipped, found = simulator.observables.names, benchmark.observations(task), []
    for k in range(1, observations + 1):
        x = {name: np.array(shipped[f"observation_{k}"]["x"])[None]}
        found.append(agreement(simulator, x, reference_draws(package, task, k), ROUND.get(task, 24)))
    effective, shift, chance, least, most, evidence = (np.array(column) for column in zip(*found, strict=True))
    worst = int((shift / chance).argmax())
    return (
        f"{effective.min():9,.0f} {shift[worst]:9.3f} {chance[worst]:8.3f} "
        f"{least.min():9.3f} … {most.max():.3f} {evidence.max():8.4f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--observations", type=int, default=10)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'task':24} {'least ESS':>9} {'mean/sd':>9} {'chance':>8} {'ratio of sd':>17} {'|Δ log Z|':>8}")
    with unpacked(arguments.folder) as package:
        for task in TASKS:
            reason = why_skipped(task)
            print(f"{task:24} {reason or row(package, task, arguments.observations)}", flush=True)


if __name__ == "__main__":
    main()
