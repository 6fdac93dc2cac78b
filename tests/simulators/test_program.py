"""External programs: what goes in, what comes out, and what is said when they fail."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simfer.data.errors import (
    ConfigError,
    MissingFileError,
    PriorError,
    ProgramError,
    ShapeError,
    SimulationTimeoutError,
    SimulatorError,
)
from simfer.data.records import STATUS
from simfer.data.variables import Variable, Variables
from simfer.pipelines.executors import Processes
from simfer.pipelines.job import Job, make_job
from simfer.pipelines.yaml_file import dump, read_source
from simfer.simulators.base import Simulator, describe, simulate_checked
from simfer.simulators.campaign import simulate
from simfer.simulators.program import Program
from simfer.simulators.testing import SimulatorContract

EXAMPLES = Path(__file__).parents[2] / "docs" / "examples" / "external_programs"
PRIOR = {"alpha": {"dist": "Uniform", "low": 0.0, "high": 1.0}, "beta": {"dist": "Normal", "loc": 0.0, "scale": 1.0}}
X = Variables([Variable("x", (2,))])
THETA = np.array([[0.1, -1.0], [1 / 3, 2e-17]])
NEEDS = {"decay_c": "cc", "walk_awk": "awk", "queue_sh": "awk", "regression_r": "Rscript"}


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where scratch directories are made, to see what is left."""
    (tmp_path / "scratch").mkdir()
    return tmp_path / "scratch"


def shell(script: str, **arguments: Any) -> Program:
    """A program of a line of shell, in which braces stand for themselves."""
    braced = script.replace("{", "{{").replace("}", "}}")
    return Program(
        ["sh", "-c", braced, "sh", "{alpha}", "{beta}", "{seed}"], **{"prior": PRIOR, "observables": X, **arguments}
    )


def python(script: str, *words: str, **arguments: Any) -> Program:
    """A program of Python whose `sys.argv[1:]` are ``words``."""
    braced = script.replace("{", "{{").replace("}", "}}")
    return Program([sys.executable, "-c", braced, *words], **{"prior": PRIOR, "observables": X, **arguments})


def run(program: Program, theta: np.ndarray = THETA) -> dict[str, np.ndarray]:
    return simulate_checked(program, theta, np.random.default_rng(0))


def example(name: str, folder: Path) -> Job:
    """A documented example, copied to where it may be built."""
    if shutil.which(NEEDS[name]) is None:
        pytest.skip(f"no {NEEDS[name]} here")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    if name == "decay_c":
        subprocess.run(["cc", "-O2", "-o", "decay", "decay.c", "-lm"], cwd=folder, check=True)
    return make_job(read_source(folder / f"{name}.yaml"))


class TestExamples(SimulatorContract):
    rows = 10
    rows_alone = 50

    @pytest.fixture(params=NEEDS)
    def simulator(self, request: pytest.FixtureRequest, tmp_path: Path) -> Simulator:
        return example(request.param, tmp_path).simulator


@pytest.mark.slow
@pytest.mark.parametrize("name", NEEDS)
def test_examples_fill_the_same_store_in_processes(
    name: str, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(scratch))  # of the workers; this process has looked it up before
    job = example(name, tmp_path)
    stores = [
        simulate(job.simulator, 40, tmp_path / kind, seed=1, executor=executor, reference=job.reference)
        for kind, executor in (("inline", None), ("processes", Processes(1)))
    ]
    assert stores[0].counts()["ok"] == 40
    assert stores[0].digest() == stores[1].digest()
    assert not list(scratch.glob("simfer-*"))


def test_the_compiled_example_has_the_law_it_claims(tmp_path: Path) -> None:
    """Counts are Poisson with mean amount * exp(-rate t): mean and variance over 400 rows, to 4 standard errors."""
    decay = example("decay_c", tmp_path).simulator
    counts = run(decay, np.repeat([[0.3, 30.0]], 400, axis=0))["counts"]
    mean = 30.0 * np.exp(-0.3 * np.arange(10))
    assert (np.abs(counts.mean(0) - mean) < 4 * np.sqrt(mean / 400)).all()
    assert (np.abs(counts.var(0) - mean) < 4 * np.sqrt((mean + 2 * mean**2) / 400)).all()


