"""The laws of every embedding, and of several at once: a new kind is tested by adding a line to KINDS."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

import simfer
from simfer.data.errors import ConfigError, ModelFormatError, ShapeError, UnknownNameError
from simfer.data.files import fingerprint
from simfer.data.variables import Variable, Variables
from simfer.estimators.embeddings.build import NETWORKS, build_embedding, build_network
from simfer.estimators.embeddings.circular import CircularCNN
from simfer.estimators.embeddings.own import imported, with_classes
from simfer.estimators.embeddings.plan import plan, scaling
from simfer.estimators.embeddings.points3d import Points3d
from simfer.estimators.model import Model, build_estimator, load_model
from simfer.estimators.npe import NPE
from simfer.estimators.preprocess import build_preprocess
from simfer.estimators.settings import (
    NETWORK_OPTIONS,
    EmbeddingSettings,
    EstimatorSettings,
    FlowSettings,
    NetworkSettings,
    TrainingSettings,
)
from simfer.simulators.prior import Prior

PRIOR = Prior({"a": torch.distributions.Normal(0.0, 1.0), "b": torch.distributions.Normal(0.0, 1.0)})


class Means(nn.Module):
    """A network of one's own: a linear layer over the mean of the first axis."""

    def __init__(self, shape: tuple[int, ...], width: int = 3) -> None:
        super().__init__()
        self.linear = nn.Linear(int(np.prod(shape[1:])), width)

    def forward(self, x: torch.Tensor, present: torch.Tensor | None = None) -> torch.Tensor:
        weights = torch.ones(x.shape[:2]) if present is None else present.float()
        weights = weights / weights.sum(1, keepdim=True).clamp(min=1)
        return self.linear(torch.einsum("rm,rm...->r...", weights, x).flatten(1))


SMALL = {"features": 4, "hidden": (8,)}
ATTENTION = {"features": 4, "width": 8, "heads": 2, "layers": 1}
CONVOLUTION = {**SMALL, "channels": (4, 6)}
KINDS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "none": ({"kind": "none"}, (6,)),
    "mlp": ({"kind": "mlp", **SMALL}, (3, 2)),
    "resnet": ({"kind": "resnet", "features": 4, "width": 8}, (6,)),
    "cnn1d": ({"kind": "cnn1d", **CONVOLUTION}, (12,)),
    "cnn1d, channels": ({"kind": "cnn1d", **CONVOLUTION, "channel_axis": "first"}, (2, 7)),
    "cnn2d": ({"kind": "cnn2d", **CONVOLUTION}, (6, 5)),
    "cnn2d, channels first": ({"kind": "cnn2d", **CONVOLUTION}, (2, 6, 5)),
    "cnn2d, channels last": ({"kind": "cnn2d", **CONVOLUTION, "channel_axis": "last"}, (6, 5, 2)),
    "resnet2d": ({"kind": "resnet2d", **CONVOLUTION}, (6, 5)),
    "circular1d": ({"kind": "circular1d", **CONVOLUTION}, (12,)),
    "circular1d, channels": ({"kind": "circular1d", **CONVOLUTION, "channel_axis": "first"}, (2, 7)),
    "circular2d": ({"kind": "circular2d", **CONVOLUTION}, (6, 5)),
    "circular2d, invariant": ({"kind": "circular2d", **CONVOLUTION, "position": False}, (2, 6, 5)),
    "deep_set": ({"kind": "deep_set", **SMALL}, (5, 2)),
    "points3d": ({"kind": "points3d", **SMALL}, (5, 3)),
    "set_transformer": ({"kind": "set_transformer", **ATTENTION}, (5, 2)),
    "transformer": ({"kind": "transformer", **ATTENTION}, (5, 2)),
    "gru": ({"kind": "gru", "features": 4, "width": 8}, (5, 2)),
    "own": ({"kind": Means}, (5, 2)),
}
MASKED = ("cnn1d", "deep_set", "points3d", "set_transformer", "transformer", "gru", "own")
SETS = ("deep_set", "points3d", "set_transformer", "own")


def options(kind: str, **more) -> EmbeddingSettings:
    return EmbeddingSettings(**KINDS[kind][0], **more)


