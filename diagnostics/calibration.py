"""The calibration set: known parameters, their data, and draws from the posterior of each; drawn once, read by every check."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from ..data.errors import ShapeError
from ..data.parts import kept
from ..data.ranges import OutsideTrainingWarning
from ..data.results import SAMPLE, columns, draws_dataset, read_tree, tree, write_tree
from ..data.variables import Arrays, Variables
from ..estimators.base import Posterior, XLike


@dataclass(frozen=True, slots=True)
class Fared:
    """How the Markov chains of some pairs fared, as their posterior told it."""

    says: str
    trusted: bool
    numbers: dict[str, Any]

    @staticmethod
    def of(posterior: Posterior) -> Fared | None:
        """Those of its last question; None where it has no chains."""
        told = posterior.diagnostics
        return None if told is None else Fared(str(told), told.trusted, told.to_json())

    @staticmethod
    def packed(posterior: Posterior) -> np.ndarray:
        """The same, to be kept with what it drew."""
        told = Fared.of(posterior)
        return np.array(json.dumps(asdict(told) if told else None))

    @staticmethod
    def unpacked(packed: np.ndarray) -> Fared | None:
        told = json.loads(str(packed))
        return Fared(**told) if told else None

    def __str__(self) -> str:
        return self.says

    def to_json(self) -> dict[str, Any]:
        return self.numbers


@dataclass(frozen=True, slots=True)
class CalibrationSet:
    """Pairs (theta, x) from the joint distribution p(theta) p(x | theta), with draws from q(. | x) of each.

    Attributes:
        parameters: The parameters.
        theta: The truth of each pair.
        x: The data of each pair, all observables flattened.
        draws: Posterior draws of each pair.
        log_q_theta: log q(theta | x) of the truth.
        log_q_draws: log q of the draws.
        fared: How the Markov chains fared that drew, where there are any: those of the first pairs that are not to be trusted,
            if some are not. Is not saved.
    """

    parameters: Variables
    theta: Float[np.ndarray, "pair parameter"]
    x: Float[np.ndarray, "pair feature"]
    draws: Float[np.ndarray, "pair draw parameter"]
    log_q_theta: Float[np.ndarray, "pair"]
    log_q_draws: Float[np.ndarray, "pair draw"]
    fared: Fared | None = None

    def __post_init__(self) -> None:
        pairs, draws, parameters = self.draws.shape
        shapes = {
            "theta": (pairs, parameters),
            "x": (pairs, *self.x.shape[1:]),
            "log_q_theta": (pairs,),
            "log_q_draws": (pairs, draws),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ShapeError(f"`{name}` must have shape {shape} to fit `draws`; got {getattr(self, name).shape}")
        if pairs < 20 or draws < 20:
            raise ShapeError(
                f"`draws` must hold at least 20 pairs of 20 draws to check anything; got {pairs} of {draws}"
            )

    @property
    def pairs(self) -> int:
        return len(self.theta)

    @classmethod
    def draw(
        cls,
        posterior: Posterior,
        theta: np.ndarray,
        x: XLike,
        *,
        draws: int = 1000,
        seed: int = 0,
        parts: Path | None = None,
        progress: Callable[[int], None] = lambda pairs: None,
    ) -> CalibrationSet:
        """Draw from the posterior of every pair, in one vectorised pass, or in portions of `Posterior.at_once`.

        Args:
            posterior: The one to be checked.
            theta: Truths from the prior, shape ``(pair, parameter)``, none of them seen in training.
            x: One row per pair, simulated at ``theta``.
            draws: How many draws per pair.
            seed: Of the draws.
            parts: Folder that keeps each portion, so that the same call goes on where an earlier one was asked to stop.
            progress: Called with the number of pairs drawn since the last call.
        """
        theta = np.asarray(theta, dtype=np.float64)
        rows = posterior.observables.rows(x, finite=not posterior.imputes)
        with warnings.catch_warnings():  # held-out simulations exceed those trained on now and then
            warnings.simplefilter("ignore", OutsideTrainingWarning)
            found: list[Arrays] = []
            for part, own in _portions(len(theta), posterior.at_once, seed):
                asked = {name: values[part] for name, values in rows.items()}
                file = parts / f"{part.start or 0}.npz" if parts else None
                found.append(kept(file, partial(_asked, posterior, theta[part], asked, draws, own)))
                progress(len(found[-1]["draws"]))
        fared = [Fared.unpacked(portion.pop("fared")) for portion in found]
        drawn = {name: np.concatenate([portion[name] for portion in found]) for name in found[0]}
        return cls(
            posterior.parameters,
            theta,
            _flat(rows, posterior.observables),
            **drawn,
            fared=min(fared, key=lambda one: one is None or one.trusted),
        )

    def save(self, path: Path) -> None:
        """Write as a DataTree in Zarr: ``posterior``, ``sample_stats``, ``truth`` and ``observed_data``."""
        import xarray as xr

        lp = xr.Dataset({"lp": (("observation", *SAMPLE), self.log_q_draws[:, None])})
        truth = xr.Dataset(
            {name: ("observation", values) for name, values in columns(self.parameters, self.theta).items()}
        ).assign(lp=("observation", self.log_q_theta))
        data = xr.Dataset({"x": (("observation", "feature"), self.x)})
        posterior = draws_dataset(self.parameters, columns(self.parameters, self.draws))
        groups = {"posterior": posterior, "sample_stats": lp, "truth": truth, "observed_data": data}
        write_tree(tree(groups, {"parameters": self.parameters.to_json()}), path)

    @classmethod
    def load(cls, path: Path) -> CalibrationSet:
        """Read what `save` wrote.

        Raises:
            MissingFileError: Nothing there.
        """
        found = read_tree(path)
        parameters = Variables.from_json(found.attrs["parameters"])
        posterior, truth = found["posterior"], found["truth"]
        return cls(
            parameters,
            np.stack([truth[name].to_numpy() for name in parameters.names], -1),
            found["observed_data"]["x"].to_numpy(),
            np.stack([posterior[name].to_numpy()[:, 0] for name in parameters.names], -1),
            truth["lp"].to_numpy(),
            found["sample_stats"]["lp"].to_numpy()[:, 0],
        )


def _portions(pairs: int, at_once: int | None, seed: int) -> list[tuple[slice, int]]:
    """Which pairs are asked together, and the seed of each portion."""
    if at_once is None or at_once >= pairs:
        return [(slice(pairs), seed)]
    starts = range(0, pairs, at_once)
    seeds = np.random.SeedSequence((seed, 12)).generate_state(len(starts))
    return [(slice(start, start + at_once), int(own)) for start, own in zip(starts, seeds, strict=True)]


def _asked(posterior: Posterior, theta: np.ndarray, x: Arrays, draws: int, seed: int) -> Arrays:
    """Draws of pairs that are asked together, log q of the truths and the draws, and how the chains fared."""
    sampled, log_q_draws = posterior.sample_with_log_prob((draws,), x, seed=seed)
    fared = Fared.packed(posterior)
    log_q_theta = posterior.log_prob_batched(torch.as_tensor(theta)[None], x)[0]
    return {
        "draws": sampled.cpu().numpy().swapaxes(0, 1),
        "log_q_theta": log_q_theta.cpu().numpy(),
        "log_q_draws": log_q_draws.cpu().numpy().T,
        "fared": fared,
    }


def _flat(rows: Arrays, observables: Variables) -> np.ndarray:
    parts = [rows[v.name].reshape(-1, v.size) for v in observables]
    return np.concatenate(parts, axis=1).astype(np.float64)
