r"""Group-equivariant inference (GNPE) beside canonical poses, augmentation, convolutions and plain NPE on `damped_oscillator`.

Its likelihood is known. All have the same flow, nsf of 3 × [64, 64]; an embedding of dense layers, 16 features from [128, 64], but for
``cnn``, whose convolutions (`cnn1d`, as it comes) are equivariant up to strides, and ``circular``, whose are without them; and the defaults of training. Observations are draws of the prior that no
training has seen. The truth is a grid over the box of the prior, made finer around where the posterior is: it gives the evidence,
and cells to draw from, which are weighted by the likelihood and resampled. For each training:

- C2ST: 1,000 draws against as many of the truth, in the protocol of the SBI benchmark (`c2st_fast`); ``truth`` is against
  other draws of the truth.
- efficiency: n_eff / n of 2,000 proposals weighted by the likelihood; median and least of the observations.
- evidence: how many of the estimates from those weights lie within 3 of their own sd, sqrt((n - n_eff) / (n n_eff)), of the grid's.
- -log q: of the true parameters of 200 held-out pairs.

± is the standard error over observations. ``--cost`` instead times 10,000 draws for each, all observations at once, by chains of
GNPE and by NPE; and slice sampling with the true likelihood (`slices`) for two, extrapolated to as many effective draws. ``--wrong``
instead trains with a wrong sign of the declaration, and with a prior that prefers poses, and weights what comes out of it. The method:
Dax et al., "Group equivariant neural posterior estimation" (ICLR 2022), https://arxiv.org/abs/2111.13139.

python tests/benchmarks/equivariance.py [--rows 1000 3000 10000] [--methods npe augmentation cnn gnpe] [--observations 20] [--cost] [--wrong]
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from c2st_fast import c2st  # type: ignore[import-not-found]  # beside this script
from jaxtyping import Float
from torch import Tensor

import simfer
from simfer.estimators.base import Posterior
from simfer.estimators.convergence import bulk_ess, split_r_hat
from simfer.estimators.importance import LARGEST_PARETO_K, Refined, summarised, systematic
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, SymmetrySettings
from simfer.estimators.slices import slice_chains
from simfer.simulators.damped_oscillator import DampedOscillator, signal
from simfer.simulators.prior import Prior

SIMULATOR = DampedOscillator()
PRIOR = SIMULATOR.prior
LOW, HIGH = np.array([3.0, 0.2, 1.0]), np.array([10.0, 0.5, 6.0])
FIRST_CELLS, CELLS = (35, 15, 100), 64  # of the grids: over all of the box, then around the posterior
FURTHER = 2  # times that the box is drawn closer
FAR = 20.0  # below the largest log-likelihood: what lies lower is left out
PROPOSALS, DRAWS, HELD_OUT, TRUTH = 2000, 1000, 200, 20_000
MANY_DRAWS, CHAINS, BY_CHAINS = 10_000, 100, 2
_POINTS_AT_ONCE = 20_000

DENSE = EmbeddingSettings(kind="mlp", features=16, hidden=(128, 64))


def symmetric(**settings: Any) -> SymmetrySettings:
    return SymmetrySettings(declared=SIMULATOR.symmetry, **settings)


METHODS: dict[str, dict[str, Any]] = {
    "npe": {},
    "augmentation": {"symmetry": symmetric(by="augmentation")},
    "cnn": {"embedding": EmbeddingSettings(kind="cnn1d", features=16)},
    "circular": {
        "embedding": EmbeddingSettings(
            kind="circular1d", features=16, channels=(16, 32, 32), kernel=5, hidden=(128, 64)
        )
    },
    "gnpe": {"symmetry": symmetric(kernel={"time": 0.1})},
    "canonical": {"symmetry": symmetric(by="canonical")},
    "gnpe_narrow": {"symmetry": symmetric(kernel={"time": 0.05})},
}
NARROW = PRIOR.replace({"tau": {"dist": "TruncatedNormal", "loc": 3.0, "scale": 0.015, "low": 1.0, "high": 6.0}})
RIGHT = SIMULATOR.symmetry["time"]
WRONG_SIGN = {"time": replace(RIGHT, spacing=-RIGHT.spacing)}
WRONG: dict[str, tuple[Prior, dict[str, Any]]] = {
    "uniform        right, exact              ": (PRIOR, {"declared": SIMULATOR.symmetry}),
    "uniform        wrong sign, exact         ": (PRIOR, {"declared": WRONG_SIGN}),
    "N(3, 0.015)    right, exact              ": (NARROW, {"declared": SIMULATOR.symmetry}),
    "N(3, 0.015)    right, exact: false       ": (NARROW, {"declared": SIMULATOR.symmetry, "exact": False}),
}


class Truth(NamedTuple):
    """The posterior of one observation; two log-evidences besides, of cells twice as wide and of weighted draws."""

    log_evidence: float
    coarse: float
    weighted: float
    draws: Float[np.ndarray, "draw parameter"]
    others: Float[np.ndarray, "draw parameter"]


def pairs(rows: int, seed: int, prior: Prior = PRIOR) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    theta = prior.sample(rows, rng)
    return theta, SIMULATOR.simulate(theta, rng)["x"]


def log_likelihood(theta: Float[np.ndarray, "row parameter"], x: Float[np.ndarray, " time"]) -> np.ndarray:
    """`DampedOscillator.log_likelihood` of one x, without what scipy checks."""
    parts = np.array_split(theta, max(1, len(theta) // _POINTS_AT_ONCE))
    square = np.concatenate([np.square(signal(part) - x).sum(1) for part in parts])
    return -0.5 * square / SIMULATOR.noise**2 - len(x) * math.log(math.sqrt(2 * math.pi) * SIMULATOR.noise)


class Grid(NamedTuple):
    """Middles of cells, their size, and log p(x | theta) p(theta) there."""

    points: Float[np.ndarray, "cell parameter"]
    size: Float[np.ndarray, " parameter"]
    log_joint: Float[np.ndarray, " cell"]

    @property
    def log_evidence(self) -> float:
        """By the midpoint rule."""
        largest = self.log_joint.max()
        total = np.exp(self.log_joint - largest).sum()
        return float(largest + np.log(total * self.size.prod()))

    def around(self) -> tuple[np.ndarray, np.ndarray]:
        """A box that holds the posterior, a cell wider than where it is seen."""
        seen = self.points[self.log_joint > self.log_joint.max() - FAR]
        return np.maximum(LOW, seen.min(0) - 1.5 * self.size), np.minimum(HIGH, seen.max(0) + 1.5 * self.size)


def log_joint(theta: Float[np.ndarray, "row parameter"], x: Float[np.ndarray, " time"], prior: Prior) -> np.ndarray:
    """log p(x | theta) p(theta)."""
    return log_likelihood(theta, x) + prior.log_prob(torch.from_numpy(theta)).numpy()


def grid(x: np.ndarray, low: np.ndarray, high: np.ndarray, cells: tuple[int, ...], prior: Prior) -> Grid:
    size = (high - low) / np.array(cells)
    axes = [start + step * (np.arange(n) + 0.5) for start, step, n in zip(low, size, cells, strict=True)]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    return Grid(points, size, log_joint(points, x, prior))


def truth(x: Float[np.ndarray, " time"], rng: np.random.Generator, prior: Prior = PRIOR) -> Truth:
    coarse = grid(x, LOW, HIGH, FIRST_CELLS, prior)
    for _ in range(FURTHER):
        box = coarse.around()
        coarse = grid(x, *box, (CELLS // 2,) * 3, prior)
    fine = grid(x, *box, (CELLS,) * 3, prior)
    probability = np.exp(fine.log_joint - fine.log_joint.max())
    chosen = rng.choice(len(probability), TRUTH, p=probability / probability.sum())
    theta = fine.points[chosen] + fine.size * rng.uniform(-0.5, 0.5, (TRUTH, 3))
    log_weights = log_joint(theta, x, prior) - fine.log_joint[chosen]
    picked = rng.permutation(systematic(log_weights, 2 * DRAWS, rng))
    weighted = fine.log_evidence + float(np.log(np.exp(log_weights).mean()))
    return Truth(fine.log_evidence, coarse.log_evidence, weighted, theta[picked[:DRAWS]], theta[picked[DRAWS:]])


def settings(how: dict[str, Any]) -> EstimatorSettings:
    flow = FlowSettings(kind="nsf", transforms=3, hidden=(64, 64))
    return EstimatorSettings(**({"flow": flow, "embedding": DENSE} | how))


def trained(how: dict[str, Any], rows: int, seed: int, prior: Prior = PRIOR) -> tuple[Any, float]:
    """The posterior, and the seconds that its training took."""
    theta, x = pairs(rows, seed, prior)
    started = time.process_time()  # of one thread: a busy machine changes it little
    model = simfer.train(theta, x, prior, estimator=settings(how), observables=SIMULATOR.observables, seed=seed)
    return model.posterior, time.process_time() - started


def weighted(posterior: Posterior, x: Float[np.ndarray, "observation time"]) -> list[Refined]:
    """Proposals for every observation, weighted by prior and likelihood."""
    theta, log_q = (values.numpy() for values in posterior.propose((PROPOSALS,), x, seed=1))
    found = []
    for k in range(len(x)):
        target = log_joint(theta[:, k], x[k], posterior.prior)
        found.append(summarised(theta[:, k], target, target - log_q[:, k]))
    return found


def show(*cells: str) -> None:
    widths = (13, 7, 16, 16, 7, 7, 9, 10, 8, 16, 8)
    print(" ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=False)), flush=True)


def mean(values: Any) -> str:
    return f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / math.sqrt(len(values)):.3f}"


def measure(method: str, rows: int, seed: int, x: np.ndarray, truths: list[Truth], few: int) -> None:
    posterior, seconds = trained(METHODS[method], rows, seed)
    show_measured(method, rows, seconds, posterior, x, truths, weighted(posterior, x), pairs(HELD_OUT, 10_001), few)


def show_measured(
    method: str,
    rows: int,
    seconds: float,
    posterior: Any,
    x: np.ndarray,
    truths: Sequence[Any],
    found: list[Refined],
    held_out: tuple[np.ndarray, np.ndarray],
    few: int,
) -> None:
    """One line of the table: draws at the first few observations, weights at all, the density at pairs held out."""
    draws = posterior.sample_batched((DRAWS,), x[:few], seed=2).numpy()
    chains = getattr(posterior, "diagnostics", None)
    share = np.array([one.efficiency for one in found])
    off = np.array([one.log_evidence - t.log_evidence for one, t in zip(found, truths, strict=True)])
    sds = np.abs(off) / np.array([one.log_evidence_sd for one in found])
    theta, held = held_out
    log_q = posterior.log_prob_batched(torch.from_numpy(theta)[None], held)[0].numpy()
    show(
        method,
        f"{rows:,}",
        mean([c2st(truths[k].draws, draws[:, k]) for k in range(few)]),
        mean(share),
        f"{np.median(share):.3f}",
        f"{share.min():.3f}",
        f"{(sds <= 3).sum()} of {len(x)}",
        f"{sds.max():.1f} sd",
        f"{np.abs(off).max():.3f}",
        mean(-log_q),
        f"{seconds:.0f}",
    )
    if chains:
        print(f"{'':14}{chains}", flush=True)


def table(methods: list[str], rows: list[int], observations: int, few: int, seed: int) -> None:
    _, x = pairs(observations, 10_000)
    started = time.perf_counter()
    truths = [truth(row, np.random.default_rng([3, k])) for k, row in enumerate(x)]
    coarse, weights = (max(abs(getattr(t, name) - t.log_evidence) for t in truths) for name in ("coarse", "weighted"))
    print(
        f"{observations} observations, C2ST at the first {few}; grids {time.perf_counter() - started:.0f} s, log-evidence of cells "
        f"twice as wide within {coarse:.2g}, of {TRUTH:,} weighted draws within {weights:.2g}"
    )
    show("method", "N", "C2ST", "efficiency", "median", "least", "evidence", "worst", "off", "-log q", "CPU s")
    show("truth", "", mean([c2st(t.draws, t.others) for t in truths[:few]]))
    for many in rows:
        for method in methods:
            measure(method, many, seed, x, truths, few)


def wrong(rows: int, observations: int, seed: int) -> None:
    print(
        f"{rows:,} simulations, {observations} observations; off: median of tau, in sd of the truth, root mean square"
    )
    cells = ("prior of tau", "declared", "efficiency", "least", "tails", "evidence", "off", "weighted, off")
    print("{:<14} {:<26} {:<16} {:<7} {:<9} {:<10} {:<7} {}".format(*cells))
    for name, (prior, how) in WRONG.items():
        _, x = pairs(observations, 10_000, prior)
        truths = [truth(row, np.random.default_rng([3, k]), prior) for k, row in enumerate(x)]
        posterior, _ = trained({"symmetry": SymmetrySettings(kernel={"time": 0.1}, **how)}, rows, seed, prior)
        draws = posterior.sample_batched((DRAWS,), x, seed=2).numpy()
        found = weighted(posterior, x)
        print(f"{name} {_told(found, draws, truths)}\n    {posterior.diagnostics}", flush=True)


def _told(found: list[Refined], draws: Float[np.ndarray, "draw observation parameter"], truths: list[Truth]) -> str:
    share = [one.efficiency for one in found]
    heavy = sum(one.pareto_k > LARGEST_PARETO_K for one in found)
    sds = [abs(one.log_evidence - t.log_evidence) / one.log_evidence_sd for one, t in zip(found, truths, strict=True)]
    rng = np.random.default_rng(0)
    resampled = [one.resample(DRAWS, rng)[0] for one in found]
    alone, after = (
        np.sqrt(np.mean([_off(given, t) ** 2 for given, t in zip(each, truths, strict=True)]))
        for each in (draws.swapaxes(0, 1), resampled)
    )
    evidence = f"{np.sum(np.array(sds) <= 3)} of {len(sds)}"
    return f"{mean(share):<16} {min(share):<7.4f} {heavy:<9} {evidence:<10} {alone:<7.2f} {after:.2f}"


def _off(draws: Float[np.ndarray, "draw parameter"], truth: Truth) -> float:
    return float((np.median(draws[:, 2]) - np.median(truth.draws[:, 2])) / truth.draws[:, 2].std())


class Clock:
    seconds = math.nan


@contextmanager
def clock() -> Iterator[Clock]:
    """Of one thread's CPU."""
    found, started = Clock(), time.process_time()
    yield found
    found.seconds = time.process_time() - started


