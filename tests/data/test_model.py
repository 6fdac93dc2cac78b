"""Model folders: old ones load, newer ones and damaged ones are refused with the reason, malicious ones run no code."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import simfer
from simfer.data.errors import MissingFileError, ModelFormatError, PriorError, UnsupportedError
from simfer.data.model import SCHEMA_VERSION, read_model, write_model
from simfer.estimators.model import Model, load_model

FIXTURES = Path(__file__).parents[1] / "fixtures"
OLD = FIXTURES / "model_v1"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder of the present version."""
    load_model(OLD).save(tmp_path / "model")
    return tmp_path / "model"


def described(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "model.json").read_text())


def recorded() -> tuple[dict[str, Any], dict[str, np.ndarray], torch.Tensor]:
    found = json.loads((FIXTURES / "model_v1.json").read_text())
    x = {name: np.array(values) for name, values in found["x"].items()}
    return found, x, torch.tensor(found["theta"], dtype=torch.float64)[None]


def test_a_model_of_version_1_answers_as_it_did() -> None:
    """Written by the code that wrote version 1, with what it gave then."""
    found, x, theta = recorded()
    assert described(OLD)["schema_version"] == 1
    posterior = simfer.load(OLD).posterior
    log_prob = torch.tensor(found["log_prob"], dtype=torch.float64)
    torch.testing.assert_close(posterior.log_prob_batched(theta, x)[0], log_prob, atol=1e-4, rtol=1e-4)
    draws = posterior.sample_batched((3,), x, seed=found["seed"])
    torch.testing.assert_close(draws, torch.tensor(found["draws"], dtype=torch.float64), atol=1e-3, rtol=1e-3)


def test_a_model_of_version_1_is_saved_as_the_present_one(model: Path) -> None:
    _, x, theta = recorded()
    assert described(model)["schema_version"] == SCHEMA_VERSION == 2
    first, second = load_model(OLD), load_model(model)
    assert torch.equal(first.posterior.log_prob_batched(theta, x), second.posterior.log_prob_batched(theta, x))
    assert first.facts == second.facts


def test_a_newer_version_is_refused_with_the_remedy(model: Path) -> None:
    text = (model / "model.json").read_text().replace('"schema_version": 2', '"schema_version": 3')
    (model / "model.json").write_text(text)
    with pytest.raises(ModelFormatError, match=r"schema version 3, and this simfer reads up to 2: .* upgrade simfer"):
        simfer.load(model)


@pytest.mark.parametrize("name", ["model.json", "weights.safetensors"])
def test_a_missing_file_is_named(model: Path, name: str) -> None:
    (model / name).unlink()
    with pytest.raises(MissingFileError, match=f"it has no `{name}`"):
        simfer.load(model)


