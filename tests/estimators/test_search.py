"""The search: what a space may say, that it never does worse, and that it goes on where it was killed."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ruamel.yaml import YAML

from simfer.data.errors import ConfigError, TrainingError
from simfer.estimators import search as searching
from simfer.estimators.search import Found, Trial, search
from simfer.estimators.settings import EmbeddingSettings, EstimatorSettings, FlowSettings, TrainingSettings
from simfer.estimators.space import Choice, Range, nested, read_dimension, value_of, with_values

ESTIMATOR = EstimatorSettings(
    flow=FlowSettings(kind="gmm", components=2, hidden=(8,)), embedding=EmbeddingSettings(kind="none")
)
TRAINING = TrainingSettings(epochs=4, batch_size=100, learning_rate=3e-3)
SPACE = {"learning_rate": [1e-4, 1e-1, "log"], "flow.components": [1, 3], "flow.hidden": [[8], [16]]}


@pytest.fixture
def pairs(line, rng) -> dict[str, Any]:
    theta = line.prior.sample(400, rng)
    return {"theta": theta, "x": line.simulate(theta, rng)["x"], "prior": line.prior}


def find(pairs: dict[str, Any], folder: Path, trials: int = 3, **changes: Any) -> Found:
    known = {"space": SPACE, "estimator": ESTIMATOR, "training": TRAINING, "seed": 1}
    return search(**pairs, folder=folder, trials=trials, **{**known, **changes})


@pytest.mark.parametrize(
    ("key", "given", "expected"),
    [
        ("learning_rate", [1e-4, 1e-2, "log"], Range(1e-4, 1e-2, log=True)),
        ("flow.bound", [3, 5.5], Range(3, 5.5)),
        ("flow.transforms", [3, 8], Range(3, 8)),
        ("batch_size", [32, 512, "log"], Range(32, 512, log=True)),
        ("flow.kind", ["nsf", "maf"], Choice(("nsf", "maf"))),
        ("batch_size", [64, 128, 256], Choice((64, 128, 256))),
        ("batch_size", {"choose": [64, 128]}, Choice((64, 128))),
        ("flow.hidden", ((8,), (16, 16)), Choice(([8], [16, 16]))),
        ("whiten", [True, False], Choice((True, False))),
        ("ensemble", [1, 3], Range(1, 3)),
    ],
)
def test_ranges_and_choices(key: str, given: Any, expected: Range | Choice) -> None:
    assert read_dimension(key, given, ESTIMATOR, TRAINING) == expected


def test_ranges_of_whole_numbers_are_whole() -> None:
    assert Range(3, 8).whole
    assert 5 in Range(3, 8)
    assert 5.5 not in Range(3, 8)
    assert not Range(3, 8.0).whole
    assert 5.5 in Range(3, 8.0)


@pytest.mark.parametrize(
    ("key", "given", "match"),
    [
        ("learning_rte", [1, 2], "`learning_rte` is no key of `train:`; did you mean `learning_rate`"),
        ("flow.transfroms", [1, 2], "`flow.transfroms` is no key of `train:`; did you mean `transforms`"),
        ("flow.kind", ["nsf", "mfa"], "`flow.kind` cannot be 'mfa'"),
        ("learning_rate", [1e-2, 1e-4], "must have low < high"),
        ("learning_rate", [0.0, 1.0, "log"], "low > 0 on a log scale"),
        ("learning_rate", 1e-3, "`learning_rate` must be .*; got 0.001"),
        ("learning_rate", [], "must be"),
        ("learning_rate", [-1.0, 1.0], "cannot be -1.0"),
        ("validation", [0.1, 1.5], "cannot be 1.5"),
    ],
)
def test_a_space_that_is_none_is_refused(key: str, given: Any, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        read_dimension(key, given, ESTIMATOR, TRAINING)


def test_values_go_where_their_keys_say() -> None:
    values = {"flow.transforms": 7, "learning_rate": 0.5, "flow.hidden": [32]}
    estimator, training = with_values(values, ESTIMATOR, TRAINING)
    assert (estimator.flow.transforms, training.learning_rate, estimator.flow.hidden) == (7, 0.5, (32,))
    assert {key: value_of(key, estimator, training) for key in values} == values
    assert nested(values) == {"flow": {"transforms": 7, "hidden": [32]}, "learning_rate": 0.5}


def test_what_is_found_is_the_best_and_never_worse_than_the_settings_as_they_are(pairs, tmp_path: Path) -> None:
    told: list[Trial] = []
    found = find(pairs, tmp_path, on_trial=told.append)
    assert list(found.trials) == told
    first = found.trials[0]
    assert first.values == {"learning_rate": 3e-3, "flow.components": 2, "flow.hidden": [8]}
    finished = [trial.loss for trial in found.trials if trial.loss is not None and trial.state == "finished"]
    assert found.best.loss == min(finished) <= first.loss
    assert (found.estimator, found.training) == with_values(found.best.values, ESTIMATOR, TRAINING)


def test_yaml_of_the_best_is_what_was_found(pairs, tmp_path: Path) -> None:
    found = find(pairs, tmp_path)
    text = (tmp_path / "best.yaml").read_text()
    assert text == found.yaml
    assert text.startswith("# validation loss")
    assert YAML(typ="safe").load(text) == {"train": nested(found.best.values)}


def test_a_search_goes_on_from_what_is_there(pairs, tmp_path: Path) -> None:
    whole = find(pairs, tmp_path / "whole", trials=4)
    find(pairs, tmp_path / "parts", trials=2)
    told: list[Trial] = []
    parts = find(pairs, tmp_path / "parts", trials=4, on_trial=told.append)
    assert len(told) == 2
    assert [(t.values, t.state, t.loss) for t in parts.trials] == [(t.values, t.state, t.loss) for t in whole.trials]
    again = find(pairs, tmp_path / "parts", trials=4, on_trial=told.append)
    assert len(told) == 2
    assert again.best == parts.best


def test_another_space_is_another_search(pairs, tmp_path: Path) -> None:
    find(pairs, tmp_path, trials=1)
    other = find(pairs, tmp_path, trials=1, space={"learning_rate": [1e-3, 1e-2]})
    assert len(other.trials) == 1
    assert list(other.best.values) == ["learning_rate"]


def test_a_killed_trial_is_taken_up_again_from_its_checkpoint(pairs, tmp_path: Path, monkeypatch) -> None:
    class KilledError(BaseException):
        pass

    whole = find(pairs, tmp_path / "whole")
    train = searching.train
    epochs: list[int] = []
    at: list[int] = []

    def killed(*args: Any, on_epoch: Any, **kwargs: Any) -> Any:
        def report(epoch: int, train_loss: float, val_loss: float) -> None:
            epochs.append(epoch)
            on_epoch(epoch, train_loss, val_loss)
            if epoch == 1 and len(epochs) > 4 and not at:  # in the second or a later trial
                at.append(len(epochs))
                raise KilledError

        return train(*args, on_epoch=report, **kwargs)

    monkeypatch.setattr(searching, "train", killed)
    with pytest.raises(KilledError):
        find(pairs, tmp_path / "killed")
    resumed = find(pairs, tmp_path / "killed")
    assert [(t.values, t.state, t.loss) for t in resumed.trials] == [(t.values, t.state, t.loss) for t in whole.trials]
    assert epochs[at[0]] == 1  # not 0; the checkpoint of an epoch comes after its report
    assert not list((tmp_path / "killed" / "trials").iterdir())


def test_hopeless_trials_are_given_up(pairs, tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"epochs": 12, "learning_rate": 1e-2})
    found = find(pairs, tmp_path, trials=4, training=training, space={"learning_rate": {"choose": [1e-2, 1e-9, 1e-10]}})
    pruned = [trial for trial in found.trials if trial.state == "pruned"]
    assert pruned
    assert all(trial.values["learning_rate"] < 1e-8 for trial in pruned)
    assert found.best.values == {"learning_rate": 1e-2}


def test_a_trial_that_fails_is_told_and_the_search_goes_on(pairs, tmp_path: Path) -> None:
    space = {"learning_rate": {"choose": [1e-2, 1e30]}}
    training = TRAINING.model_copy(update={"learning_rate": 1e30, "clip": 1e30, "warmup": 0.0})
    with pytest.raises(TrainingError, match=r"none of 1 trials finished: the loss became"):
        find(pairs, tmp_path, trials=1, training=training, space=space)
    found = find(pairs, tmp_path, trials=4, training=training, space=space)
    assert found.trials[0].state == "failed"
    assert found.trials[0].reason.startswith("the loss became")
    assert found.best.values == {"learning_rate": 1e-2}


def test_time_is_kept(pairs, tmp_path: Path) -> None:
    """When it is over no other trial is begun; the first is finished, because there is no other result."""
    found = find(pairs, tmp_path, trials=50, seconds=1e-3)
    assert [trial.state for trial in found.trials] == ["finished"]
    assert len(find(pairs, tmp_path, trials=50, seconds=1e-3).trials) == 1


def test_an_ensemble_is_judged_by_its_mixture(pairs, tmp_path: Path) -> None:
    found = find(pairs, tmp_path, trials=1, estimator=ESTIMATOR.model_copy(update={"ensemble": 2}))
    assert np.isfinite(found.best.loss)
    assert found.estimator.ensemble == 2


def test_no_space_and_no_optuna_are_told(pairs, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ConfigError, match="`space` must name something to search for"):
        find(pairs, tmp_path, space={})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"pip install 'simfer\[search\]'"):
        find(pairs, tmp_path)
