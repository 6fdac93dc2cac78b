"""Draws of autoregressive flows: the inverse that zuko computes in as many passes as there are parameters."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from zuko.flows.autoregressive import MAF, MaskedAutoregressiveTransform
from zuko.transforms import MonotonicRQSTransform

from simfer.estimators.autoregressive import IncrementalTransform
from simfer.estimators.flows import build_flow
from simfer.estimators.settings import FlowSettings

SPLINE: dict[str, Any] = {
    "univariate": partial(MonotonicRQSTransform, bound=5.0),
    "shapes": [(8,), (8,), (7,)],
}
UNIVARIATE: dict[str, dict[str, Any]] = {"affine": {}, "spline": SPLINE}


def transform(
    features: int, context: int, kind: str, hidden: tuple[int, ...] = (20, 30), **given: Any
) -> IncrementalTransform:
    torch.manual_seed(features)
    order = torch.randperm(features)
    made = IncrementalTransform(
        features, context, order=order, hidden_features=hidden, activation=torch.nn.SiLU, **UNIVARIATE[kind], **given
    ).double()
    for weights in made.parameters():
        weights.data.mul_(2)
    return made


@pytest.mark.parametrize("kind", UNIVARIATE)
@pytest.mark.parametrize(
    ("features", "context", "passes"), [(2, 3, None), (7, 4, None), (5, 0, None), (6, 3, 2), (7, 2, 3)]
)
def test_inverse_is_zukos(features: int, context: int, passes: int | None, kind: str) -> None:
    lazy = transform(features, context, kind, passes=passes)
    c = torch.randn(4, context, dtype=torch.float64) if context else None
    y = torch.randn(3, 4, features, dtype=torch.float64)
    expected = MaskedAutoregressiveTransform.forward(lazy, c)._inverse(y)
    torch.testing.assert_close(lazy(c).inv(y), expected)
    torch.testing.assert_close(lazy(c)(lazy(c).inv(y)), y)


@pytest.mark.parametrize("kind", UNIVARIATE)
@pytest.mark.parametrize("hidden", [(), (1,), (3,), (2, 5), (4, 4, 4)])
def test_inverse_of_narrow_networks_is_zukos(hidden: tuple[int, ...], kind: str) -> None:
    """With fewer units than parameters, and with none."""
    lazy = transform(6, 2, kind, hidden)
    c, y = torch.randn(4, 2, dtype=torch.float64), torch.randn(3, 4, 6, dtype=torch.float64)
    torch.testing.assert_close(lazy(c).inv(y), MaskedAutoregressiveTransform.forward(lazy, c)._inverse(y))
    torch.testing.assert_close(lazy(c)(lazy(c).inv(y)), y)


@pytest.mark.parametrize("kind", UNIVARIATE)
def test_gradients_of_draws_are_exact(kind: str) -> None:
    lazy = transform(3, 2, kind)
    c = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)
    y = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda y, c: lazy(c).inv(y), (y, c))


def test_no_unit_is_evaluated_twice() -> None:
    """The sizes of all activations sum up to one pass of the network."""
    lazy, seen = transform(6, 3, "affine"), 0

    def count(module: Any, given: Any, values: torch.Tensor) -> None:
        nonlocal seen
        seen += len(values)

    hooks = [layer.register_forward_hook(count) for layer in lazy.hyper if isinstance(layer, torch.nn.SiLU)]
    lazy(torch.randn(1, 3, dtype=torch.float64)).inv(torch.randn(5, 1, 6, dtype=torch.float64))
    assert len(hooks) == 2
    assert seen == 20 + 30


@pytest.mark.parametrize("features", [1, 2, 5])
def test_weights_are_those_of_zukos_flow(features: int) -> None:
    """Name by name and number by number: models saved before load."""
    torch.manual_seed(0)
    ours = build_flow(FlowSettings(kind="maf", transforms=3, hidden=(16, 16)), features, 4)
    torch.manual_seed(0)
    zukos = MAF(features, 4, transforms=3, hidden_features=(16, 16), activation=torch.nn.SiLU)
    assert ours.state_dict().keys() == zukos.state_dict().keys()
    for name, weights in zukos.state_dict().items():
        assert torch.equal(ours.state_dict()[name], weights)
