"""The command line: exit codes, one clear message, no traceback."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest

from simfer.pipelines import cli, engine
from simfer.pipelines.yaml_file import dump


@pytest.fixture
def tiny_yaml(finished: Any, tmp_path: Path) -> str:
    (tmp_path / "tiny.yaml").write_text(dump(finished.config, tmp_path / "tiny.yaml"))
    return "tiny.yaml"


@pytest.mark.slow
def test_run_prints_table_verdicts_and_report(simfer_cli: Any, tiny_yaml: str) -> None:
    code, out, _ = simfer_cli("run", tiny_yaml, "--workdir", "here")
    assert code == 0
    for word in ("t1", "t2", "90 % interval", "sbc", "coverage", "tarp", "predictive", "Report: here/report.html"):
        assert word in out
    code, out, _ = simfer_cli("run", tiny_yaml, "--workdir", "here")
    assert code == 0
    assert out.count("up to date") == 5


@pytest.mark.slow
def test_strict_exits_with_3_when_a_check_fails(simfer_cli: Any, tiny_yaml: str) -> None:
    impossible = ("--set", "diagnose.checks=[{sbc: {alpha: 1.0}}]")
    assert simfer_cli("run", tiny_yaml, *impossible, "--strict")[0] == 3
    assert simfer_cli("run", tiny_yaml, *impossible)[0] == 0


def test_to_and_single_stages_stop_early(simfer_cli: Any, tiny_yaml: str, tmp_path: Path) -> None:
    assert simfer_cli("run", tiny_yaml, "--to", "simulate")[0] == 0
    assert (tmp_path / "runs/tiny/simulations.zarr").exists()
    assert not (tmp_path / "runs/tiny/model").exists()
    assert simfer_cli("infer", tiny_yaml)[0] == 0
    assert (tmp_path / "runs/tiny/posterior.zarr").exists()
    assert not (tmp_path / "runs/tiny/calibration.zarr").exists()
    code, out, _ = simfer_cli("status", "runs/tiny")
    assert code == 0
    assert "│ ok     │ 3,000 │ 100.0% │" in out
    assert out.count("done") == 3
    assert out.count("not begun") == 2


def test_plan_changes_nothing(simfer_cli: Any, tiny_yaml: str, tmp_path: Path) -> None:
    code, out, _ = simfer_cli("plan", tiny_yaml)
    assert code == 0
    assert "3,000 rows" in out
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("run", "nowhere.yaml"), "simfer: no configuration file `nowhere.yaml`"),
        (("run", "two_moon"), "simfer: no file and no recipe `two_moon`; did you mean `two_moons`?"),
        (("run", "two_moons", "--to", "inferr"), "simfer: `--to`: unknown stage `inferr`; did you mean `infer`?"),
        (("run", "two_moons", "--set", "seed"), "simfer: `--set` needs KEY=VALUE; got 'seed'"),
        (("run", "two_moons", "--set", "seed=[1"), "simfer: `--set` needs a YAML value; got '[1'"),
        (("run", "two_moons", "--set", "seed.x=1"), "simfer: `--set seed.x`: `seed` is 1, which has no keys"),
        (("list", "simulator"), "simfer: unknown kind `simulator`; did you mean `simulators`?"),
        (("show", "two_mons"), "simfer: nothing is called `two_mons`; did you mean `two_moons`?"),
        (("status", "nowhere"), "simfer: no run at nowhere"),
    ],
)
def test_bad_usage_is_one_message_and_exit_2(simfer_cli: Any, arguments: tuple[str, ...], message: str) -> None:
    code, _, err = simfer_cli(*arguments)
    assert code == 2
    assert err.startswith(message)
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1


def test_a_bad_configuration_writes_nothing(simfer_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("simulator: two_moons\nobservation: origins\n")
    assert simfer_cli("run", "bad.yaml")[0] == 2
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            "raise ZeroDivisionError('oh')",
            "simulations succeeded; row 0 (t1 = 0.851174, t2 = -0.629718): ZeroDivisionError: oh",
        ),
        ("return {'x': theta[:-1]}", "one row of `x` for each of the"),
        ("return {'x': theta[:, :1]}", "must return `x` of shape (2,) per row"),
        ("return {'x': theta * float('nan')}", "simulations is usable"),
        ("return {'y': theta}", "must return a dict with exactly x; got y"),
    ],
)
def test_a_bad_simulator_is_one_message_and_exit_2(simfer_cli: Any, tmp_path: Path, body: str, message: str) -> None:
    (tmp_path / "bad.py").write_text(
        "from simfer.simulators.two_moons import TwoMoons\nclass Bad(TwoMoons):\n"
        f"    def simulate(self, theta, rng, context=None):\n        {body}\n"
    )
    (tmp_path / "bad.yaml").write_text("simulator: bad.py:Bad\nobservation: origin\nsimulate: {rows: 200}\n")
    code, _, err = simfer_cli("run", "bad.yaml")
    assert code == 2
    assert message in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("number", "says", "remedy"),
    [
        (errno.ENOSPC, "No space left on device", "free some space (`df -h`"),
        (errno.EDQUOT, "Disk quota exceeded", "your quota there is spent (`quota -s`"),
    ],
)
def test_a_full_disk_is_said_and_the_rest_is_kept(
    simfer_cli: Any, tiny_yaml: str, monkeypatch: pytest.MonkeyPatch, number: int, says: str, remedy: str
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(number, says, "runs/tiny/simulations.zarr")

    monkeypatch.setattr(engine, "write_json", full)
    code, _, err = simfer_cli("run", tiny_yaml)
    assert code == 2
    assert err.startswith(f"simfer: {says} (runs/tiny/simulations.zarr): {remedy}")
    assert err.endswith("what is done is kept\n")


def test_a_bug_is_not_hidden(simfer_cli: Any, tiny_yaml: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "write_json", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["run", tiny_yaml])


def test_lists_and_descriptions(simfer_cli: Any) -> None:
    for what, name in (
        ("simulators", "two_moons"),
        ("estimators", "npe"),
        ("checks", "tarp"),
        ("recipes", "influenza_1978"),
    ):
        code, out, _ = simfer_cli("list", what)
        assert code == 0
        assert name in out
        code, out, _ = simfer_cli("show", name)
        assert code == 0
        assert name in out
    assert "in_bed" in simfer_cli("show", "influenza_1978")[1]


def test_schema_is_json_schema(simfer_cli: Any) -> None:
    code, out, _ = simfer_cli("schema")
    assert code == 0
    assert "simulator" in json.loads(out)["properties"]


NOT_SYMMETRIC = """
from simfer.simulators.damped_oscillator import DampedOscillator
from simfer.simulators.symmetry import Shift