def test_arguments_arrive_to_the_last_bit_and_seeds_differ() -> None:
    program = shell('echo "$1,$2,$3"', observables=Variables([Variable("x", (3,))]))
    x = run(program)["x"]
    np.testing.assert_array_equal(x[:, :2], THETA)
    assert x[0, 2] != x[1, 2]
    assert ((x[:, 2] >= 0) & (x[:, 2] < 2**31) & (x[:, 2] % 1 == 0)).all()


def test_formats_are_pythons() -> None:
    program = Program("printf %s,%s {alpha:.2f} {beta:+.1e}", prior=PRIOR, observables=X)
    np.testing.assert_array_equal(run(program)["x"], [[0.10, -1.0], [0.33, 2e-17]])


def test_nothing_of_the_values_or_words_is_taken_for_shell(tmp_path: Path) -> None:
    program = Program(
        ["printf", "%s\n", "0,1", "# $(touch oh); `touch oh` > oh"], prior=PRIOR, observables=X, folder=tmp_path
    )
    np.testing.assert_array_equal(run(program)["x"][0], [0, 1])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["inline", "file"])
def test_input_files_are_written_anew_for_every_row(given: str, tmp_path: Path) -> None:
    text = "# {{kept}}\n{alpha:.17g}, {beta:.17g}\n"
    (tmp_path / "model.nml.in").write_text(text)
    input_ = text if given == "inline" else "model.nml.in"
    program = Program("cat {input}", input=input_, prior=PRIOR, observables=X, folder=tmp_path)
    np.testing.assert_array_equal(run(program)["x"], THETA)


WRITERS = {
    "npy": "np.save(out, x)",
    "npz": "np.savez(out, x=x, other=1)",
    "csv": "np.savetxt(out, x[None], delimiter=',', fmt='%.17g')",
    "json": "import json; open(out, 'w').write(json.dumps({'x': x.tolist()}))",
    "h5": "import h5py; h5py.File(out, 'w')['deep/x'] = x",
    "nc": "import xarray as xr; xr.Dataset({'x': ('i', x)}).to_netcdf(out, engine='h5netcdf')",
}
START = "import sys, numpy as np; x = np.array(sys.argv[2:], float); out = sys.argv[1]; "


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_format_arrives_to_the_last_bit(suffix: str) -> None:
    datasets = {"x": "deep/x"} if suffix == "h5" else {}
    program = python(
        START + WRITERS[suffix], "{output}", "{alpha}", "{beta}", output=f"made.{suffix}", datasets=datasets
    )
    np.testing.assert_array_equal(run(program, THETA[:1])["x"], THETA[:1])


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_what_is_printed_can_be_the_output(kind: str) -> None:
    text = '{"x": [%s, %s]}\\n' if kind == "json" else "%s %s\\n"
    program = shell(f"printf '{text}' $1 $2", format=kind)
    np.testing.assert_array_equal(run(program)["x"], THETA)


def test_a_batch_is_one_call_with_a_file_of_theta(tmp_path: Path) -> None:
    script = "import sys, numpy as np; t = np.load(sys.argv[1]); assert len(t) == int(sys.argv[2])\n"
    script += "np.savez(sys.argv[3], x=t, calls=np.full(len(t), 7))"
    observables = Variables([Variable("x", (2,)), Variable("calls", dtype="int8")])
    program = python(script, "{theta}", "{rows}", "{output}", batch=True, output="o.npz", observables=observables)
    x = run(program)
    np.testing.assert_array_equal(x["x"], THETA)
    assert x["calls"].dtype == np.int8
    assert not program.per_row


def test_a_batch_as_csv_has_a_header_and_columns_by_name() -> None:
    observables = Variables([Variable("second"), Variable("first")])
    program = Program(
        "cat {theta}",
        batch=True,
        theta="t.csv",
        prior=PRIOR,
        observables=observables,
        datasets={"first": "alpha", "second": "beta"},
    )
    x = run(program)
    np.testing.assert_array_equal(x["first"], THETA[:, 0])
    np.testing.assert_array_equal(x["second"], THETA[:, 1])


