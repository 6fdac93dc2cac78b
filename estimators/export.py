r"""The posterior as programs for torch alone: files that run where there is neither simfer nor zuko.

Two functions, each a file of its own, made by ``torch.export`` and read by ``torch.export.load(path).module()``:

- ``sampler``: ``(x, noise) → (theta, log_prob)``, with ``noise ~ N(0, I)`` of shape ``(draw, observation, width)``;
- ``log_prob``: ``(x, theta) → log_prob``, with theta ``(draw, observation, parameter)``.

x is a dict of float32 tensors ``(observation, *shape)`` in the units of the simulations: standardisation, embedding and
the bijection to the prior's support are part of the program. Numbers of draws and of observations are free. The entry
``simfer.json`` of the file says names, order, shapes, units and ``width``.

A mixture takes one number of noise more than there are parameters: its first, :math:`\Phi(n_0)`, chooses the component.
"""

from __future__ import annotations

import copy
import io
import json
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from zuko.distributions import Mixture, NormalizingFlow
from zuko.transforms import FreeFormJacobianTransform

from ..data.errors import ConfigError, UnsupportedError, did_you_mean
from ..data.exporting import new_file
from ..simulators.families import FAMILIES
from ..simulators.prior import Prior
from .direct import DirectEstimator, log_prob
from .symmetry.gnpe import GNPE

if TYPE_CHECKING:
    from .model import Model

WHAT = ("sampler", "log_prob")
SUFFIX = ".pt2"
_DRAWS, _OBSERVATIONS = 3, 2  # of the example that is traced; both become free
_TOLERANCE = 1e-3


def export_posterior(model: Model, path: str | Path, what: str = "sampler") -> None:
    """Write one function of a trained posterior as a program, once it was seen to give what the posterior gives.

    Args:
        model: With a density of theta: a flow of one pass, or a mixture.
        path: A new file, ending in ``.pt2``.
        what: ``sampler`` or ``log_prob``.

    Raises:
        UnsupportedError: The method, the density or the prior cannot be written so; says which.
        ConfigError: No such function, or another ending.
        StoreError: Something is at ``path`` already.
    """
    if what not in WHAT:
        raise ConfigError(f"`what`: unknown `{what}`; {did_you_mean(what, WHAT)}")
    with new_file(Path(path), (SUFFIX,)) as temporary:  # first of all: tracing takes long
        estimator = _on_cpu(model)
        program = _program(_Sampler(estimator) if what == "sampler" else _LogProb(estimator), estimator, what)
        temporary.write_bytes(_packed(program, _described(model, estimator, what)))


def _packed(program: torch.export.ExportedProgram, described: dict[str, Any]) -> bytes:
    packed = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No complete tensor found")  # of bounds that are repeated; all on CPU
        torch.export.save(program, packed, extra_files={"simfer.json": json.dumps(described)})
    return packed.getvalue()


class _Sampler(nn.Module):
    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: dict[str, Tensor], noise: Tensor) -> tuple[Tensor, Tensor]:
        prior: Prior = self.estimator.prior
        z, lp = _from_noise(self.estimator.density(self.estimator.condition(x)), noise)
        theta = prior.from_unconstrained(z)
        return theta, lp.double() + prior.log_abs_det(theta, z.double())


class _LogProb(nn.Module):
    def __init__(self, estimator: Any) -> None:
        super().__init__()
        self.estimator = estimator

    def forward(self, x: dict[str, Tensor], theta: Tensor) -> Tensor:
        estimator, prior = self.estimator, self.estimator.prior
        density = estimator.density(estimator.condition(x))
        if not isinstance(density, Mixture):
            return log_prob(estimator, theta, estimator.condition(x))
        z = prior.to_unconstrained(theta)
        return _mixture_log_prob(density, z.float()).double() + prior.log_abs_det(theta, z)


def _from_noise(density: Any, noise: Tensor) -> tuple[Tensor, Tensor]:
    """z from N(0, I), and its log density."""
    if isinstance(density, Mixture):
        z = _mixture_draw(density, noise)
        return z, _mixture_log_prob(density, z)
    z, ladj = density.transform.inv.call_and_ladj(noise)
    return z, density.base.log_prob(noise) - ladj


def _mixture_draw(density: Mixture, noise: Tensor) -> Tensor:
    upper = density.logits.softmax(-1).cumsum(-1)[..., :-1]
    chosen = (torch.special.ndtr(noise[..., :1]) > upper).sum(-1)
    one_hot = nn.functional.one_hot(chosen, density.logits.shape[-1]).to(noise)
    loc = torch.einsum("...k,...kd->...d", one_hot, density.base.loc)
    scale = torch.einsum("...k,...kde->...de", one_hot, density.base.scale_tril)
    return loc + torch.einsum("...de,...e->...d", scale, noise[..., 1:])


