"""Every mistake in a configuration is told at once, with file, line, key and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simfer.data.errors import ConfigError, MissingFileError
from simfer.pipelines.job import Job, make_job
from simfer.pipelines.yaml_file import dump, parse_value, read_source, recipes

FIVE = """\
name: five
simulator: two_moons
observation: origins
prior:
  t1: {dist: Uniform, low: 2, high: 1}
simulate:
  rows: many
train:
  flow: {kind: nsf, transformations: 3}
diagnose: [sbc, coverrage]
"""


def job(path: Path, text: str) -> Job:
    (path / "c.yaml").write_text(text)
    return make_job(read_source(path / "c.yaml"))


def problems(path: Path, text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        job(path, text)
    return [problem.replace(str(path / "c.yaml"), "c.yaml") for problem in caught.value.problems]


def test_five_mistakes_five_messages_in_order(tmp_path: Path) -> None:
    found = problems(tmp_path, FIVE)
    expected = [
        "c.yaml:3: `observation`: no file and no shipped observation `origins`; did you mean `origin`?",
        "c.yaml:5: `prior.t1`: prior of `t1`: Uniform cannot be made from low = 2, high = 1",
        "c.yaml:7: `simulate.rows`: must be a valid integer",
        "c.yaml:9: `train.flow.transformations`: unknown key; did you mean `transforms`?",
        "c.yaml:10: `diagnose.checks.1.coverrage`: unknown check `coverrage`; did you mean `coverage`?",
    ]
    assert len(found) == 5
    for message, start in zip(found, expected, strict=True):
        assert message.startswith(start)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("observation: origin\n", "c.yaml: `simulator`: is required"),
        (
            "simulator: two_moonz\n",
            "c.yaml:1: `simulator`: unknown simulator `two_moonz`; did you mean `two_moons`? Known: two_moons,",
        ),
        (
            "simulator: {name: two_moons, arguments: {x: 1}}\n",
            "c.yaml:1: `simulator`: `two_moons` cannot be made from {'x': 1}",
        ),
        ("simulator: json:loads\n", "c.yaml:1: `simulator`: `json:loads` cannot be made from no arguments"),
        (
            "simulator: two_moons\nprior: {t3: {dist: Uniform, low: 0, high: 1}}\n",
            "c.yaml:2: `prior.t3`: prior of `t3`: no such parameter; did you mean `t2`? Known: t2, t1",
        ),
        (
            "simulator: two_moons\ntrain: {method: npee}\n",
            "c.yaml:2: `train.method`: unknown estimator `npee`; did you mean `npe`?",
        ),
        (
            "simulator: two_moons\ntrain:\n  transforms: {y: log}\n",
            "c.yaml:3: `train.transforms`: `transforms` has no observable `y`",
        ),
        (
            "simulator: two_moons\ntrain:\n  transforms: {x: logg}\n",
            "c.yaml:3: `train.transforms.x`: must be 'identity', 'log'",
        ),
        (
            "simulator: two_moons\ntrain:\n  embedding: {kind: mpl}\n",
            "c.yaml:3: `train.embedding.kind`: unknown network `mpl`; did you mean `mlp`?",
        ),
        (
            "simulator: two_moons\ntrain:\n  embedding: {kind: cnn2d}\n",
            "c.yaml:3: `train.embedding`: `cnn2d` needs an observable of 2 axes, (row, column), or 3, one of them channels",
        ),
        (
            "simulator: two_moons\ntrain:\n  embedding:\n    observables: {x: {kind: mlp, kernl: 3}}\n",
            "c.yaml:4: `train.embedding.observables.x.kernl`: unknown key; did you mean `kernel`?",
        ),
        (
            "simulator: two_moons\ntrain:\n  embedding: {kind: nets.py:Net}\n",
            "c.yaml:3: `train.embedding`: no file",
        ),
        (
            "simulator: two_moons\ndiagnose: [{sbc: {alfa: 0.1}}]\n",
            "c.yaml:2: `diagnose.checks.0.sbc`: unknown option `alfa`; did you mean `alpha`?",
        ),
        ("simulator: two_moons\nobservation: nowhere.nc\n", "c.yaml:2: `observation`: no file"),
        (
            "simulator: two_moons\nobservation: {values: {x: [1, .nan]}}\n",
            "c.yaml:2: `observation`: `observation['x']` must be finite; got nan",
        ),
        (
            "simulator: two_moons\nobservation: {values: [1, 2, 3]}\n",
            "c.yaml:2: `observation`: `observation['x']` must have shape (2,)",
        ),
        (
            "simulator: two_moons\nobservation: {valuse: [1, 2]}\n",
            "c.yaml:2: `observation`: must be a name, a file, or `values:` alone",
        ),
        (
            "simulator: two_moons\nlocal: {executor: slum}\n",
            "c.yaml:2: `local.executor`: must be 'inline', 'processes', 'dask' or 'slurm'; got 'slum'",
        ),
        (
            "simulator: two_moons\nlocal: {address: tcp://there:8786}\n",
            "c.yaml:2: `local`: `address` is that of a Dask scheduler, and `executor` is inline: use dask",
        ),
        (
            "simulator: two_moons\nlocal: {loggers: [neptune]}\n",
            "c.yaml:2: `local.loggers.0`: must be 'wandb' or 'mlflow'; got 'neptune'",
        ),
        (
            "simulator: two_moons\ntrain: {learning_rate: -1}\n",
            "c.yaml:2: `train.learning_rate`: must be greater than 0 or 'auto'; got -1",
        ),
        (
            "simulator: two_moons\nlocal: {precision: bf17}\n",
            "c.yaml:2: `local.precision`: must be '32-true', 'bf16-mixed' or '16-mixed'; got 'bf17'",
        ),
        ("simulator: two_moons\ntrain: {ema: 2}\n", "c.yaml:2: `train.ema`: must be less than 1; got 2"),
        (
            "simulator: two_moons\nsimulate: {rows: 21}\ndiagnose: {pairs: 20}\n",
            "c.yaml: `simulate.rows` (21) must exceed the 20 pairs",
        ),
        ("simulator: [1\nname: x\n", "c.yaml:2: not valid YAML"),
        ("simulator: two_moons\nseed: 1\nseed: 2\n", "c.yaml:3: not valid YAML: found duplicate key"),
        ("- two_moons\n", "c.yaml: must be a mapping with `simulator:` at least"),
    ],
)
def test_one_mistake_one_message(tmp_path: Path, text: str, message: str) -> None:
    (found,) = problems(tmp_path, text)
    assert found.startswith(message)


def test_a_logger_that_is_not_installed_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("simfer.estimators.loggers._installed", lambda modules: False)
    (found,) = problems(tmp_path, "simulator: two_moons\nlocal: {loggers: [wandb]}\n")
    assert found.startswith("c.yaml:2: `local.loggers`: `loggers` names `wandb`, which is not installed: `pip install")


def test_what_is_not_there() -> None:
    with pytest.raises(MissingFileError, match=r"no configuration file `nowhere.yaml`"):
        read_source("nowhere.yaml")
    with pytest.raises(MissingFileError, match="no file and no recipe `two_moon`; did you mean `two_moons`"):
        read_source("two_moon")


def test_the_smallest_useful_file_is_complete(tmp_path: Path) -> None:
    made = job(tmp_path, "simulator: two_moons\nobservation: origin\n")
    assert made.config.name == "c"
    assert [check.name for check in made.checks] == ["sbc", "coverage", "tarp"]
    assert made.config.pairs == 1000


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_valid_and_their_dump_means_the_same(name: str, tmp_path: Path) -> None:
    first = make_job(read_source(name))
    (tmp_path / "config.yaml").write_text(dump(first.config, tmp_path / "config.yaml"))
    assert make_job(read_source(tmp_path / "config.yaml")).config == first.config


def test_flow_matching_has_settings_of_its_own(tmp_path: Path) -> None:
    text = "simulator: two_moons\ntrain:\n  method: fmpe\n  field: {hidden: 32, steps: 8}\n"
    settings = job(tmp_path, text).config.train.estimator(impute=False)
    assert (settings.method, settings.field.hidden, settings.field.steps) == ("fmpe", 32, 8)
    (problem,) = problems(tmp_path, text.replace("steps: 8", "steps: 7"))
    assert problem.startswith("c.yaml:4: `train.field.steps`: must be a multiple of 2")
    (problem,) = problems(tmp_path, "simulator: two_moons\ntrain:\n  flow: {kind: cnf, hidden: [32, 16]}\n")
    assert "`hidden` of a cnf must be one width, repeated for each block; got [32, 16]" in problem


@pytest.mark.parametrize(
    ("key", "value", "attribute"),
    [
        ("simulate.rows", 500, lambda c: c.simulate.rows == 500),
        ("train.flow.kind", "maf", lambda c: c.train.flow.kind == "maf"),
        ("simulator.name", "gaussian_linear", lambda c: c.simulator.name == "gaussian_linear"),
        ("diagnose.pairs", 50, lambda c: c.pairs == 50 and len(c.diagnose.checks) == 3),
        ("prior.t1", {"dist": "Uniform", "low": 0, "high": 1}, lambda c: c.prior["t1"]["low"] == 0),
    ],
)
def test_overrides_reach_every_form(key: str, value: Any, attribute: Any) -> None:
    source = read_source("two_moons")
    source.override(key, value)
    if key == "simulator.name":
        source.values.pop("observation")
    assert attribute(make_job(source).config)


def test_a_wrong_override_is_named_as_such() -> None:
    source = read_source("two_moons")
    source.override("simulate.row", parse_value("5_000"))
    with pytest.raises(ConfigError, match=r"--set simulate.row: `simulate.row`: unknown key; did you mean `rows`"):
        make_job(source)


def test_paths_are_relative_to_the_file_and_absolute_in_the_dump(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from simfer.simulators.two_moons import TwoMoons\nclass Mine(TwoMoons):\n    pass\n"
    )
    (tmp_path / "obs.json").write_text('{"x": [0.1, 0.2]}')
    made = job(tmp_path, "simulator: mine.py:Mine\nobservation: obs.json\n")
    assert type(made.simulator).__name__ == "Mine"
    assert made.observation is not None
    assert made.observation["x"].tolist() == [0.1, 0.2]
    assert made.config.observation == str((tmp_path / "obs.json").resolve())
    assert made.config.simulator.name == f"{(tmp_path / 'mine.py').resolve()}:Mine"


def test_priors_of_all_kinds_override_the_simulators(tmp_path: Path) -> None:
    (tmp_path / "law.py").write_text("from torch.distributions import Laplace\nclass Peak(Laplace):\n    pass\n")
    text = """\