def test_several_observables_share_one_table() -> None:
    x = run(shell('echo "$1,$2,3"', observables=Variables([Variable("head"), Variable("tail", (2,))])))
    np.testing.assert_array_equal(x["head"], THETA[:, 0])
    np.testing.assert_array_equal(x["tail"], np.column_stack([THETA[:, 1], [3, 3]]))


@pytest.mark.parametrize(
    ("script", "arguments", "seen"),
    [
        ("echo 1,2,3", {}, {"x": ((3,), "float64")}),
        ("echo 1", {}, {"x": ((), "float64")}),
        ("""echo '{"n": [[1, 2]], "r": 0.5}'""", {"format": "json"}, {"n": ((1, 2), "int64"), "r": ((), "float64")}),
        ("""echo '{"n": [1, 2], "r": 0.5}'""", {"format": "json", "datasets": {"m": "n"}}, {"m": ((2,), "int64")}),
    ],
)
def test_observables_are_seen_from_one_run(script: str, arguments: Any, seen: dict[str, Any]) -> None:
    program = shell(script, observables=None, **arguments)
    assert {v.name: (v.shape, v.dtype) for v in program.observables} == seen


def test_every_call_has_an_empty_scratch_directory_and_leaves_nothing(tmp_path: Path, scratch: Path) -> None:
    (tmp_path / "table.txt").write_text("1,2\n")
    program = shell(
        "ls | wc -l >&2; test $(ls | wc -l) = 1 && mkdir deep && touch deep/file rest && cat table.txt",
        files=["table.txt"],
        scratch="scratch",
        folder=tmp_path,
    )
    for _ in range(2):
        np.testing.assert_array_equal(run(program)["x"], [[1, 2], [1, 2]])
    assert [file for folder in scratch.iterdir() for file in folder.iterdir()] == []
    del program
    assert list(scratch.iterdir()) == []


def test_a_failed_call_keeps_its_scratch_directory_only_when_asked(tmp_path: Path, scratch: Path) -> None:
    for keep, left in ((False, 0), (True, 1)):
        program = shell("echo here > trace; exit 3", keep=keep, scratch=str(scratch))
        with pytest.raises(ProgramError, match="exit code 3") as caught:
            run(program)
        assert (str(scratch) in str(caught.value)) is keep
        assert len(list(scratch.rglob("trace"))) == left


def test_environment_is_added_to_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "1")
    np.testing.assert_array_equal(run(shell("echo $MINE,$YOURS", environment={"YOURS": "2"}))["x"], [[1, 2], [1, 2]])


FAILURES = [
    ("echo first >&2; echo last >&2; exit 7", {}, r"^the program ended with exit code 7; stderr ends: first \| last$"),
    ("kill -SEGV $$", {}, "^the program was killed by SIGSEGV$"),
    ("exit 0", {"output": "x.npy"}, "ended with exit code 0, but there is no `x.npy` in its scratch directory"),
    ("echo oh >&2", {}, "its output cannot be read as csv: it is empty; stderr ends: oh"),
    ("echo 1,2,3", {}, r"its output must have `x` of shape \(2,\); got \(3,\)"),
    ("echo 1,two", {}, "cannot be read as csv: could not convert string to float: 'two'"),
    ("echo '{\"y\": 1}'", {"format": "json"}, "its output has no dataset `x`, only none"),
    ('echo \'{"x": ["a", "b"]}\'', {"format": "json"}, "its output must have numbers as `x`; got dtype <U1"),
    ("echo '{'", {"format": "json"}, "cannot be read as json"),
    ("echo 1.5,2", {"observables": Variables([Variable("x", (2,), "int32")])}, "must have `x` in int32; got 1.5"),
    ("echo nan,2", {"observables": Variables([Variable("x", (2,), "int32")])}, "must have `x` in int32; got nan"),
    ("echo 3000000000,2", {"observables": Variables([Variable("x", (2,), "int32")])}, "in int32; got 3000000000.0"),
    ("echo junk > x.h5", {"output": "x.h5"}, "cannot be read as hdf5"),
    ("echo junk > x.npy", {"output": "x.npy"}, "cannot be read as npy"),
    ("echo junk > x.npz", {"output": "x.npz"}, "cannot be read as npz"),
    ("echo junk > x.nc", {"output": "x.nc"}, "cannot be read as netcdf"),
]