def chains(x: Float[np.ndarray, " time"], draws: int) -> tuple[Tensor, int]:
    """Slice sampling with the true likelihood, from the best of draws of the prior; and how often it was evaluated."""
    evaluations = 0

    def log_density(z: Tensor, which: Tensor) -> Tensor:
        nonlocal evaluations
        evaluations += len(z)
        theta = PRIOR.from_unconstrained(z)
        target = torch.from_numpy(log_likelihood(theta.numpy(), x)) + PRIOR.log_prob(theta)
        return target - PRIOR.log_abs_det(theta, z)

    torch.manual_seed(0)
    start = PRIOR.to_unconstrained(torch.from_numpy(PRIOR.sample(1000, np.random.default_rng(0))))
    best = log_density(start, torch.zeros(len(start))).topk(CHAINS).indices
    states = slice_chains(log_density, start[best][None], draws=draws, warmup=30, thin=1).states
    return states[:, 0], evaluations


def cost(rows: int, observations: int, seed: int) -> None:
    _, x = pairs(observations, 10_000)
    plain, blurred = (trained(METHODS[method], rows, seed)[0] for method in ("npe", "gnpe"))

    def add(name: str, seconds: float, note: str = "") -> float:
        print(f"{name:44} {seconds:9.3f} s for each observation  {note}", flush=True)
        return seconds

    def of(ask: Callable[..., Any], draws: int, asked: np.ndarray) -> float:
        with clock() as spent:
            ask((draws,), asked, seed=3)
        return spent.seconds / len(asked)

    fastest = add(f"npe, {MANY_DRAWS:,} draws", of(plain.sample_batched, MANY_DRAWS, x))
    auto = add(f"gnpe, {MANY_DRAWS:,} draws, auto", of(blurred.sample_batched, MANY_DRAWS, x), str(blurred.diagnostics))
    for iterations in (10, 30):
        how = blurred.estimator.settings.symmetry.model_copy(update={"iterations": iterations})
        blurred.estimator.settings = blurred.estimator.settings.model_copy(update={"symmetry": how})
        name = f"gnpe, {MANY_DRAWS:,} draws, {iterations} iterations"
        add(name, of(blurred.sample_batched, MANY_DRAWS, x), str(blurred.diagnostics))
    for name, posterior in (("npe", plain), ("gnpe", blurred)):
        with clock() as spent:
            share = np.mean([one.efficiency for one in weighted(posterior, x)])
        seconds = spent.seconds / len(x) * MANY_DRAWS / (share * PROPOSALS)
        add(f"{name}, weighted, n_eff {MANY_DRAWS:,}", seconds, f"efficiency {share:.2f}")
    slow = []
    for k in range(BY_CHAINS):
        with clock() as spent:
            states, evaluations = chains(x[k], 200)
        ess, r_hat = float(bulk_ess(states).min()), float(split_r_hat(states).max())
        scaled = MANY_DRAWS / ess
        note = f"R-hat {r_hat:.3f}, {scaled * evaluations:,.0f} likelihoods"
        slow.append(add(f"slice sampling, true likelihood, ESS {MANY_DRAWS:,}", spent.seconds * scaled, note))
    per_likelihood = _seconds_of_likelihood(x[0])
    print(f"one likelihood {1e6 * per_likelihood:.1f} µs")
    ratios = [f"{np.mean(slow) / seconds:.2g} times {name}" for name, seconds in (("npe", fastest), ("gnpe", auto))]
    print(f"slice sampling takes {' and '.join(ratios)}")


def _seconds_of_likelihood(x: np.ndarray) -> float:
    theta = PRIOR.sample(20_000, np.random.default_rng(0))
    with clock() as spent:
        log_likelihood(theta, x)
    return spent.seconds / len(theta)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", type=int, default=[1000, 3000, 10_000])
    parser.add_argument("--methods", nargs="+", default=["npe", "augmentation", "cnn", "gnpe"], choices=METHODS)
    parser.add_argument("--observations", type=int, default=20)
    parser.add_argument("--compared", type=int, default=20, help="observations of which draws are compared by C2ST")
    parser.add_argument("--seed", type=int, default=0, help="of simulations and weights")
    parser.add_argument("--cost", action="store_true", help="time draws, after training with the most rows")
    parser.add_argument(
        "--wrong", action="store_true", help="a wrong symmetry, a prior that prefers poses; with the least rows"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.cost:
        cost(max(arguments.rows), arguments.observations, arguments.seed)
        return
    if arguments.wrong:
        wrong(min(arguments.rows), arguments.observations, arguments.seed)
        return
    few = min(arguments.compared, arguments.observations)
    table(arguments.methods, arguments.rows, arguments.observations, few, arguments.seed)


if __name__ == "__main__":
    main()
