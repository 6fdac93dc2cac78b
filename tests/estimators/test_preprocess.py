from __future__ import annotations

import pytest
import torch

from simfer.data.errors import NotFiniteError, ShapeError
from simfer.data.variables import COUNT, Variable, Variables
from simfer.estimators.preprocess import FUNCTIONS, Preprocess

OBSERVABLES = Variables([Variable("y", (2, 3)), Variable("n", (), support=COUNT)])


def rows(n: int = 500) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return {"y": 5 + 3 * torch.randn(n, 2, 3), "n": torch.poisson(torch.full((n,), 4.0))}


def test_features_of_training_rows_have_mean_0_and_sd_1() -> None:
    preprocess = Preprocess(OBSERVABLES, {})
    preprocess.fit(rows())
    features = preprocess(rows())
    assert features.shape == (500, 7)
    torch.testing.assert_close(features.mean(0), torch.zeros(7), atol=1e-5, rtol=0)
    torch.testing.assert_close(features.std(0, correction=0), torch.ones(7), atol=1e-4, rtol=0)


def test_counts_get_log1p_unless_told_otherwise() -> None:
    assert Preprocess(OBSERVABLES, {}).transforms == {"y": "identity", "n": "log1p"}
    assert Preprocess(OBSERVABLES, {"n": "sqrt"}).transforms["n"] == "sqrt"


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_every_transform_is_applied_before_standardisation(name: str) -> None:
    preprocess = Preprocess(Variables([Variable("y")]), {"y": name})  # type: ignore[dict-item]
    x = {"y": torch.linspace(0.5, 4, 50)}
    preprocess.fit(x)
    expected = FUNCTIONS[name](x["y"])
    expected = (expected - expected.mean()) / expected.std(correction=0)
    torch.testing.assert_close(preprocess(x)[:, 0], expected, atol=1e-5, rtol=1e-5)


def test_a_constant_entry_becomes_zero() -> None:
    preprocess = Preprocess(Variables([Variable("y", (2,))]), {})
    x = {"y": torch.tensor([[1.0, 7.0], [2.0, 7.0]])}
    preprocess.fit(x)
    assert preprocess(x)[:, 1].tolist() == [0.0, 0.0]


def test_imputed_entries_are_the_mean_and_do_not_move_it() -> None:
    whole = {"y": torch.tensor([1.0, 2.0, 6.0])}
    holed = {"y": torch.tensor([1.0, torch.nan, 2.0, 6.0])}
    fitted = [Preprocess(Variables([Variable("y")]), {}, impute=True) for _ in range(2)]
    fitted[0].fit(whole)
    fitted[1].fit(holed)
    assert torch.equal(fitted[0].mean, fitted[1].mean)
    assert torch.equal(fitted[0].sd, fitted[1].sd)
    assert fitted[1](holed)[1].item() == 0.0


def test_a_transform_that_does_not_fit_is_named() -> None:
    preprocess = Preprocess(Variables([Variable("y")]), {"y": "log"})
    with pytest.raises(NotFiniteError, match="`y` is not finite after `log` in 1 of 2 rows"):
        preprocess.fit({"y": torch.tensor([1.0, 0.0])})
    with pytest.raises(ShapeError, match="no observable `z`"):
        Preprocess(OBSERVABLES, {"z": "log"})


def test_whitened_features_are_uncorrelated_with_unit_variance() -> None:
    x = {"y": torch.cumsum(rows()["y"], -1), "n": rows()["n"]}
    preprocess = Preprocess(OBSERVABLES, {}, whiten=True)
    preprocess.fit(x)
    features = preprocess(x).double()
    torch.testing.assert_close(features.T @ features / len(features), torch.eye(7).double(), atol=1e-3, rtol=0)


def test_whitening_survives_entries_that_are_copies() -> None:
    preprocess = Preprocess(Variables([Variable("y", (2,))]), {}, whiten=True)
    x = {"y": torch.linspace(-1, 1, 50)[:, None].repeat(1, 2)}
    preprocess.fit(x)
    assert torch.isfinite(preprocess(x)).all()
    assert preprocess(x).abs().max() < 10