@pytest.mark.parametrize(("script", "arguments", "match"), FAILURES)
def test_failures_are_told(script: str, arguments: dict[str, Any], match: str, scratch: Path) -> None:
    with pytest.raises(ProgramError, match=match):
        run(shell(script, scratch=str(scratch), **arguments))


def test_nan_is_a_result() -> None:
    np.testing.assert_array_equal(run(shell("echo nan,2"))["x"][0], [np.nan, 2.0])


def test_reasons_are_short_and_end_with_the_last_words() -> None:
    with pytest.raises(ProgramError) as caught:
        run(shell("for i in $(seq 1000); do echo much said here: line $i >&2; done; exit 1"))
    assert len(str(caught.value)) <= 500
    assert str(caught.value).endswith("line 1000")


def test_a_hanging_program_dies_with_its_children(tmp_path: Path) -> None:
    program = shell(f"sleep 60 & echo $! > {tmp_path}/child; sleep 60", timeout=0.5)
    started = time.monotonic()
    with pytest.raises(SimulationTimeoutError, match=r"took longer than 0\.5 s and was killed") as caught:
        run(program, THETA[:1])
    assert time.monotonic() - started < 30
    assert isinstance(caught.value, TimeoutError)
    assert _is_gone(int((tmp_path / "child").read_text()))


def test_children_left_behind_are_killed_and_not_waited_for(tmp_path: Path) -> None:
    started = time.monotonic()
    run(shell(f"sleep 60 & echo $! > {tmp_path}/child; echo 1,2"), THETA[:1])
    assert time.monotonic() - started < 30
    assert _is_gone(int((tmp_path / "child").read_text()))


def _is_gone(pid: int) -> bool:
    """Whether a killed process is dead within seconds; a zombie that nobody reaps is."""
    for _ in range(100):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        state = Path(f"/proc/{pid}/stat")
        if state.exists() and state.read_text().rpartition(")")[2].split()[0] == "Z":
            return True
        time.sleep(0.05)
    return False


def test_a_flood_of_words_fills_neither_memory_nor_disk(scratch: Path) -> None:
    import resource

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    program = shell(
        "head -c 300000000 /dev/zero >&2; head -c 300000000 /dev/zero; echo 1,2 > x.csv",
        output="x.csv",
        scratch=str(scratch),
    )
    np.testing.assert_array_equal(run(program, THETA[:1])["x"], [[1, 2]])
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_printing_more_than_an_output_can_be_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("simfer.simulators.program._MOST_PRINTED", 1000)
    with pytest.raises(ProgramError, match="printed more than 1,000 bytes: write large outputs to a file"):
        run(shell("yes"))


