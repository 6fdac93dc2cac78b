"""Exported programs: the same numbers as the posterior, in a process that can import neither simfer nor zuko."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import simfer
from simfer.data.errors import ConfigError, StoreError, UnsupportedError
from simfer.estimators.model import Model, build_estimator
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings
from simfer.estimators.validity import _Logit
from simfer.simulators.prior import Prior

PRIOR = Prior(
    {
        "rate": {"dist": "LogUniform", "low": 0.1, "high": 10.0},
        "a, b": {"dist": "MultivariateNormal", "loc": [0.0, 1.0], "covariance_matrix": [[1.0, 0.3], [0.3, 0.5]]},
    },
    units={"rate": "1/d"},
)
OBSERVABLES = simfer.Variables([simfer.Variable("y", (2, 2)), simfer.Variable("n")])
FLOWS = {
    "nsf": FlowSettings(kind="nsf", transforms=1, hidden=(8,), bins=4),
    "maf": FlowSettings(kind="maf", transforms=2, hidden=(8,)),
    "gmm": FlowSettings(kind="gmm", components=3, hidden=(8,)),
}
ELSEWHERE = """
import sys
sys.modules["simfer"] = sys.modules["zuko"] = None  # an import of either raises
import torch
for folder in sys.argv[1:]:
    given = torch.load(f"{folder}/given.pt", weights_only=True)
    got = {}
    sampler, log_prob = (torch.export.load(f"{folder}/{name}.pt2").module() for name in ("sampler", "log_prob"))
    for n, b in ((7, 5), (1, 1), (1, 5), (7, 1)):
        x = {name: values[:b] for name, values in given["x"].items()}
        noise = given["noise"][:n, :b]
        theta, lp = sampler(x, noise)
        got[f"{n} {b}"] = {"theta": theta, "lp": lp, "again": log_prob(x, theta)}
    torch.save(got, f"{folder}/got.pt")
"""


def untrained(kind: str, prior: Prior = PRIOR) -> Model:
    settings = EstimatorSettings(
        flow=FLOWS[kind], embedding=EmbeddingSettings(features=4, hidden=(8,)), transforms={"n": "log1p"}, whiten=True
    )
    return Model(build_estimator(prior, OBSERVABLES, settings, seed=1).eval(), prior)


@pytest.mark.slow
def test_programs_give_what_the_posterior_gives_without_simfer(tmp_path: Path) -> None:
    """Of every density: theta in the support, its log density, for any number of draws and observations."""
    generator = torch.Generator().manual_seed(0)
    x = {"y": torch.randn(5, 2, 2, generator=generator), "n": torch.rand(5, generator=generator) * 20}
    for kind in FLOWS:
        (tmp_path / kind).mkdir()
        model = untrained(kind)
        model.export(tmp_path / kind / "sampler.pt2")
        model.export(tmp_path / kind / "log_prob.pt2", "log_prob")
        noise = torch.randn(7, 5, 4 if kind == "gmm" else 3, generator=generator)
        torch.save({"x": x, "noise": noise}, tmp_path / kind / "given.pt")
    subprocess.run([sys.executable, "-c", ELSEWHERE, *(str(tmp_path / kind) for kind in FLOWS)], check=True)
    for kind in FLOWS:
        posterior = untrained(kind).posterior
        for sizes, got in torch.load(tmp_path / kind / "got.pt", weights_only=True).items():
            n, b = map(int, sizes.split())
            assert got["theta"].shape == (n, b, 3)
            assert got["theta"].dtype == torch.float64
            assert PRIOR.contains(got["theta"]).all()
            ours = posterior.log_prob_batched(got["theta"], {name: values[:b] for name, values in x.items()})
            torch.testing.assert_close(got["again"], ours, atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(got["lp"], ours, atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_noise_becomes_draws_of_the_posterior(tmp_path: Path) -> None:
    """A mixture's extra number chooses the component; means and covariances are those of its own draws."""
    model = untrained("gmm")
    model.export(tmp_path / "sampler.pt2")
    files = {"simfer.json": ""}
    program = torch.export.load(tmp_path / "sampler.pt2", extra_files=files).module()
    said = json.loads(files["simfer.json"])
    assert [p["name"] for p in said["parameters"]] == ["rate", "a", "b"]
    assert said["parameters"][0]["units"] == "1/d"
    assert said["x"] == [{"name": "y", "shape": [2, 2], "units": ""}, {"name": "n", "shape": [], "units": ""}]
    x = {"y": torch.ones(1, 2, 2), "n": torch.ones(1)}
    noise = torch.randn(20_000, 1, said["noise"], generator=torch.Generator().manual_seed(0))
    z, ours = (PRIOR.to_unconstrained(t) for t in (program(x, noise)[0], model.posterior.sample_batched((20_000,), x)))
    assert ((z.mean(0) - ours.mean(0)).abs() < 5 * ours.std(0) / 100).all()
    torch.testing.assert_close(z[:, 0].T.cov(), ours[:, 0].T.cov(), atol=0.1, rtol=0.1)


def test_quantiles_from_scipy_are_refused_by_name(tmp_path: Path) -> None:
    prior = Prior(
        {"k": {"dist": "Gamma", "concentration": 2.0, "rate": 1.0}, "a": {"dist": "Normal", "loc": 0, "scale": 1}}
    )
    with pytest.raises(UnsupportedError, match=r"those of `k` \(Gamma\) come from scipy"):
        untrained("maf", prior).export(tmp_path / "out.pt2")


def test_what_is_no_density_of_theta_is_refused(tmp_path: Path) -> None:
    model = Model(_Logit(PRIOR, OBSERVABLES, EstimatorSettings(method="logit")), PRIOR)
    with pytest.raises(UnsupportedError, match="needs a density of theta given x; `logit` has none"):
        model.export(tmp_path / "out.pt2")


def test_continuous_flows_are_refused_by_name(tmp_path: Path) -> None:
    import zuko

    model = untrained("maf")
    model.estimator.flow = zuko.flows.CNF(3, 4, hidden_features=(8,))
    with pytest.raises(
        UnsupportedError, match="needs one flow of one pass, or one mixture; `maf` gives a NormalizingFlow: use"
    ):
        model.export(tmp_path / "out.pt2")


def test_bad_calls_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`what`: unknown `samples`; did you mean `sampler`"):
        untrained("maf").export(tmp_path / "out.pt2", "samples")
    with pytest.raises(ConfigError, match=r"must end in \.pt2"):
        untrained("maf").export(tmp_path / "out.onnx")
    (tmp_path / "out.pt2").touch()
    with pytest.raises(StoreError, match="must be free"):
        untrained("maf").export(tmp_path / "out.pt2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.pt2"]
