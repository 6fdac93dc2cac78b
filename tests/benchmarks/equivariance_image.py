r"""Equivariance under motions of the plane: GNPE beside augmentation and plain NPE on `elongated_source`, whose likelihood is known.

All have the same flow, nsf of 3 × [64, 64], behind the same convolutions (`cnn2d` of 8, 16, 32 channels, 24 features), and the
defaults of training. Observations are draws of the prior that no training has seen. The truth is a mixture of Student's t fitted
to slice chains that run on the true likelihood, some from the true parameters, the others from the best of the prior's draws;
20,000 draws of it are weighted by that likelihood, which gives the evidence, and resampled. The columns are those of
`equivariance`, with which this shares its functions.

python tests/benchmarks/equivariance_image.py [--rows 3000 10000] [--methods npe augmentation gnpe] [--observations 8]
"""

from __future__ import annotations

import argparse
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from c2st_fast import c2st  # type: ignore[import-not-found]  # beside this script
from equivariance import DRAWS, mean, show, show_measured  # type: ignore[import-not-found]  # beside this script
from jaxtyping import Float
from torch import Tensor

import simfer
from simfer.estimators.base import Posterior
from simfer.estimators.importance import Refined, summarised, systematic
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, SymmetrySettings
from simfer.estimators.slices import slice_chains
from simfer.estimators.student import fit_student
from simfer.simulators.elongated_source import ElongatedSource, surface_brightness

SIMULATOR = ElongatedSource()
PRIOR = SIMULATOR.prior
PROPOSALS, HELD_OUT, TRUTH = 1000, 40, 20_000
CHAINS, WARMUP, KEPT, STARTS = 40, 30, 30, 10_000
_POINTS_AT_ONCE = 5000


def symmetric(**settings: Any) -> SymmetrySettings:
    return SymmetrySettings(declared=SIMULATOR.symmetry, **settings)


METHODS: dict[str, dict[str, Any]] = {
    "npe": {},
    "augmentation": {"symmetry": symmetric(by="augmentation")},
    "gnpe": {"symmetry": symmetric(kernel={"plane": [0.25, 0.25, 0.15]})},
    "gnpe_wide": {"symmetry": symmetric(kernel={"plane": [0.5, 0.5, 0.3]})},
}


class Truth(NamedTuple):
    """The posterior of one observation, and what its weights are worth."""

    log_evidence: float
    efficiency: float
    draws: Float[np.ndarray, "draw parameter"]
    others: Float[np.ndarray, "draw parameter"]


def pairs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = PRIOR.sample(rows, rng)
    return theta, SIMULATOR.simulate(theta, rng)["image"]


def log_joint(theta: Float[np.ndarray, "row parameter"], image: Float[np.ndarray, "side side"]) -> np.ndarray:
    """log p(image, theta)."""
    parts = np.array_split(theta, max(1, len(theta) // _POINTS_AT_ONCE))
    square = np.concatenate([np.square(surface_brightness(part) - image).sum((1, 2)) for part in parts])
    norm = image.size * np.log(np.sqrt(2 * np.pi) * SIMULATOR.noise)
    return -0.5 * square / SIMULATOR.noise**2 - norm + PRIOR.log_prob(torch.from_numpy(theta)).numpy()


def truth(true: Float[np.ndarray, " parameter"], image: np.ndarray, rng: np.random.Generator) -> Truth:
    def log_density(z: Tensor, which: Tensor) -> Tensor:
        theta = PRIOR.from_unconstrained(z)
        return torch.from_numpy(log_joint(theta.numpy(), image)) - PRIOR.log_abs_det(theta, z)

    none = torch.zeros(0, dtype=torch.int64)
    torch.manual_seed(0)
    z = PRIOR.to_unconstrained(torch.from_numpy(PRIOR.sample(STARTS, rng)))
    best = z[log_density(z, none).topk(CHAINS // 2).indices]
    known = PRIOR.to_unconstrained(torch.from_numpy(true[None])).repeat(CHAINS - len(best), 1)
    chains = slice_chains(log_density, torch.cat([best, known])[None], draws=KEPT, warmup=WARMUP, thin=1)
    states = chains.states[:, 0].flatten(0, 1).numpy()
    mixture = fit_student(states, np.ones(len(states)), rng)
    drawn = mixture.sample(TRUTH, rng)
    log_weights = log_density(torch.from_numpy(drawn), none).numpy() - mixture.log_prob(drawn)
    theta = PRIOR.from_unconstrained(torch.from_numpy(drawn)).numpy()
    found = summarised(theta, log_weights + mixture.log_prob(drawn), log_weights)
    picked = theta[rng.permutation(systematic(log_weights, 2 * DRAWS, rng))]
    return Truth(found.log_evidence, found.efficiency, picked[:DRAWS], picked[DRAWS:])


def trained(method: str, rows: int, seed: int) -> tuple[Any, float]:
    """The posterior, and the seconds that its training took."""
    theta, images = pairs(rows, seed)
    embedding = EmbeddingSettings(kind="cnn2d", features=24, channels=(8, 16, 32), hidden=(64,))
    flow = FlowSettings(kind="nsf", transforms=3, hidden=(64, 64))
    estimator = EstimatorSettings(**({"flow": flow, "embedding": embedding} | METHODS[method]))
    started = time.process_time()  # of one thread: a busy machine changes it little
    model = simfer.train(theta, images, PRIOR, estimator=estimator, observables=SIMULATOR.observables, seed=seed)
    return model.posterior, time.process_time() - started


def weighted(posterior: Posterior, images: Float[np.ndarray, "observation side side"]) -> list[Refined]:
    """Proposals for every observation, weighted by the likelihood."""
    theta, log_q = (values.numpy() for values in posterior.propose((PROPOSALS,), images, seed=1))
    exact = [log_joint(theta[:, k], image) for k, image in enumerate(images)]
    return [summarised(theta[:, k], one, one - log_q[:, k]) for k, one in enumerate(exact)]


def measure(method: str, rows: int, seed: int, images: np.ndarray, truths: list[Truth], few: int) -> None:
    posterior, seconds = trained(method, rows, seed)
    found, held_out = weighted(posterior, images), pairs(HELD_OUT, 10_001)
    show_measured(method, rows, seconds, posterior, images, truths, found, held_out, few)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[3000, 10_000])
    parser.add_argument("--methods", nargs="+", default=["npe", "augmentation", "gnpe"], choices=METHODS)
    parser.add_argument("--observations", type=int, default=8)
    parser.add_argument("--compared", type=int, default=10, help="observations of which draws are compared by C2ST")
    parser.add_argument("--seed", type=int, default=0, help="of simulations and weights")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    few = min(arguments.compared, arguments.observations)
    theta, images = pairs(arguments.observations, 10_000)
    truths = [
        truth(row, x, np.random.default_rng([3, k])) for k, (row, x) in enumerate(zip(theta, images, strict=True))
    ]
    shares = [t.efficiency for t in truths]
    print(
        f"{len(truths)} observations, C2ST at the first {few}; truth from weights of efficiency {min(shares):.2f} or more"
    )
    show("method", "N", "C2ST", "efficiency", "median", "least", "evidence", "worst", "off", "-log q", "CPU s")
    show("truth", "", mean([c2st(t.draws, t.others) for t in truths[:few]]))
    for rows in arguments.rows:
        for method in arguments.methods:
            measure(method, rows, arguments.seed, images, truths, few)


if __name__ == "__main__":
    main()
