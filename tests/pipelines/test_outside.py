"""What a run says of an observation that is unlike its simulations, and its results for ArviZ."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import simfer
from simfer.pipelines.api import Run


@pytest.mark.slow
def test_an_observation_outside_the_training_data_is_said_in_all_places(
    tiny: dict[str, Any], finished: Run, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished.summary["outside_training"] == []
    assert "lies outside the training data" not in finished.report.read_text()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        run = simfer.run({**tiny, "observation": {"values": {"x": [5.0, 0.0]}}}, workdir=copy)
    (said,) = run.summary["outside_training"]
    assert said.startswith("`x[0]` is 5, trained on ")
    assert "infer: the observation lies outside the training data: `x[0]` is 5" in " ".join(
        capsys.readouterr().out.split()
    )
    assert "The observation lies outside the training data: `x[0]` is 5" in run.report.read_text()


def test_results_for_arviz(finished: Run) -> None:
    pytest.importorskip("arviz")
    data = finished.to_inference_data()
    names = list(data.posterior.data_vars)
    assert {"posterior", "prior", "posterior_predictive", "observed_data", "sample_stats"} <= set(data.groups())
    np.testing.assert_array_equal(data.posterior[names[0]].to_numpy()[0], finished.draws[:, 0].numpy())