def _mixture_log_prob(density: Mixture, z: Tensor) -> Tensor:
    """The same as `Mixture.log_prob`, in operations whose shapes can stay free."""
    scale, loc = density.base.scale_tril, density.base.loc
    inverse = torch.linalg.solve_triangular(scale, torch.eye(scale.shape[-1]), upper=False)
    standard = torch.einsum("...kde,...ke->...kd", inverse, z.unsqueeze(-2) - loc)
    log_volume = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    normal = torch.distributions.Normal(0.0, 1.0, validate_args=False).log_prob(standard).sum(-1)
    return (density.logits.log_softmax(-1) + normal - log_volume).logsumexp(-1)


def _on_cpu(model: Model) -> Any:
    """A copy of the estimator to be traced.

    Raises:
        UnsupportedError: What it is made of cannot be written.
    """
    estimator = model.estimator
    if isinstance(estimator, GNPE):
        raise UnsupportedError(
            "`export` needs a density of theta given x, and with `symmetry` draws come from Gibbs chains: train with "
            "`symmetry: {by: augmentation}`, or without, and export that"
        )
    if not isinstance(estimator, DirectEstimator):
        raise UnsupportedError(
            f"`export` needs a density of theta given x; `{estimator.settings.method}` has none: use npe"
        )
    for name, item in model.prior.to_json().items():
        family = FAMILIES.get(item["dist"])
        if family is not None and not family.in_torch:
            raise UnsupportedError(
                f"`export` needs quantiles that torch can compute; those of `{name}` ({item['dist']}) come from scipy"
            )
    copied = copy.deepcopy(estimator).cpu().eval().requires_grad_(False)
    density = copied.density(copied.condition(_example(copied, 1)))
    if not _is_one_pass(density):
        settings = estimator.settings
        what = settings.flow.kind if settings.method == "npe" else settings.method
        raise UnsupportedError(
            f"`export` needs one flow of one pass, or one mixture; `{what}` gives a "
            f"{type(density).__name__}: use a single nsf or maf"
        )
    return copied


def _is_one_pass(density: Any) -> bool:
    if isinstance(density, Mixture):
        return isinstance(density.base, torch.distributions.MultivariateNormal)
    steps = getattr(getattr(density, "transform", None), "transforms", [getattr(density, "transform", None)])
    return isinstance(density, NormalizingFlow) and not any(isinstance(t, FreeFormJacobianTransform) for t in steps)


def _program(module: nn.Module, estimator: Any, what: str) -> torch.export.ExportedProgram:
    draws, observations = torch.export.Dim("draws"), torch.export.Dim("observations")
    free = {name: {0: observations} for name in estimator.observables.names}
    second = {0: draws, 1: observations}
    given = _arguments(estimator, what, _DRAWS, _OBSERVATIONS)
    try:
        expected = module(*given)  # fills what the prior keeps, with numbers instead of tracers
        with torch.no_grad():
            program = torch.export.export(module, given, dynamic_shapes=(free, second), strict=False)
    except Exception as error:
        raise UnsupportedError(f"`export`: torch cannot trace this estimator: {error}") from error
    made, other = program.module(), _arguments(estimator, what, 1, 1)
    _require_same(made(*given), expected)
    _require_same(made(*other), module(*other))
    return program


def _require_same(got: Any, expected: Any) -> None:
    for one, two in zip(*(each if isinstance(each, tuple) else (each,) for each in (got, expected)), strict=True):
        if not torch.allclose(one, two, atol=_TOLERANCE, rtol=_TOLERANCE, equal_nan=True):
            raise UnsupportedError("`export`: the program does not give what the posterior gives; please report this")


def _arguments(estimator: Any, what: str, draws: int, observations: int) -> tuple[dict[str, Tensor], Tensor]:
    prior: Prior = estimator.prior
    width = _noise_width(estimator) if what == "sampler" else prior.dim
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(draws, observations, width, generator=generator)
    return _example(estimator, observations), noise if what == "sampler" else prior.from_unconstrained(noise)


def _example(estimator: DirectEstimator, observations: int) -> dict[str, Tensor]:
    """Observations in the middle of the training data; ones, which are in the domain of every transform, where it is not known."""
    return {v.name: _middle(estimator, v.name, v.shape).expand(observations, *v.shape) for v in estimator.observables}


def _middle(estimator: Any, name: str, shape: tuple[int, ...]) -> Tensor:
    seen = getattr(estimator, "seen", None)
    if not seen or name not in seen.low or not seen.low[name].isfinite().all():
        return torch.ones(shape)
    return 0.5 * (seen.low[name] + seen.high[name])


def _noise_width(estimator: DirectEstimator) -> int:
    density = estimator.density(estimator.condition(_example(estimator, 1)))
    return estimator.prior.dim + isinstance(density, Mixture)


def _described(model: Model, estimator: Any, what: str) -> dict[str, Any]:
    inputs = [{"name": v.name, "shape": list(v.shape), "units": v.units} for v in estimator.observables]
    return {
        "simfer": version("simfer"),
        "torch": torch.__version__,
        "what": what,
        "x": inputs,
        "parameters": [{"name": v.name, "units": v.units} for v in model.prior.variables],
        "noise": _noise_width(estimator) if what == "sampler" else None,
        "facts": {key: model.facts[key] for key in ("rows", "seed") if key in model.facts},
    }
