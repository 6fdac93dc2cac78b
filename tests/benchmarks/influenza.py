"""The demo's posterior against the exact one, for several root seeds: how much is luck of simulations and weights.

For each parameter: (median − reference median) / reference sd, of the network alone and of its draws refined by the
likelihood, which are the recipe's result, and the width of their central 80 % interval over the reference's. Everything
but the seed is the recipe's. Prints one table.

    python tests/benchmarks/influenza.py [--seeds 1 2 3]
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

import simfer
from simfer.pipelines.yaml_file import read_source

REFERENCE = Path(__file__).parents[1] / "reference" / "influenza_1978_reference.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[])
    recipe = read_source("influenza_1978")
    seeds = parser.parse_args().seeds or [recipe.values["seed"]]
    with np.load(REFERENCE) as file:
        exact = np.asarray(file["samples"], dtype=float)
    print(
        f"{'seed':>4} {'network off by, sd':>24} {'refined off by, sd':>24} {'80 % width, ratio':>24} {'ESS':>7} "
        f"{'val. loss':>10} {'train, s':>9}  checks failed"
    )
    for seed in seeds:
        with tempfile.TemporaryDirectory() as folder:
            overrides = {"seed": seed, "local.executor": "inline"}
            run = simfer.run("influenza_1978", workdir=folder, overrides=overrides, quiet=True)
            draws, summary = run.draws.numpy(), run.summary
        amortised = np.array([row["median"] for row in summary["amortised"].values()])
        medians = (amortised, np.median(draws, 0))
        alone, refined = ((median - np.median(exact, 0)) / exact.std(0) for median in medians)
        ours, theirs = (np.diff(np.quantile(d, [0.1, 0.9], axis=0), axis=0)[0] for d in (draws, exact))
        stage = summary["stages"]["train"]
        failed = [name for name, check in summary["checks"].items() if check["verdict"] == "fail"]
        numbers = " ".join(f"{value:7.3f}" for value in [*alone, *refined, *(ours / theirs)])
        print(
            f"{seed:4} {numbers} {summary['refine']['ess']:7.0f} {stage['validation_loss']:10.3f} {stage['seconds']:9.0f}  {', '.join(failed) or 'none'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
