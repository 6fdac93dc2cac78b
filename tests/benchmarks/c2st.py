"""C2ST on the ten tasks of the SBI benchmark, beside sbi 0.27 on the same simulations and beside the published figures.

Every estimator is trained with its defaults on the same rows, one thread; 10,000 draws at each of the observations 1-5 are
compared with the benchmark's reference draws in its own protocol. ``exact`` compares the halves of the reference draws with
each other. ``best`` is, task by task, the one of ours with the largest log density of the true parameters of 200 held-out
rows; that of a likelihood is normalised by importance sampling from npe's posterior. Draws and figures are kept in FOLDER
as they are made, and what is there is not made again; ``c2st_results.csv`` has what was measured last. The classifier is
`c2st_fast`, three times as fast as scikit-learn's and the same within .003.

python tests/benchmarks/c2st.py [FOLDER] [--methods npe sbi] [--tasks slcp] [--jobs 2] [--package UNPACKED sbibm]
python tests/benchmarks/c2st.py [FOLDER] --table [--rows 10000]
"""

from __future__ import annotations

import argparse
import csv
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from c2st_fast import c2st  # type: ignore[import-not-found]  # beside this script
from sbi.inference import NPE
from sbi.inference.posteriors import DirectPosterior
from sbibm_tasks import TASKS, reference_draws, unpacked  # type: ignore[import-not-found]

import simfer
from simfer.estimators.settings import EstimatorSettings
from simfer.simulators import benchmark
from simfer.simulators.campaign import Reference

DRAWS, HELD_OUT, PROPOSALS = 10_000, 200, 1000
PUBLISHED = Path(__file__).with_name("sbibm_published_c2st.csv")
COLUMNS = ("task", "method", "rows", "observation", "c2st")
FACTS = ("held_out", "train_s", "sample_s")
OURS = {name: EstimatorSettings(method=name) for name in ("npe", "nle", "fmpe", "nre")}
METHODS = (*OURS, "sbi")

Sampler = Callable[[np.ndarray], np.ndarray]
LogProb = Callable[[np.ndarray, np.ndarray], np.ndarray]


class Cell(NamedTuple):
    """One entry of the table, before the mean over observations."""

    task: str
    method: str
    rows: int
    observation: int


class Simulations(NamedTuple):
    """Of which ``held`` are not for learning."""

    simulator: Any
    theta: np.ndarray
    x: np.ndarray
    held: tuple[np.ndarray, np.ndarray]


def simulations(task: str, rows: int) -> Simulations:
    simulator: Any = Reference(task).load()
    rng = np.random.default_rng(2024)
    theta = simulator.prior.sample(rows + 5 * HELD_OUT, rng)
    x = simulator.simulate(theta, rng)["x"]
    good, learn = np.isfinite(x).all(1), np.arange(len(x)) < rows
    held = np.flatnonzero(good & ~learn)[:HELD_OUT]
    return Simulations(simulator, theta[good & learn], x[good & learn], (theta[held], x[held]))


def simfers(method: str, seen: Simulations, folder: Path) -> tuple[Sampler, LogProb | None]:
    model = simfer.train(
        seen.theta, seen.x, seen.simulator.prior, estimator=OURS[method], observables=seen.simulator.observables
    )
    model.save(folder)
    posterior = model.posterior

    def log_prob(theta: np.ndarray, x: np.ndarray) -> np.ndarray:
        return posterior.log_prob_batched(torch.from_numpy(theta)[None], x)[0].numpy()

    def sample(observed: np.ndarray) -> np.ndarray:
        return posterior.sample((DRAWS,), observed, seed=1).numpy()

    return sample, log_prob if posterior.normalised else None