@pytest.mark.parametrize(
    ("command", "arguments", "error", "match"),
    [
        ("", {}, SimulatorError, "`command` must name a program; got nothing"),
        ("'open", {}, SimulatorError, "`command` must be words as a shell takes them"),
        ("no_such_program", {}, SimulatorError, "no program `no_such_program` on PATH or in .*: build or install it"),
        ("./missing", {}, SimulatorError, r"no program `\./missing` in .*"),
        ("./plain.txt", {}, SimulatorError, r"is not executable: `chmod \+x` it"),
        (
            "echo {alfa}",
            {},
            SimulatorError,
            r"`command` has `\{alfa\}`, .* did you mean `alpha`\? Known: alpha, beta, seed",
        ),
        ("echo {}", {}, SimulatorError, r"`command` has `\{\}`, which is no name"),
        ("echo {output}", {}, SimulatorError, "no name it can have"),
        ("echo {alpha", {}, SimulatorError, "must have matching braces"),
        ("echo {alpha:d}", {}, SimulatorError, "parameters are real numbers: `:.0f` writes a whole one"),
        ("cat {input}", {"input": "{alfa}"}, SimulatorError, r"`input` has `\{alfa\}`"),
        ("cat {input}", {"input": "nowhere.in"}, MissingFileError, "`input`: no file .*nowhere.in"),
        ("true", {"files": ["nowhere"]}, MissingFileError, "`files`: there is no"),
        ("true", {"scratch": "nowhere"}, MissingFileError, "`scratch`: there is no"),
        ("true", {"output": "x.dat"}, SimulatorError, "`format` of `x.dat` is ''; Known: csv, hdf5"),
        ("true", {"output": "../x.npy"}, SimulatorError, "must be plain file names"),
        ("true", {"theta": "t.h5", "batch": True}, SimulatorError, "must end in .npy or .csv"),
        ("true", {"timeout": 0.0}, SimulatorError, "`timeout` must be seconds above 0"),
        ("true", {"retries": -1}, SimulatorError, "`retries` must be 0 or more"),
        ("true", {"prior": {"seed": PRIOR["alpha"]}}, SimulatorError, "a name the command needs: rename it"),
        ("true", {"prior": {"alpha": {"dist": "Uniform", "low": 1, "high": 0}}}, PriorError, "prior of `alpha`"),
        ("sh -c 'exit 4'", {"observables": None}, ProgramError, "exit code 4"),
        ("true", {"observables": {"x y": {}}}, ShapeError, "must be an identifier"),
    ],
)
def test_what_cannot_be_run_is_told_at_once(
    command: str, arguments: dict[str, Any], error: type[Exception], match: str, tmp_path: Path
) -> None:
    (tmp_path / "plain.txt").write_text("text")
    with pytest.raises(error, match=match):
        Program(command, **{"prior": PRIOR, "observables": X, "folder": tmp_path, **arguments})


def test_a_program_is_made_again_from_its_arguments_and_from_its_pickle() -> None:
    program = shell("echo $1,$2", timeout=5.0, retries=2, environment={"A": "b"})
    for twin in (Program(**json.loads(json.dumps(program.arguments()))), pickle.loads(pickle.dumps(program))):
        assert describe(twin) == describe(program)
        np.testing.assert_array_equal(run(twin)["x"], run(program)["x"])


@pytest.mark.parametrize("change", ["script", "template", "table", "environment"])
def test_whatever_changes_results_changes_the_description(change: str, tmp_path: Path) -> None:
    names = {"script": "run.sh", "template": "in.txt", "table": "table.txt"}
    for name in names.values():
        (tmp_path / name).write_text("# 1\n")

    def made(environment: dict[str, str]) -> dict[str, Any]:
        arguments = {"input": "in.txt", "files": ["table.txt"], "folder": tmp_path, "environment": environment}
        return describe(Program("sh run.sh {input}", prior=PRIOR, observables=X, **arguments))

    before = made({})
    assert made({}) == before
    if change in names:
        (tmp_path / names[change]).write_text("# 2\n")
    assert made({"A": "b"} if change == "environment" else {}) != before


def test_bad_rows_cost_themselves_alone_and_keep_their_reasons(tmp_path: Path) -> None:
    script = "case $1 in 0.0*) echo too small >&2; exit 9;; 0.1*) sleep 60;; 0.2*) echo nan,1;; *) echo $1,$2;; esac"
    program = shell(script, timeout=0.3)
    assert program.per_row
    store = simulate(program, 30, tmp_path / "s.zarr", seed=1)
    theta, x = store.read()
    digit = np.floor(10 * theta[:, 0])
    wanted = np.select([digit == 0, digit == 1, digit == 2], ["failed", "timeout", "invalid"], "ok")
    assert set(wanted) == {"failed", "timeout", "invalid", "ok"}
    assert [STATUS[code] for code in store.status] == wanted.tolist()
    np.testing.assert_array_equal(x["x"][wanted == "ok"], theta[wanted == "ok"])
    reasons = np.asarray(store.reasons(slice(0, 30)))
    assert all("exit code 9; stderr ends: too small" in text for text in reasons[wanted == "failed"])
    assert all("took longer than 0.3 s" in text for text in reasons[wanted == "timeout"])


