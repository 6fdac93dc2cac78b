r"""Have chains mixed, and what are their draws worth: rank-normalised split R-hat and bulk effective sample size.

With draws replaced by normal scores of their ranks and each of M chains of N draws cut in halves,

.. math:: \hat R = \sqrt{\frac{\frac{N - 1}{N} W + \frac{B}{N}}{W}}, \qquad
    \mathrm{ESS} = \frac{M N}{1 + 2 \sum_{t \ge 1} \hat\rho_t}, \qquad
    \hat\rho_t = 1 - \frac{W - \frac1M \sum_m s_m^2 \hat\rho_{t,m}}{\widehat{\mathrm{var}}^+} ,

W and B the variances within and between chains; R-hat is the larger of that of the draws and that of their distance from the
median; the sum over lags ends with the first negative sum of two neighbours, and these sums are made monotone. Vehtari et
al. (2021), https://arxiv.org/abs/1903.08008; Geyer (1992), Statistical Science 7, 473.

Chains of N draws that have mixed still differ: R-hat is about :math:`\sqrt{1 + 2 \tau / N}` with :math:`\tau` draws to an
independent one, which many short chains show.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

_LEAST_DRAWS = 4


def split_r_hat(draws: Float[Tensor, "draw chain *batch"]) -> Float[Tensor, "*batch"]:
    """Of every quantity; NaN for fewer than four draws a chain or draws that do not vary."""
    if len(draws) < _LEAST_DRAWS:
        return draws.new_full(draws.shape[2:], torch.nan)
    folded = (draws - draws.flatten(0, 1).median(0).values).abs()
    return torch.maximum(_r_hat(_scores(_halves(draws))), _r_hat(_scores(_halves(folded))))


def bulk_ess(draws: Float[Tensor, "draw chain *batch"]) -> Float[Tensor, "*batch"]:
    """Effective sample size of every quantity, over all chains; NaN for fewer than four draws a chain."""
    if len(draws) < _LEAST_DRAWS:
        return draws.new_full(draws.shape[2:], torch.nan)
    scores = _scores(_halves(draws))
    length, chains = scores.shape[:2]
    within, total = _variances(scores)
    correlation = 1 - (within - _autocovariance(scores).mean(1)) / total
    correlation[0] = 1.0
    pairs = correlation[: length // 2 * 2].unflatten(0, (-1, 2)).sum(1)
    positive = (pairs > 0).cumprod(0)
    monotone = pairs.cummin(0).values * positive
    tau = (2 * monotone.sum(0) - 1).clamp(min=1 / torch.log10(torch.tensor(float(length * chains))))
    return length * chains / tau


def _halves(draws: Tensor) -> Tensor:
    half = len(draws) // 2
    return torch.cat([draws[:half], draws[-half:]], 1)


def _scores(draws: Tensor) -> Tensor:
    """Normal scores of ranks over all chains (Blom 1958)."""
    flat = draws.flatten(0, 1)
    ranks = flat.argsort(0).argsort(0).double() + 1
    return torch.special.ndtri((ranks - 0.375) / (len(flat) + 0.25)).reshape(draws.shape)


def _variances(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Within chains, and the estimate of the whole."""
    length = len(scores)
    within = scores.var(0).mean(0)
    return within, (length - 1) / length * within + scores.mean(0).var(0)


def _r_hat(scores: Tensor) -> Tensor:
    within, total = _variances(scores)
    return (total / within).sqrt()


def _autocovariance(scores: Tensor) -> Tensor:
    """Of every chain and lag; that of lag 0 is its variance."""
    length = len(scores)
    spectrum = torch.fft.rfft(scores - scores.mean(0), n=2 * length, dim=0)
    covariance = torch.fft.irfft(spectrum.abs().square(), n=2 * length, dim=0)[:length]
    return covariance / (length - 1)