def cut(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


DAMAGES: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "truncated weights": ("weights.safetensors", cut, r"`weights.safetensors`: it has \d+ bytes of \d+"),
    "empty weights": ("weights.safetensors", lambda data: b"", "it has 0 bytes of"),
    "changed weights": ("weights.safetensors", flip, "`weights.safetensors`: it was changed after it was written"),
    "truncated description": ("model.json", cut, "`model.json`: it is no JSON"),
    "binary description": ("model.json", lambda data: b"\x80\x04\xff", "`model.json`: it is no JSON"),
    "list": ("model.json", lambda data: b"[1, 2]", "`model.json`: it must be an object"),
    "deep": ("model.json", lambda data: b"[" * 100_000, "`model.json`: it is no JSON"),
    "changed prior": (
        "model.json",
        lambda data: data.replace(b'"high": 10.0', b'"high": 11.0'),
        "its checksum does not",
    ),
    "NaN": ("model.json", lambda data: data.replace(b'"high": 10.0', b'"high": NaN'), "its checksum does not fit"),
    "no version": (
        "model.json",
        lambda data: data.replace(b"schema_version", b"schema"),
        "must be a whole number from 1",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_with_the_reason(model: Path, damage: str) -> None:
    name, change, reason = DAMAGES[damage]
    (model / name).write_bytes(change((model / name).read_bytes()))
    with pytest.raises(ModelFormatError, match=f"damaged, .*{reason}"):
        simfer.load(model)


def test_damage_of_a_model_without_checksums_is_refused_too(tmp_path: Path) -> None:
    old = Path(shutil.copytree(OLD, tmp_path / "old"))
    (old / "weights.safetensors").write_bytes(cut((old / "weights.safetensors").read_bytes()))
    with pytest.raises(ModelFormatError, match=r"`weights.safetensors`"):
        simfer.load(old)


@pytest.mark.parametrize("change", ["drop", "shape"])
def test_weights_of_another_network_are_refused(model: Path, change: str) -> None:
    description, weights = read_model(model)
    name = next(key for key in weights if key.startswith("flow"))
    weights.pop(name) if change == "drop" else weights.update({name: torch.zeros(3, 3)})
    write_model(model, only_content(description), weights)
    with pytest.raises(ModelFormatError, match="cannot be rebuilt"):
        simfer.load(model)


def only_content(description: dict[str, Any]) -> dict[str, Any]:
    return {key: description[key] for key in ("estimator", "prior", "observables", "facts")}


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_a_pickle_in_place_of_weights_runs_nothing(model: Path, tmp_path: Path) -> None:
    """Even with checksums forged to fit."""
    mark = tmp_path / "mark"
    for make in (lambda path: path.write_bytes(pickle.dumps(Bomb(mark))), lambda path: torch.save(Bomb(mark), path)):
        make(model / "weights.safetensors")
        shutil.copy(OLD / "model.json", model / "model.json")  # version 1 has none to be checked
        with pytest.raises(ModelFormatError, match=r"`weights\.safetensors`"):
            simfer.load(model)
    assert not mark.exists()


def leaves(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where a JSON value has strings."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
    if isinstance(value, list):
        return [leaf for i, item in enumerate(value) for leaf in leaves(item, (*path, i))]
    return [path] if isinstance(value, str) else []


def test_named_code_is_not_loaded(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``module:Class`` in place of any string of the settings or the prior, checksums forged to fit."""
    (tmp_path / "evil.py").write_text("from pathlib import Path\nPath('mark').touch()\nclass Boom: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    description, weights = read_model(model)
    for named in ("evil:Boom", "evil.py:Boom", "os:system"):
        for where in leaves({key: description[key] for key in ("estimator", "prior")}):
            forged = json.loads(json.dumps(only_content(description)))
            inner, forged["estimator"]["whiten"] = forged, False  # which an embedding of one's own could not have
            for key in where[:-1]:
                inner = inner[key]
            inner[where[-1]] = named
            write_model(model, forged, weights)
            if where[0] == "estimator":
                with pytest.raises((ModelFormatError, PriorError)):
                    simfer.load(model)
            else:  # some of it is text, such as units
                with suppress(ModelFormatError, PriorError):
                    simfer.load(model)
    assert not (tmp_path / "mark").exists()


def test_device(model: Path) -> None:
    loaded = simfer.load(model, device="cpu")
    assert isinstance(loaded, Model)
    assert next(loaded.estimator.parameters()).device.type == "cpu"
    if not torch.cuda.is_available():
        with pytest.raises(UnsupportedError, match=r"`device` must be one that is here; got 'cuda'"):
            simfer.load(model, device="cuda")
    with pytest.raises(UnsupportedError, match="got 'gpu'"):
        simfer.load(model, device="gpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_what_is_saved_on_a_gpu_loads_on_the_cpu(model: Path, tmp_path: Path) -> None:
    _, x, theta = recorded()
    load_model(model, "cuda").save(tmp_path / "saved")
    loaded = load_model(tmp_path / "saved")
    assert torch.equal(
        loaded.posterior.log_prob_batched(theta, x), load_model(model).posterior.log_prob_batched(theta, x)
    )