def test_failed_rows_are_tried_again_with_other_seeds(tmp_path: Path) -> None:
    script = "case $3 in *[02468]) exit 1;; esac; echo $1,$2"
    counts = [
        simulate(shell(script, retries=retries), 60, tmp_path / f"{retries}.zarr", seed=1).counts()["ok"]
        for retries in (0, 12)
    ]
    assert 10 < counts[0] < 50
    assert counts[1] == 60


YAML = "simulator:\n  command: sh -c 'echo 1,2'\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (YAML, "c.yaml: `prior`: is required with `command`: give each parameter its distribution"),
        (YAML + "prior:\n  a: {dist: Normall}\n", "c.yaml:4: `prior.a`: prior of `a`: unknown `dist` 'Normall'"),
        (
            YAML + "  tiemout: 3\nprior: {a: {dist: Normal, loc: 0, scale: 1}}\n",
            "c.yaml:3: `simulator.tiemout`: unknown key; did you mean `timeout`?",
        ),
        (
            YAML + "  timeout: -3\nprior: {a: {dist: Normal, loc: 0, scale: 1}}\n",
            "c.yaml:3: `simulator.timeout`: must be greater than 0",
        ),
        (YAML + "  name: two_moons\n", "c.yaml:1: `simulator`: `command` does not go with `name`"),
        (YAML + "  arguments: {a: 1}\n", "c.yaml:1: `simulator`: `arguments` does not go with `command`"),
        ("simulator: {name: two_moons, timeout: 3}\n", "c.yaml:1: `simulator`: `timeout` does not go with `name`"),
        ("simulator: {timeout: 3}\n", "c.yaml:1: `simulator`: must have `name`, or `command`"),
        (
            "simulator: {command: echo {b}}\nprior: {a: {dist: Normal, loc: 0, scale: 1}}\n",
            "c.yaml:1: not valid YAML",
        ),
        (
            'simulator: {command: "echo {b}"}\nprior: {a: {dist: Normal, loc: 0, scale: 1}}\n',
            "c.yaml:1: `simulator`: `command` has `{b}`, which is no name it can have",
        ),
    ],
)
def test_mistakes_in_yaml_are_told_with_their_line(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        make_job(read_source(tmp_path / "c.yaml"))
    (problem,) = caught.value.problems
    assert problem.replace(str(tmp_path / "c.yaml"), "c.yaml").startswith(message)


def test_a_configuration_with_a_program_is_complete_and_holds_from_anywhere(tmp_path: Path) -> None:
    job = example("queue_sh", tmp_path / "here")
    (tmp_path / "config.yaml").write_text(dump(job.config, tmp_path / "config.yaml"))
    again = make_job(read_source(tmp_path / "config.yaml"))
    assert again.config == job.config
    assert describe(again.simulator) == describe(job.simulator)
    assert again.simulator.observables == job.simulator.observables
    assert [v.units for v in again.prior.variables] == ["1/min", "1/min"]


def test_parameters_may_be_joint_in_yaml(tmp_path: Path) -> None:
    joint = "{dist: MultivariateNormal, loc: [0, 0], covariance_matrix: [[1, 0.9], [0.9, 1]]}"
    text = f"simulator: {{command: 'echo {{a}},{{b}},{{c}}'}}\nprior:\n  a, c: {joint}\n  b: {{dist: Normal, loc: 0, scale: 1}}\n"
    (tmp_path / "c.yaml").write_text(text)
    job = make_job(read_source(tmp_path / "c.yaml"))
    assert job.reference is not None
    assert job.reference.load().prior == job.prior == job.simulator.prior
    theta = job.prior.sample(3, np.random.default_rng(0))
    assert job.prior.names == ("a", "c", "b")
    np.testing.assert_array_equal(run(job.simulator, theta)["x"], theta[:, [0, 2, 1]])
