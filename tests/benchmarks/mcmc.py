"""Markov chains on learned likelihoods: draws per second and R-hat beside sbi's default; many observations beside exact.

python tests/benchmarks/mcmc.py [--rows 10000] [--draws 10000] [--sbi-draws 1000] [--pairs 1000] [--only independent] [--flow maf]
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import numpy as np
import torch
from sbi.inference.posteriors import MCMCPosterior as SbiPosterior

import simfer
from simfer.estimators.convergence import bulk_ess, split_r_hat
from simfer.estimators.mcmc import MCMCPosterior
from simfer.estimators.settings import EstimatorSettings, FlowSettings
from simfer.simulators.gaussian_linear import VARIANCE, GaussianLinear
from simfer.simulators.slcp import SLCP
from simfer.simulators.two_moons import TwoMoons


def trained(simulator: Any, rows: int, flow: str = "nsf") -> MCMCPosterior:
    """With the defaults, but for the flow."""
    rng = np.random.default_rng(0)
    theta = simulator.prior.sample(rows, rng)
    model = simfer.train(
        theta,
        simulator.simulate(theta, rng),
        simulator.prior,
        estimator=EstimatorSettings(method="nle", flow=FlowSettings.model_validate({"kind": flow})),
    )
    assert isinstance(model.posterior, MCMCPosterior)
    return model.posterior


def line(name: str, draws: int, seconds: float, r_hat: float, ess: float) -> None:
    print(
        f"{name:34} {draws:7,} {seconds:8.1f} {draws / seconds:9.0f} {ess:9.0f} {ess / seconds:9.0f} {r_hat:7.3f}",
        flush=True,
    )


def ours(name: str, posterior: MCMCPosterior, x: Any, draws: int) -> torch.Tensor:
    started = time.perf_counter()
    found = posterior.sample((draws,), x, seed=1)
    seconds, report = time.perf_counter() - started, posterior.diagnostics
    assert report is not None
    line(f"{name}, simfer", draws, seconds, float(report.r_hat.max()), float(report.ess.min()))
    return found


def sbis(name: str, posterior: MCMCPosterior, x: Any, draws: int) -> torch.Tensor:
    """sbi's posterior with its default sampler over our potential."""
    potential = posterior._potential(posterior._trials(x))

    def of_theta(theta: torch.Tensor, x_o: torch.Tensor, track_gradients: bool = False) -> torch.Tensor:
        with torch.no_grad():
            return potential.log_prob(theta.double()[:, None])[:, 0].float()

    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002 - sbi draws from it
    theirs = SbiPosterior(of_theta, proposal=posterior.prior.torch, theta_transform=None)
    theirs.set_default_x(torch.as_tensor(x).float())
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = theirs.sample((draws,), show_progress_bars=False)
    seconds = time.perf_counter() - started
    chains = torch.as_tensor(theirs.posterior_sampler.get_samples(group_by_chain=True)).double()
    kept = chains[:, -(draws // len(chains)) :].transpose(0, 1)
    line(f"{name}, sbi's default", draws, seconds, float(split_r_hat(kept).max()), float(bulk_ess(kept).min()))
    return found


def many(name: str, posterior: MCMCPosterior, simulator: Any, pairs: int, draws: int = 500) -> None:
    rng = np.random.default_rng(2)
    x = simulator.simulate(simulator.prior.sample(pairs, rng), rng)
    started = time.perf_counter()
    posterior.sample_batched((draws,), x, seed=1)
    print(
        f"{name}, {pairs:,} observations × {draws}: {time.perf_counter() - started:.1f} s; {posterior.diagnostics}",
        flush=True,
    )


def independent(rows: int, draws: int, flow: str) -> None:
    """The mean of x | theta is known from n rows within about sd √(11 / n) in each of ten directions, at best."""
    simulator = GaussianLinear()
    posterior = trained(simulator, rows, flow)
    rng = np.random.default_rng(3)
    theta = simulator.prior.sample(1, rng)
    print(
        f"\ngaussian_linear: {'trials':>6} {'|mean shift| / sd, rms, max':>26} {'sd ratios':>14} {'R-hat':>7} {'seconds':>8} {'rows limit, sd':>14}"
    )
    for trials in (1, 10, 100):
        best = (11 / rows * VARIANCE) ** 0.5 / (VARIANCE / (trials + 1)) ** 0.5
        x = simulator.simulate(np.repeat(theta, trials, 0), rng)["x"]
        found = posterior.sample((draws,), x, seed=1)
        sd = (VARIANCE / (trials + 1)) ** 0.5
        shift = (found.mean(0) - torch.from_numpy(x.sum(0) / (trials + 1))).abs() / sd
        ratio = found.std(0) / sd
        report = posterior.diagnostics
        assert report is not None
        print(
            f"{'':17}{trials:5d} {shift.square().mean().sqrt():20.3f} {shift.max():5.3f} {ratio.min():6.3f} – {ratio.max():5.3f} "
            f"{report.r_hat.max():7.3f} {report.seconds:8.1f} {best:14.3f}",
            flush=True,
        )


def chains(arguments: argparse.Namespace) -> None:
    print(f"{'':34} {'draws':>7} {'seconds':>8} {'draws / s':>9} {'ESS':>9} {'ESS / s':>9} {'R-hat':>7}")
    for simulator in (TwoMoons(), SLCP()):
        name = type(simulator).__name__
        posterior = trained(simulator, arguments.rows, arguments.flow)
        x = np.array(simulator.observations["observation_1"]["x"])
        first = ours(name, posterior, x, arguments.draws)
        second = sbis(name, posterior, x, arguments.sbi_draws)
        gap = ((first.mean(0) - second.mean(0)).abs() / first.std(0)).max()
        print(f"{'':34} means differ by {gap:.2f} sd at most; sd ratios {second.std(0) / first.std(0)}")
        many(name, posterior, simulator, arguments.pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 10_000), ("draws", 10_000), ("sbi-draws", 1000), ("pairs", 1000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--flow", default="nsf")
    parser.add_argument("--only", choices=["independent"], help="independent observations of gaussian_linear")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if not arguments.only:
        chains(arguments)
    independent(arguments.rows, arguments.draws, arguments.flow)


if __name__ == "__main__":
    main()