class Wrong(DampedOscillator):
    symmetry = {"time": Shift(by="tau", of="x", along="time", spacing=-0.05)}

class Misspelt(DampedOscillator):
    symmetry = {"time": Shift(by="tua", of="x", along="time", spacing=0.05)}
"""


def test_a_symmetry_is_checked_by_name_by_file_and_by_configuration(simfer_cli: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(NOT_SYMMETRIC)
    (tmp_path / "mine.yaml").write_text(
        "simulator: damped_oscillator\nprior: {tau: {dist: Normal, loc: 4, scale: 0.3}}\n"
    )
    code, out, _ = simfer_cli("check-symmetry", "damped_oscillator", "--rows", "200")
    assert code == 0
    assert "DampedOscillator is symmetric under moving tau" in out
    code, out, _ = simfer_cli("check-symmetry", "mine.py:Wrong")
    assert code == 1
    assert "not symmetric under moving tau" in out
    code, out, _ = simfer_cli("check-symmetry", "mine.yaml")
    assert code == 1
    assert "the prior prefers some poses" in " ".join(out.split())
    code, _, err = simfer_cli("check-symmetry", "mine.py:Misspelt")
    assert code == 2
    assert "no parameter `tua`; did you mean `tau`?" in err


def test_a_simulator_without_symmetry_says_how_to_declare_one(simfer_cli: Any) -> None:
    code, _, err = simfer_cli("check-symmetry", "two_moons")
    assert code == 2
    assert err.startswith("simfer: `TwoMoons` declares no symmetry: give it an attribute")
    assert simfer_cli("check-symmetry", "two_mons")[2].startswith("simfer: unknown simulator `two_mons`; did you mean")
    assert "Symmetry declared: {'time': Shift(" in simfer_cli("show", "damped_oscillator")[1]