def normalised_log_prob(likelihood: Path, proposal: Path, theta: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Of a posterior by Markov chains, from draws of one that is a density.

    The true theta counts among the draws, so that the normalisation is rather overestimated: no flattery where q is narrow.
    """
    target, q = (simfer.load(folder).posterior for folder in (likelihood, proposal))
    found = []
    for at, given in zip(np.array_split(theta, 10), np.array_split(x, 10), strict=True):
        points = torch.cat([torch.from_numpy(at)[None], q.sample_batched((PROPOSALS,), given, seed=1)])
        log_p, log_q = (density.log_prob_batched(points, given) for density in (target, q))
        found.append(log_p[0] - torch.logsumexp(log_p - log_q, 0) + np.log(len(points)))
    return torch.cat(found).numpy()


def sbis(seen: Simulations) -> tuple[Sampler, LogProb]:
    torch.manual_seed(1)
    prior = seen.simulator.prior.torch
    trainer = NPE(prior, density_estimator="nsf", show_progress_bars=False)
    density = trainer.append_simulations(*(torch.from_numpy(part).float() for part in (seen.theta, seen.x))).train()
    posterior = DirectPosterior(density, prior)

    def log_prob(at: np.ndarray, given: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            pair = [torch.from_numpy(part).float() for part in (at[None], given)]
            return density.log_prob(*pair)[0].numpy()

    def sample(observed: np.ndarray) -> np.ndarray:
        return posterior.sample((DRAWS,), torch.from_numpy(observed).float(), show_progress_bars=False).numpy()

    return sample, log_prob


def draw(task: str, method: str, rows: int, file: Path) -> str:
    """Train, draw at every observation and keep the draws."""
    torch.set_num_threads(1)
    seen, started = simulations(task, rows), time.perf_counter()
    sample, log_prob = sbis(seen) if method == "sbi" else simfers(method, seen, file.with_suffix(""))
    trained = time.perf_counter()
    shipped = benchmark.observations(task)
    draws = [sample(np.array(shipped[f"observation_{k}"]["x"])[None]) for k in range(1, 6)]
    facts = {"train_s": trained - started, "sample_s": (time.perf_counter() - trained) / len(draws)}
    facts["held_out"] = float(log_prob(*seen.held).mean()) if log_prob else np.nan
    partial = file.with_suffix(".partial.npz")
    np.savez(partial, draws=np.stack(draws).astype(np.float32), **facts)
    partial.rename(file)
    return f"{file.stem}: " + ", ".join(f"{name} {value:.3g}" for name, value in facts.items())


def draw_all(folder: Path, cells: Iterable[Cell], jobs: int) -> None:
    """Each in a process of its own, those that take longest first."""
    files = dict.fromkeys((cell.task, cell.method, cell.rows) for cell in cells if cell.method != "exact")
    todo = [(*key, file) for key in files if not (file := folder / f"{'-'.join(map(str, key))}.npz").exists()]
    todo.sort(key=lambda key: (key[1] in ("nle", "nre"), key[1] == "sbi"), reverse=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, max_tasks_per_child=1) as pool:
        for done in as_completed([pool.submit(draw, *arguments) for arguments in todo]):
            print(done.exception() or done.result(), flush=True)


def pair(cell: Cell, folder: Path, package: Path) -> tuple[np.ndarray, np.ndarray]:
    """What C2ST compares."""
    reference = reference_draws(package, cell.task, cell.observation)
    if cell.method == "exact":
        return reference[: len(reference) // 2], reference[len(reference) // 2 :]
    with np.load(folder / f"{cell.task}-{cell.method}-{cell.rows}.npz") as kept:
        return reference, kept["draws"][cell.observation - 1]


def measured(folder: Path) -> dict[Cell, float]:
    file = folder / "c2st.csv"
    if not file.exists():
        return {}
    with file.open() as lines:
        return {
            Cell(row["task"], row["method"], int(row["rows"]), int(row["observation"])): float(row["c2st"])
            for row in csv.DictReader(lines)
        }


def add(folder: Path, cell: Cell, value: float) -> None:
    file = folder / "c2st.csv"
    new = not file.exists()
    with file.open("a", newline="") as out:
        writer = csv.writer(out)
        if new:
            writer.writerow(COLUMNS)
        writer.writerow([*cell, round(value, 4)])
    print(*cell, round(value, 4), flush=True)


def known(folder: Path) -> dict[str, dict[str, str]]:
    """Facts of the trainings by the stem of their file."""
    file = folder / "facts.csv"
    if not file.exists():
        return {}
    with file.open() as lines:
        return {row["training"]: row for row in csv.DictReader(lines)}


def note_facts(folder: Path) -> None:
    """Held-out log density and seconds of every training that is there."""
    facts: dict[str, Any] = known(folder)
    for file in sorted(folder.glob("*-*-*.npz")):
        task, _, rows = file.stem.split("-")
        if file.stem in facts or "partial" in file.name:
            continue
        with np.load(file) as kept:
            row = {name: float(kept[name]) for name in FACTS}
        npe = folder / f"{task}-npe-{rows}"
        if np.isnan(row["held_out"]) and npe.exists():
            held = simulations(task, int(rows)).held
            row["held_out"] = float(normalised_log_prob(file.with_suffix(""), npe, *held).mean())
        if not np.isnan(row["held_out"]):
            facts[file.stem] = {"training": file.stem, **{name: round(value, 3) for name, value in row.items()}}
    with (folder / "facts.csv").open("w", newline="") as out:
        writer = csv.DictWriter(out, ("training", *FACTS))
        writer.writeheader()
        writer.writerows(facts.values())


def best(folder: Path, task: str, rows: int) -> str:
    """The method of ours with the largest held-out log density."""
    facts = known(folder)
    of = {name: float(facts[key]["held_out"]) for name in OURS if (key := f"{task}-{name}-{rows}") in facts}
    return max(of, key=lambda name: of[name]) if of else ""


def table(folder: Path, rows: int) -> str:
    """Means over the observations, and the published ones."""
    found: dict[tuple[str, str], list[float]] = {}
    for cell, value in measured(folder).items():
        if cell.rows == rows:
            found.setdefault((cell.task, cell.method), []).append(value)
    methods = sorted({method for _, method in found})
    with PUBLISHED.open() as lines:
        published = {row["task"]: row for row in csv.DictReader(lines) if int(row["num_simulations"]) == rows}
    lines_ = [f"{'task':24}" + "".join(f"{name:>10}" for name in [*methods, "best", "publ. NPE", "amortised"])]
    for task in TASKS:
        chosen = best(folder, task, rows)
        ours = [np.mean(found.get((task, name), [np.nan])) for name in [*methods, chosen]]
        theirs = [float(published.get(task, {}).get(name, "nan")) for name in ("NPE", "NLE", "NRE")]
        lines_.append(
            f"{task:24}" + "".join(f"{value:10.3f}" for value in [*ours, theirs[0], min(theirs)]) + f"  {chosen}"
        )
    return "\n".join(lines_)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/c2st"))
    parser.add_argument("--methods", nargs="+", default=["npe", "sbi", "exact"], choices=[*METHODS, "exact"])
    parser.add_argument("--tasks", nargs="+", default=TASKS)
    parser.add_argument("--observations", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once")
    parser.add_argument("--package", type=Path, help="the unpacked package sbibm; downloaded when not given")
    parser.add_argument("--draw", action="store_true", help="train and draw only")
    parser.add_argument("--score", action="store_true", help="score what was drawn, train nothing")
    parser.add_argument("--table", action="store_true", help="print what is there")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    folder: Path = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if not arguments.table:
        seen = range(1, arguments.observations + 1)
        wanted = [Cell(t, m, arguments.rows, k) for t in arguments.tasks for m in arguments.methods for k in seen]
        cells = [cell for cell in wanted if cell not in measured(folder)]
        if not arguments.score:
            draw_all(folder, cells, arguments.jobs)
        drawn = [c for c in cells if c.method == "exact" or (folder / f"{c.task}-{c.method}-{c.rows}.npz").exists()]
        if not arguments.draw:
            with unpacked(arguments.package) as package:
                for cell in drawn:
                    add(folder, cell, c2st(*pair(cell, folder, package)))
        note_facts(folder)
    print(table(folder, arguments.rows))


if __name__ == "__main__":
    main()