simulator: gaussian_linear
prior:
  t10: {dist: law.py:Peak, loc: 0, scale: 1}
  t1: {dist: GeneralizedPareto, loc: 0, scale: 1, concentration: -0.5}
  t2, t4:
    dist: MultivariateNormal
    loc: [0, 0]
    covariance_matrix: [[1, 0.9], [0.9, 1]]
"""
    made = job(tmp_path, text)
    law = f"{tmp_path.resolve() / 'law.py'}:Peak"
    assert made.prior.names == made.simulator.prior.names
    assert made.prior.to_json()["t10"]["dist"] == made.config.prior["t10"]["dist"] == law
    assert made.prior.to_json()["t4"] == {
        "dist": "MultivariateNormal",
        "joint": ["t2", "t4"],
        "units": "",
        "label": "",
    }


def test_a_wrong_joint_prior_is_told_with_its_line(tmp_path: Path) -> None:
    found = problems(
        tmp_path, "simulator: two_moons\nprior:\n  t1, t2: {dist: MultivariateNormal, loc: [0, 0], covariance: 1}\n"
    )
    expected = "c.yaml:3: `prior.t1, t2`: prior of `t1, t2`: MultivariateNormal has no `covariance`; did you mean"
    assert [message.startswith(expected) for message in found] == [True]


def test_the_documented_priors_work(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "priors.md").read_text(encoding="utf-8")
    text, law = (page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("yaml", "python\n# my_laws.py"))
    (tmp_path / "my_laws.py").write_text(law)
    made = job(tmp_path, text)
    assert made.prior.variables["t2"].units == "m"
    assert made.prior.to_json()["t3"]["joint"] == ["t3", "t4"]
    assert made.prior.to_json()["t5"]["rate"] == 0.1