def embedded(kind: str, *others: Variable, **more) -> NPE:
    """An estimator whose x is one observable of the kind's shape, and others."""
    observables = Variables([Variable("x", KINDS[kind][1]), *others])
    settings = EstimatorSettings(
        embedding=options(kind, **more), flow=FlowSettings(kind="maf", transforms=1, hidden=(8,))
    )
    estimator = build_estimator(PRIOR, observables, settings, seed=1)
    assert isinstance(estimator, NPE)
    return estimator


def numbers(rows: int, shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, *shape, generator=torch.Generator().manual_seed(seed))


def simulated(rows: int, shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Noise with a's mean and b's logarithm of the standard deviation; a context that means nothing."""
    rng = np.random.default_rng(seed)
    theta = PRIOR.sample(rows, rng)
    ones = (slice(None), *(None,) * len(shape))
    x = theta[:, 0][ones] + np.exp(0.3 * theta[:, 1])[ones] * rng.standard_normal((rows, *shape))
    return theta, {"x": x, "c": rng.standard_normal(rows)}


CIRCULAR = {name: (1,) if "1d" in name else (1, 2) for name in KINDS if name.startswith("circular")}


@pytest.mark.parametrize("kind", CIRCULAR)
def test_summaries_of_a_circle_move_along_with_shifts(kind: str) -> None:
    """By whole bins: averages stay, phases turn, and without phases nothing changes."""
    given, shape = KINDS[kind]
    first = 0 if len(shape) == len(CIRCULAR[kind]) else 1  # behind the channels
    x, axes = 5 * numbers(5, shape), tuple(first + axis for axis in CIRCULAR[kind])
    network = build_network(shape, EmbeddingSettings(**given)).eval()
    assert isinstance(network, CircularCNN)
    blind = build_network(shape, EmbeddingSettings(**given | {"position": False})).eval()
    before, phases = network.parts(x)
    sides = [shape[axis - 1] for axis in axes]
    for shifts in ([1] * len(axes), [3, 4][: len(axes)], [-2] * len(axes)):
        moved = x.roll(shifts, axes)
        after, turned = network.parts(moved)
        torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(blind(moved), blind(x), atol=1e-5, rtol=1e-5)
        if given.get("position", True):
            turns = phases.abs() * torch.polar(torch.ones(()), phases.angle() + _turns(phases.shape[1], shifts, sides))
            torch.testing.assert_close(turned, turns, atol=1e-5, rtol=1e-5)
            assert (network(moved) - network(x)).abs().max() > 1e-4


@pytest.mark.parametrize("others", [0, 2])
def test_summaries_of_points_turn_with_them(others: int) -> None:
    """Scalars stay, vectors turn, the centroid moves along; and an estimator that is to see no position sees none."""
    turn, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    turn, by = turn * torch.linalg.det(turn), torch.tensor([1.0, -2.0, 0.5])
    x = numbers(6, (7, 3 + others))
    moved = torch.cat([x[..., :3] @ turn.T + by, x[..., 3:]], -1)
    network = build_network((7, 3 + others), EmbeddingSettings(kind="points3d", **SMALL)).eval()
    assert isinstance(network, Points3d)
    (scalars, vectors), (after, turned) = network.parts(x), network.parts(moved)
    torch.testing.assert_close(after, scalars, atol=1e-5, rtol=1e-5)
    expected = vectors @ turn.T
    expected[:, -1] += by
    torch.testing.assert_close(turned, expected, atol=1e-5, rtol=1e-5)
    assert (network(moved) - network(x)).abs().max() > 1e-3
    settings = EstimatorSettings(embedding=EmbeddingSettings(kind="points3d", position=False, **SMALL))
    estimator = build_estimator(PRIOR, Variables([Variable("x", (7, 3 + others))]), settings, seed=1)
    assert isinstance(estimator, NPE)
    estimator.preprocess.fit({"x": x.exp()})
    moved[..., :3] = x[..., :3].exp() @ turn.T + by
    seen = (torch.cat([part, x[..., 3:]], -1) for part in (x[..., :3].exp(), moved[..., :3]))
    first, second = (estimator.condition({"x": part}) for part in seen)
    torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-4)


def test_the_network_that_the_documentation_shows_is_invariant_under_quarter_turns(tmp_path: Path) -> None:
    """It is imported by its name, as a configuration would."""
    shown = (Path(__file__).parents[2] / "docs" / "equivariance.md").read_text()
    code = shown.partition("# nets.py\n")[2].partition("```")[0]
    (tmp_path / "turned_nets.py").write_text("import math\n\nimport torch\n\n\n" + code)
    settings = EmbeddingSettings(kind="turned_nets.py:Turned", arguments={"width": 16})
    given = with_classes(settings, imported(settings, tmp_path))
    network, x = build_network((8, 8), given), numbers(5, (8, 8))
    torch.testing.assert_close(network(x.rot90(1, (1, 2))), network(x), atol=1e-5, rtol=1e-5)
    assert network.features == 8


def _turns(phases: int, shifts: list[int], sides: list[int]) -> torch.Tensor:
    """Angles by which phases turn: for each axis those of all weights, for each of these harmonics 1, 2, 4, ..."""
    harmonics = [[k for k in (1, 2, 4, 8) if k <= max(1, side // 4)] for side in sides]
    copies = phases // sum(map(len, harmonics))
    each = [
        2 * np.pi / side * shift * torch.tensor(ks).repeat(copies)
        for ks, shift, side in zip(harmonics, shifts, sides, strict=True)
    ]
    return torch.cat(each).float()


def test_every_kind_is_tested() -> None:
    assert {settings["kind"] for settings, _ in KINDS.values()} == {*NETWORKS, Means}
    assert set(NETWORK_OPTIONS) == set(NETWORKS)


@pytest.mark.parametrize("kind", KINDS)
def test_summaries_have_the_shape_that_was_said_and_belong_to_their_row(kind: str) -> None:
    settings, shape = options(kind), KINDS[kind][1]
    network = build_network(shape, settings).eval()
    x = numbers(7, shape)
    summaries = network(x)
    assert summaries.shape == (7, network.features)
    assert network.features == (4 if kind not in ("none", "own") else {"none": 6, "own": 3}[kind])
    torch.testing.assert_close(network(x[2:3]), summaries[2:3], atol=1e-5, rtol=1e-4)
    assert torch.equal(network(x), summaries)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_gradient_reaches_every_parameter(kind: str, masked: bool) -> None:
    if kind == "none" or (masked and kind not in MASKED):
        pytest.skip("no parameters" if kind == "none" else "takes no mask")
    others = [Variable("n")] if masked else []
    estimator = embedded(kind, *others, **({"mask": "n"} if masked else {}))
    x = {"x": numbers(20, KINDS[kind][1]), **({"n": torch.arange(20.0) % 6} if masked else {})}
    estimator.preprocess.fit(x)
    weights = numbers(20, estimator.condition(x).shape[1:], seed=1)
    (estimator.condition(x) * weights).sum().backward()
    for name, parameter in estimator.embedding.named_parameters():
        assert parameter.grad is not None, name
        assert (parameter.grad != 0).any(), name


@pytest.mark.parametrize("kind", SETS)
@pytest.mark.parametrize("masked", [False, True])
def test_order_of_members_does_not_matter_in_sets(kind: str, masked: bool) -> None:
    """From x on, so that standardisation takes part."""
    estimator, x = fitted(kind, masked)
    order = torch.tensor([3, 1, 4, 0, 2])
    permuted = {name: values[:, order] if values.ndim > 1 else values for name, values in x.items()}
    torch.testing.assert_close(estimator.condition(permuted), estimator.condition(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["cnn1d", "transformer", "gru"])
def test_order_of_steps_matters_in_series(kind: str) -> None:
    estimator, x = fitted(kind, masked=False)
    reversed_x = {"x": x["x"].flip(1)}
    assert (estimator.condition(reversed_x) - estimator.condition(x)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", MASKED)
@pytest.mark.parametrize("mask", ["number", "each"])
def test_what_is_absent_does_not_matter(kind: str, mask: str) -> None:
    """Neither in what is learned of x nor in the summaries, down to the last bit; and what is present does."""
    shape = KINDS[kind][1]
    count = torch.arange(40) % (shape[0] + 1)
    present = torch.arange(shape[0]) < count[:, None]
    observables = (Variable("m", () if mask == "number" else (shape[0],)), Variable("c"))
    x = {"x": numbers(40, shape), "m": count.float() if mask == "number" else present.float(), "c": numbers(40, ())}
    absent = ~present.reshape(40, shape[0], *(1 for _ in shape[1:]))
    summaries = []
    for padding in (0.0, 1e6):
        estimator = embedded(kind, *observables, mask="m")
        padded = {**x, "x": x["x"].masked_fill(absent, padding)}
        estimator.preprocess.fit(padded)
        summaries.append(estimator.condition(padded))
    assert torch.equal(*summaries)
    assert summaries[0].isfinite().all()
    moved = {**x, "x": x["x"] + 1.0}
    assert ((estimator.condition(moved) - summaries[0]).abs().amax(1) > 1e-6).tolist() == (count > 0).tolist()


def test_a_set_of_two_is_what_it_is_whatever_room_there_is() -> None:
    """Padded to five or to nine: the same weights give the same summary."""
    settings = NetworkSettings(kind="set_transformer", **ATTENTION, mask="n")
    torch.manual_seed(0)
    network = build_network((9, 2), settings).eval()
    x = torch.cat([numbers(3, (2, 2)), torch.zeros(3, 7, 2)], 1)
    present = (torch.arange(9) < 2).expand(3, 9)
    torch.testing.assert_close(network(x[:, :5], present[:, :5]), network(x, present), atol=1e-6, rtol=1e-5)


def fitted(kind: str, masked: bool) -> tuple[NPE, dict[str, torch.Tensor]]:
    shape = KINDS[kind][1]
    x = {"x": numbers(30, shape) * (1 + torch.arange(shape[0])).reshape(-1, *(1 for _ in shape[1:]))}
    if masked:
        x["m"] = (numbers(30, shape[:1], seed=2) > 0).float()
    others = [Variable("m", shape[:1])] if masked else []
    estimator = embedded(kind, *others, **({"mask": "m"} if masked else {}))
    estimator.preprocess.fit(x)
    return estimator.eval(), x


@pytest.fixture(scope="module", params=KINDS)
def trained(request: pytest.FixtureRequest) -> tuple[str, Model, dict[str, np.ndarray]]:
    kind = request.param
    theta, x = simulated(600, KINDS[kind][1])
    return kind, short_training(kind, theta, x), x


def short_training(kind: str, theta: np.ndarray, x: dict[str, np.ndarray]) -> Model:
    settings = EstimatorSettings(embedding=options(kind), flow=FlowSettings(kind="maf", transforms=1, hidden=(16,)))
    training = TrainingSettings(epochs=3, batch_size=60, learning_rate=1e-2)
    return simfer.train(theta, x, PRIOR, estimator=settings, training=training)


def test_training_learns_and_is_reproducible(trained) -> None:
    kind, model, _ = trained
    losses = model.facts["loss"]["validation"]
    assert losses[-1] < losses[0]
    assert short_training(kind, *simulated(600, KINDS[kind][1])).facts["loss"] == model.facts["loss"]
    assert model.facts["transforms"] == {"x": "identity", "c": "identity"} == model.estimator.transforms


def test_save_and_load_change_nothing(trained, tmp_path: Path) -> None:
    _, model, x = trained
    model.save(tmp_path)
    loaded = load_model(tmp_path, modules={"Means": Means})
    some = {name: values[:5] for name, values in x.items()}
    draws = model.posterior.sample_batched((10,), some, seed=0)
    assert torch.equal(loaded.posterior.sample_batched((10,), some, seed=0), draws)
    assert torch.equal(loaded.posterior.log_prob_batched(draws, some), model.posterior.log_prob_batched(draws, some))
    assert loaded.estimator.transforms == model.estimator.transforms


def test_a_model_imports_nothing(tmp_path: Path) -> None:
    """Neither what it names nor anything else: the class must be handed over."""
    embedded_model("own").save(tmp_path / "model")
    with pytest.raises(ModelFormatError, match=r"a class of your own, and a model imports nothing: hand it over"):
        load_model(tmp_path / "model")
    assert isinstance(load_model(tmp_path / "model", modules={f"{__name__}:Means": Means}), Model)
    harm = tmp_path / "harm.py"
    harm.write_text(f"open({str(tmp_path / 'harmed')!r}, 'w')\nclass Means: ...\n")
    described = json.loads((tmp_path / "model" / "model.json").read_text())
    described["estimator"]["embedding"]["kind"] = f"{harm}:Means"
    del described["sha256"]  # forged along with the rest
    (tmp_path / "model" / "model.json").write_text(json.dumps({**described, "sha256": fingerprint(described)}))
    for modules in (None, {"Other": Means}):
        with pytest.raises(ModelFormatError, match="imports nothing"):
            load_model(tmp_path / "model", modules=modules)
    assert not (tmp_path / "harmed").exists()


def embedded_model(kind: str) -> Model:
    return Model(embedded(kind), PRIOR)


def test_a_class_named_in_a_file_is_trained_by_who_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(
        "import torch\n\n"
        "class Sum(torch.nn.Module):\n"
        "    def __init__(self, shape, power=1):\n"
        "        super().__init__()\n"
        "        self.power, self.linear = power, torch.nn.Linear(shape[-1], 2)\n\n"
        "    def forward(self, x):\n"
        "        return self.linear(x.sum(1) ** self.power)\n"
    )
    monkeypatch.chdir(tmp_path)
    theta, x = simulated(100, (4, 2))
    settings = EstimatorSettings(
        embedding=EmbeddingSettings(observables={"x": NetworkSettings(kind="nets.py:Sum", arguments={"power": 2})})
    )
    model = simfer.train(theta, x, PRIOR, estimator=settings, training=TrainingSettings(epochs=1))
    model.save("model")
    loaded = load_model("model", modules={"nets.py:Sum": type(model.estimator.embedding.networks[0].network)})
    assert loaded.estimator.settings.model_dump() == model.estimator.settings.model_dump()
    assert torch.equal(
        loaded.posterior.sample((5,), x | {"x": x["x"][0], "c": x["c"][0]}, seed=0),
        model.posterior.sample((5,), x | {"x": x["x"][0], "c": x["c"][0]}, seed=0),
    )


def test_streamed_rows_have_the_same_normalisation(line, tmp_path: Path) -> None:
    """x of `line` as a set of two; choosing transforms takes rows in whatever portions they come."""
    store = simfer.simulate(line, 1000, tmp_path / "line.zarr")
    estimator = EstimatorSettings(
        embedding=EmbeddingSettings(kind="deep_set", **SMALL),
        flow=FlowSettings(kind="maf", transforms=1, hidden=(8,)),
        transforms={"x": "rank"},
    )
    memory, streamed = (
        simfer.train(store, estimator=estimator, training=TrainingSettings(epochs=1, loader=kind))
        for kind in ("memory", "stream")
    )
    for name, values in memory.estimator.preprocess.state_dict().items():
        torch.testing.assert_close(streamed.estimator.preprocess.state_dict()[name], values)


def test_context_goes_past_the_image() -> None:
    """The observable with the axes of an image gets the network; few other numbers come as they are, many by an MLP."""
    observables = Variables([Variable("c"), Variable("image", (6, 5)), Variable("d", (3,)), Variable("e", (20,))])
    parts = plan(options("cnn2d"), observables)
    assert [[v.name for v in part.variables] for part in parts] == [["image"], ["c", "d", "e"]]
    assert [part.settings.name for part in parts] == ["cnn2d", "mlp"]
    assert plan(options("cnn2d"), Variables(observables.items[:3]))[1].settings.name == "none"
    assert scaling(options("cnn2d"), observables)["image"].standardise == "channel"
    assert scaling(options("cnn2d"), observables)["d"].standardise == "entry"
    embedding, features = build_embedding(options("cnn2d"), Variables(observables.items[:3]))
    x = numbers(2, (34,))
    assert features == 4 + 4
    torch.testing.assert_close(embedding(x)[:, 4:], x[:, [0, 31, 32, 33]])


def test_several_networks_and_a_head() -> None:
    settings = EmbeddingSettings(
        observables={"image": NetworkSettings(kind="cnn2d", **CONVOLUTION), "s": NetworkSettings(kind="gru", width=8)},
        head=NetworkSettings(features=5, hidden=(8,)),
    )
    observables = Variables([Variable("s", (7,)), Variable("image", (6, 5)), Variable("c")])
    embedding, features = build_embedding(settings, observables)
    assert features == 5
    assert embedding(numbers(3, (38,))).shape == (3, 5)
    again = EmbeddingSettings.model_validate(json.loads(settings.model_dump_json()))
    assert again == settings


def test_settings_write_only_what_belongs_to_the_kind() -> None:
    dense = EmbeddingSettings(hidden=(64, 64)).model_dump(mode="json")
    assert dense == {"kind": "mlp", "features": 32, "hidden": [64, 64]}
    for settings, _ in KINDS.values():
        written = EmbeddingSettings(**settings).model_dump(mode="json")
        assert EmbeddingSettings(**written).model_dump(mode="json") == written


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"kind": "mpl"}, "unknown network `mpl`; did you mean `mlp`"),
        ({"kind": "mlp", "kernel": 5}, "`kernel` is no option of `mlp`"),
        ({"kind": "deep_set", "standardise": "entry"}, "must be channel or all for `deep_set`"),
        ({"kind": "cnn2d", "kernel": 4}, "`kernel` must be odd; got 4"),
        ({"kind": "transformer", "width": 10}, "`width` must be a multiple of `heads`"),
        ({"kind": "gru", "observables": {"x": {}}}, "`kind` must be left out"),
        ({"head": {"kind": "cnn1d"}}, "`head` must be mlp or resnet; got cnn1d"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(settings: dict[str, Any], match: str) -> None:
    with pytest.raises(ValidationError, match=match):
        EmbeddingSettings.model_validate(settings)


@pytest.mark.parametrize(
    ("settings", "shapes", "match"),
    [
        ({"kind": "cnn2d"}, {"x": (7,)}, r"`cnn2d` needs an observable of 2 axes, .*; x has `x` \(7,\)"),
        ({"kind": "gru"}, {"x": (7,), "y": (7,)}, r"`x` \(7,\), `y` \(7,\): say which one, or one network each"),
        (
            {"observables": {"x": {"kind": "cnn2d"}}},
            {"x": (7,), "y": (7,)},
            r"`cnn2d` needs an observable of 2 axes, .*; `x` has shape \(7,\)",
        ),
        ({"observables": {"z": {}}}, {"x": (7,)}, "no observable `z`"),
        ({"kind": "deep_set", "mask": "z"}, {"x": (7,), "n": ()}, "`mask` of `x` has no observable `z`"),
        (
            {"kind": "deep_set", "mask": "n"},
            {"x": (7, 2), "n": (2,)},
            r"0 and 1 for each, \(7,\); `n` has shape \(2,\)",
        ),
        ({"kind": Means}, {"x": (7,), "y": (7,)}, "needs an observable of exactly one observable|say which one"),
    ],
)
def test_networks_that_do_not_fit_x_are_refused(
    settings: dict[str, Any], shapes: dict[str, tuple[int, ...]], match: str
) -> None:
    observables = Variables(Variable(name, shape) for name, shape in shapes.items())
    with pytest.raises(ShapeError, match=match):
        build_preprocess(observables, EstimatorSettings(embedding=EmbeddingSettings(**settings)))


class Scalar(nn.Module):
    """Gives one number where a vector is needed."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1)


class NoNetwork:
    def __init__(self, shape: tuple[int, ...]) -> None: ...


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"kind": Scalar}, ShapeError, r"must give \(rows, features\) for x of shape \('rows', 5, 2\); got \(2,\)"),
        ({"kind": NoNetwork}, ConfigError, "must make a torch.nn.Module; got NoNetwork"),
        ({"kind": Means, "arguments": {"depth": 3}}, ConfigError, "cannot be made of shape .*unexpected keyword"),
        ({"kind": "nowhere:Net"}, UnknownNameError, "a model imports nothing"),
    ],
)
def test_classes_that_are_no_networks_are_refused(settings: dict[str, Any], error: type[Exception], match: str) -> None:
    with pytest.raises(error, match=match):
        build_embedding(EmbeddingSettings(**settings), Variables([Variable("x", (5, 2))]))
    assert "nowhere" not in sys.modules


@pytest.mark.slow
def test_an_image_is_read_better_by_a_cnn() -> None:
    """A source of known shape in 16 × 16 pixels, psf and background as context: 1,000 images, a few epochs."""
    from simfer.simulators.point_source import PointSource

    simulator, rng = PointSource(), np.random.default_rng(0)
    theta, drawn = simulator.prior.sample(1000, rng), simulator.context.sample(1000, rng)
    context = {name: drawn[:, i] for i, name in enumerate(simulator.context.names)}
    x = {**simulator.simulate(theta, rng, context), **context}
    observables = Variables([*simulator.observables, *simulator.context.variables])
    best = {}
    for kind in ("mlp", "cnn2d"):
        model = simfer.train(
            theta,
            x,
            simulator.prior,
            observables=observables,
            estimator=EstimatorSettings(
                embedding=EmbeddingSettings(kind=kind), flow=FlowSettings(kind="maf", transforms=2, hidden=(32, 32))
            ),
            training=TrainingSettings(epochs=8, batch_size=50, learning_rate=3e-3),
        )
        best[kind] = min(model.facts["loss"]["validation"])
    assert best["cnn2d"] < best["mlp"] - 0.5
