r"""What observation scale a weighted loss implies.

A loss "reconstruction error + weight times KL" is, up to a factor and a constant, the evidence lower bound of a decoder
whose noise nobody wrote down. With D numbers scored in a row and the divergence summed over the latent's dimensions:

====================================================  ========================================
loss of a row                                         implied decoder
====================================================  ========================================
:math:`\sum_i (a_i-\hat a_i)^2 + \lambda\,KL`         Gaussian, :math:`\sigma^2 = \lambda/2`
:math:`\frac1D\sum_i (a_i-\hat a_i)^2 + \lambda\,KL`  Gaussian, :math:`\sigma^2 = \lambda D/2`
:math:`\sum_i |a_i-\hat a_i| + \lambda\,KL`           Laplace, :math:`b = \lambda`
:math:`\frac1D\sum_i |a_i-\hat a_i| + \lambda\,KL`    Laplace, :math:`b = \lambda D`
====================================================  ========================================

because a Gaussian's negative log-likelihood is :math:`\frac1{2\sigma^2}\sum_i(a_i-\hat a_i)^2` and a Laplace's
:math:`\frac1b\sum_i|a_i-\hat a_i|`, each with a constant; dividing the loss by :math:`\lambda` leaves KL with weight
one. The scale is in the units in which the error is taken: of actions normalised to a standard deviation of one, a
scale of one or more says that noise as wide as the data themselves explains them, and the latent has nothing to add.
(The Gaussian case: C. Doersch, "Tutorial on variational autoencoders", 2016.)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from latentpg.errors import OptionError

ERRORS = {"l2": "gaussian", "l1": "laplace"}
"""Errors by name, and the noise each implies."""

REDUCTIONS = ("sum", "mean")
"""Whether a row's error is the sum over its D numbers or their mean."""


@dataclass(frozen=True)
class ImpliedScale:
    """The noise that a loss implies: its family, its scale (sigma, or a Laplace's b) and its standard deviation."""

    family: str
    scale: float
    std: float
    told: str

    def lines(self) -> list[str]:
        """Say it in words."""
        name = "sigma" if self.family == "gaussian" else "b"
        return [
            f"{self.told} is the evidence lower bound of {self.family} noise with {name} = {self.scale:.4g}, "
            f"a standard deviation of {self.std:.4g} in the units of the error"
        ]


def implied_scale(
    error: str, *, kl_weight: float | int, dimensions: int = 1, reduction: str = "mean", error_weight: float | int = 1.0
) -> ImpliedScale:
    r"""Say what noise ``error_weight * error + kl_weight * KL`` implies, with ``dimensions`` numbers D in a row.

    ``reduction="mean"`` takes a row's error as the mean over its D numbers (for a chunk of H actions of A entries,
    D = HA), ``"sum"`` as their sum.

    >>> implied_scale("l2", kl_weight=2.0, reduction="sum").scale
    1.0
    >>> implied_scale("l1", kl_weight=10.0, dimensions=200).lines()[0][:68]
    'l1 (mean of 200) + 10 KL is the evidence lower bound of laplace nois'
    """
    _check(error, reduction, kl_weight, error_weight, dimensions)
    ratio = kl_weight / error_weight * (dimensions if reduction == "mean" else 1)
    factor = "" if error_weight == 1 else f"{error_weight:g} "
    told = f"{factor}{error} ({reduction} of {dimensions}) + {kl_weight:g} KL"
    if error == "l2":
        scale = math.sqrt(ratio / 2)
        return ImpliedScale("gaussian", scale, scale, told)
    return ImpliedScale("laplace", ratio, math.sqrt(2) * ratio, told)


def effective_scale(scale: float | int, *, beta: float | int) -> float:
    r"""Return the sigma at which a Gaussian decoder's plain bound weighs error and KL as one of ``scale`` with beta.

    :math:`\frac{1}{2\sigma^2}\text{error} + \beta\,KL` divided by beta has :math:`\sigma_{\text{eff}}^2 =
    \beta\sigma^2`. Of a scale that is learnt, beta also changes where it settles; this is the weighting alone.

    >>> effective_scale(0.5, beta=4.0)
    1.0
    """
    if not (0 < scale < math.inf and 0 < beta < math.inf):
        raise OptionError("effective_scale()", "`scale` and `beta`", expected="numbers > 0", got=f"{scale}, {beta}")
    return scale * math.sqrt(beta)


def _check(error: str, reduction: str, kl_weight: float | int, error_weight: float | int, dimensions: int) -> None:
    where = "implied_scale()"
    if error not in ERRORS:
        raise OptionError(where, "`error`", expected=" or ".join(ERRORS), got=repr(error))
    if reduction not in REDUCTIONS:
        raise OptionError(where, "`reduction`", expected=" or ".join(REDUCTIONS), got=repr(reduction))
    if not (0 < kl_weight < math.inf and 0 < error_weight < math.inf):
        raise OptionError(
            where, "`kl_weight` and `error_weight`", expected="numbers > 0", got=f"{kl_weight}, {error_weight}"
        )
    if isinstance(dimensions, bool) or dimensions < 1:
        raise OptionError(where, "`dimensions`", expected="an integer >= 1", got=repr(dimensions))
