"""The report: ``summary.json`` for machines and ``report.html``, one self-contained page, for people."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..data.errors import MissingFileError
from ..data.files import write_json, write_text
from ..data.results import read_tree
from ..data.variables import Variables
from ..diagnostics.attacks import AttackSet
from ..diagnostics.attacks.check import ask
from ..diagnostics.base import CheckResult
from ..diagnostics.calibration import CalibrationSet
from ..diagnostics.plots import plot_corner, plot_losses, plot_tradeoff
from ..diagnostics.predictive import predictive_check
from ..simulators.entries import arguments_text
from .folder import RunFolder
from .job import Job
from .stages import STAGES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_IN_CORNER = 12
# numbers with a place of their own in the summary: results, not counts and times
_APART = ("checks", "posterior", "amortised", "refine", "outside_training", "rounds")


def check_results(job: Job, folder: RunFolder) -> dict[str, CheckResult]:
    """Every check of a run, from the draws it stored."""
    results: dict[str, CheckResult] = {}
    if job.checks and (folder / "calibration.zarr").exists():
        calibration = CalibrationSet.load(folder / "calibration.zarr")
        attacked = AttackSet.load(folder / "attack.zarr") if (folder / "attack.zarr").exists() else None
        results = {check.name: ask(check, calibration, attacked) for check in job.checks}
    observables = Variables(job.observed[name] for name in job.simulator.observables.names)
    predictive = _predictive(observables, folder)
    return results | ({predictive.name: predictive} if predictive else {})


def _predictive(observables: Variables, folder: RunFolder) -> CheckResult | None:
    try:
        found = read_tree(folder / "posterior.zarr")
    except MissingFileError:
        return None
    if "posterior_predictive" not in found.children:
        return None
    replicates = {name: found["posterior_predictive"][name].to_numpy()[0] for name in observables.names}
    observed = {name: found["observed_data"][name].to_numpy() for name in observables.names}
    return predictive_check(replicates, observed, observables)


def write_summary(job: Job, folder: RunFolder) -> None:
    """The numbers of every stage and check."""
    markers = {name: marker for name in STAGES if (marker := folder.done(name))}
    checks = {name: c for marker in markers.values() for name, c in marker.numbers.get("checks", {}).items()}
    stages = {
        name: {
            "seconds": marker.seconds,
            **{k: v for k, v in marker.numbers.items() if k not in _APART},
        }
        for name, marker in markers.items()
    }
    apart = {key: marker.numbers[key] for marker in markers.values() for key in _APART if key in marker.numbers}
    refused = not apart.get("refine", {}).get("accepted", True)
    summary = {
        "name": job.config.name,
        "verdict": "fail" if refused or any(c["verdict"] == "fail" for c in checks.values()) else "pass",
        "stages": stages,
        "checks": checks,
        **{key: apart.get(key, {}) for key in _APART if key != "checks"},
    }
    write_json(folder / "summary.json", summary)


def write_report(job: Job, folder: RunFolder) -> None:
    """The page: verdicts in words, the posterior, every figure, provenance."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    page = environment.get_template("report.html.j2").render(
        summary=summary,
        units={v.name: v.units for v in job.prior.variables},
        prior=_prior_table(job),
        corner=_corner(job, folder),
        losses=_losses(folder),
        tradeoff=_tradeoff(folder),
        checks=[(result, _figure(_plotted(result))) for result in check_results(job, folder).values()],
        config=(folder / "config.yaml").read_text(encoding="utf-8"),
        provenance=json.loads((folder / "provenance.json").read_text(encoding="utf-8")),
    )
    write_text(folder / "report.html", page)


def _prior_table(job: Job) -> dict[str, str]:
    return {name: f"{item['dist']}({arguments_text(item)})" for name, item in job.prior.to_json().items()}


def _corner(job: Job, folder: RunFolder) -> str:
    if job.observation is None:
        return ""
    found = read_tree(folder / "posterior.zarr")
    shown = Variables(list(job.prior.variables)[:_MOST_IN_CORNER])
    posterior, prior = (
        np.stack([found[group][name].to_numpy()[0] for name in shown.names], axis=-1)
        for group in ("posterior", "prior")
    )
    return _figure(plot_corner(posterior, shown, prior=prior))


def _losses(folder: RunFolder) -> str:
    from ..data.model import read_model

    loss = read_model(folder / "model")[0]["facts"]["loss"]
    return _figure(plot_losses(loss["train"], loss["validation"]))


def _tradeoff(folder: RunFolder) -> str:
    from ..data.model import read_model

    fisher = read_model(folder / "model")[0]["facts"].get("fisher", {})
    return _figure(plot_tradeoff(fisher)) if "curve" in fisher else ""


def _plotted(result: CheckResult) -> Figure:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * result.panels, 3.2), layout="constrained")
    result.plot(figure.subplots())
    return figure


def _figure(figure: Figure) -> str:
    """A figure as the source of an ``img`` element."""
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def posterior_rows(summary: dict[str, Any]) -> list[tuple[str, ...]]:
    """The posterior table as text: parameter, mean, sd, median, 90 % interval."""
    return [
        (name, f"{row['mean']:.4g}", f"{row['sd']:.3g}", f"{row['median']:.4g}", f"{row['q05']:.4g} … {row['q95']:.4g}")
        for name, row in summary["posterior"].items()
    ]
