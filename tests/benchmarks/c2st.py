"""C2ST on the ten tasks of the SBI benchmark, beside sbi 0.27 on the same simulations and beside the published figures.

Every estimator is trained with its defaults on the same rows, one thread; 10,000 draws at each of the observations 1-5 are
compared with the benchmark's reference draws in its own protocol (scikit-learn's classifier, both sets z-scored by the
reference). ``exact`` compares the halves of the reference draws with each other. Draws and figures are kept in FOLDER as
they are made, and what is there is not made again: C2ST alone takes up to three minutes an observation.

python tests/benchmarks/c2st.py FOLDER [--methods npe sbi] [--tasks slcp] [--observations 5] [--package UNPACKED sbibm]
"""

from __future__ import annotations

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sbi.inference import NPE
from sbi.inference.posteriors import DirectPosterior
from sbibm_tasks import TASKS, reference_draws, unpacked  # type: ignore[import-not-found]  # beside this script
from sklearn.model_selection import KFold, cross_val_score
from sklearn.neural_network import MLPClassifier

import simfer
from simfer.estimators.settings import EstimatorSettings
from simfer.simulators import benchmark
from simfer.simulators.campaign import Reference

DRAWS, HELD_OUT = 10_000, 1000
PUBLISHED = Path(__file__).with_name("sbibm_published_c2st.csv")
COLUMNS = ("task", "method", "rows", "observation", "c2st", "held_out", "train_s", "sample_s")

Sampler = Callable[[np.ndarray], np.ndarray]
LogProb = Callable[[np.ndarray, np.ndarray], np.ndarray]


def simfers(method: str, simulator: Any, theta: np.ndarray, x: np.ndarray) -> tuple[Sampler, LogProb]:
    posterior = simfer.train(theta, x, simulator.prior, estimator=EstimatorSettings(method=method)).posterior

    def log_prob(at: np.ndarray, given: np.ndarray) -> np.ndarray:
        return posterior.log_prob_batched(torch.from_numpy(at)[None], given)[0].numpy()

    return lambda observed: posterior.sample((DRAWS,), observed, seed=1).numpy(), log_prob


def sbis(simulator: Any, theta: np.ndarray, x: np.ndarray) -> tuple[Sampler, LogProb]:
    torch.manual_seed(1)
    trainer = NPE(simulator.prior.torch, density_estimator="nsf", show_progress_bars=False)
    density = trainer.append_simulations(*(torch.from_numpy(part).float() for part in (theta, x))).train()
    posterior = DirectPosterior(density, simulator.prior.torch)

    def log_prob(at: np.ndarray, given: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            pair = [torch.from_numpy(part).float() for part in (at[None], given)]
            return density.log_prob(*pair)[0].numpy()

    def sample(observed: np.ndarray) -> np.ndarray:
        return posterior.sample((DRAWS,), torch.from_numpy(observed).float(), show_progress_bars=False).numpy()

    return sample, log_prob


def draw(task: str, method: str, rows: int, observations: int, file: Path) -> None:
    """Train, draw at every observation and keep the draws."""
    simulator: Any = Reference(task).load()
    rng = np.random.default_rng(2024)
    theta = simulator.prior.sample(rows + HELD_OUT, rng)
    x = simulator.simulate(theta, rng)["x"]
    good = np.isfinite(x).all(1)
    learn, held = good & (np.arange(len(x)) < rows), good & (np.arange(len(x)) >= rows)
    started = time.perf_counter()
    how = sbis if method == "sbi" else lambda *args: simfers(method, *args)
    sample, log_prob = how(simulator, theta[learn], x[learn])
    trained = time.perf_counter()
    shipped = benchmark.observations(task)
    draws = [sample(np.array(shipped[f"observation_{k}"]["x"])[None]) for k in range(1, observations + 1)]
    sampled = time.perf_counter()
    facts = [log_prob(theta[held], x[held]).mean(), trained - started, (sampled - trained) / observations]
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, draws=np.stack(draws), facts=facts)
    partial.rename(file)


def c2st(reference: np.ndarray, draws: np.ndarray) -> float:
    """In the benchmark's protocol."""
    mean, sd, d = reference.mean(0), reference.std(0), reference.shape[1]
    both = (np.concatenate([reference, draws]) - mean) / sd
    label = np.repeat([0, 1], [len(reference), len(draws)])
    network = MLPClassifier(hidden_layer_sizes=(10 * d, 10 * d), max_iter=10_000, random_state=1)
    folds = KFold(5, shuffle=True, random_state=1)
    return float(cross_val_score(network, both, label, cv=folds, scoring="accuracy").mean())


def measured(folder: Path) -> dict[tuple[str, str, int, int], dict[str, str]]:
    file = folder / "c2st.csv"
    if not file.exists():
        return {}
    with file.open() as lines:
        return {(r["task"], r["method"], int(r["rows"]), int(r["observation"])): r for r in csv.DictReader(lines)}


def add(folder: Path, row: dict[str, Any]) -> None:
    file = folder / "c2st.csv"
    new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.DictWriter(out, COLUMNS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def compared(task: str, method: str, arguments: argparse.Namespace, package: Path) -> Iterator[dict[str, Any]]:
    """One row of the table an observation, as far as they are not there."""
    done, rows = measured(arguments.folder), arguments.rows
    todo = [k for k in range(1, arguments.observations + 1) if (task, method, rows, k) not in done]
    file = arguments.folder / f"{task}-{method}-{rows}.npz"
    if todo and method != "exact" and not file.exists():
        draw(task, method, rows, 5, file)
    for k in todo:
        reference = reference_draws(package, task, k)
        facts: dict[str, Any] = {}
        if method == "exact":
            halves = reference[: len(reference) // 2], reference[len(reference) // 2 :]
        else:
            with np.load(file) as kept:
                halves = reference, kept["draws"][k - 1]
                facts = dict(zip(("held_out", "train_s", "sample_s"), kept["facts"].round(3).tolist(), strict=True))
        value = round(c2st(*halves), 4)
        yield {"task": task, "method": method, "rows": rows, "observation": k, "c2st": value, **facts}


def table(folder: Path, rows: int) -> str:
    """Means over the observations, and the published ones."""
    found: dict[tuple[str, str], list[float]] = {}
    for (task, method, n, _), row in measured(folder).items():
        if n == rows:
            found.setdefault((task, method), []).append(float(row["c2st"]))
    methods = sorted({method for _, method in found})
    with PUBLISHED.open() as lines:
        published = {row["task"]: row for row in csv.DictReader(lines) if int(row["num_simulations"]) == rows}
    lines_ = [f"{'task':24}" + "".join(f"{name:>10}" for name in [*methods, "publ. NPE", "amortised"])]
    for task in TASKS:
        ours = [np.mean(found[task, name]) if (task, name) in found else np.nan for name in methods]
        theirs = [float(published[task]["NPE"]), min(float(published[task][name]) for name in ("NPE", "NLE", "NRE"))]
        lines_.append(f"{task:24}" + "".join(f"{value:10.3f}" for value in [*ours, *theirs]))
    return "\n".join(lines_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--methods", nargs="+", default=["npe", "sbi", "exact"])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--observations", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--package", type=Path, help="the unpacked package sbibm; downloaded when not given")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    with unpacked(arguments.package) as package:
        for task in arguments.tasks:
            for method in arguments.methods:
                for row in compared(task, method, arguments, package):
                    add(arguments.folder, row)
                    print(*row.values(), flush=True)
    print(table(arguments.folder, arguments.rows))


if __name__ == "__main__":
    main()
