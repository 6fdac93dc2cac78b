"""Embeddings from a configuration: context beside an image, and a network of the user's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import simfer
from simfer.data.errors import ModelFormatError
from simfer.pipelines.api import Run

NET = """
import torch

class Profile(torch.nn.Module):
    def __init__(self, shape, width=4):
        super().__init__()
        self.linear = torch.nn.Linear(sum(shape), width)

    def forward(self, image):
        return torch.tanh(self.linear(torch.cat([image.mean(1), image.mean(2)], 1)))
"""
YAML = """
simulator: point_source
context: {{psf_width: {{dist: Uniform, low: 0.8, high: 2.5, observed: 1.2}}}}
simulate: {{rows: 200}}
train:
  flow: {{kind: maf, transforms: 1, hidden: [8]}}
  embedding: {embedding}
  epochs: 1
diagnose: {{checks: [sbc], pairs: 20, draws: 20}}
"""


def ran(folder: Path, embedding: str) -> Run:
    (folder / "nets.py").write_text(NET)
    (folder / "c.yaml").write_text(YAML.format(embedding=embedding))
    return simfer.run(folder / "c.yaml", workdir=folder / "run", quiet=True)


def test_a_class_of_ones_own_goes_through_a_run_and_comes_back(tmp_path: Path) -> None:
    done = ran(tmp_path, "{kind: nets.py:Profile, arguments: {width: 3}, standardise: entry}")
    (network, past) = done.model.estimator.embedding.networks
    assert (network.features, past.features) == (3, 2)
    name = f"{tmp_path / 'nets.py'}:Profile"
    assert done.model.estimator.settings.embedding.model_dump()["kind"] == name
    assert simfer.load(tmp_path / "run").checks["sbc"].verdict in ("pass", "fail")
    with pytest.raises(ModelFormatError, match="imports nothing"):
        simfer.load(tmp_path / "run" / "model")
    model = simfer.load(tmp_path / "run" / "model", modules={"Profile": type(network.network)})
    for mine, theirs in zip(model.estimator.parameters(), done.model.estimator.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_context_joins_an_image_behind_its_network(tmp_path: Path) -> None:
    done = ran(tmp_path, "{kind: cnn2d, features: 5, hidden: [8], channels: [2, 3]}")
    assert done.model.estimator.embedding.features == 5 + 2
    assert set(done.summary["stages"]["train"]["transforms"]) == {"image", "psf_width", "background"}
    assert "auto" not in done.summary["stages"]["train"]["transforms"].values()
