r"""Densities of points, with nothing to observe: the Gaussian mixture, by EM in closed form and by gradient alike.

.. math:: p(x) = \sum_{c=1}^C w_c\,\mathcal N(x; \mu_c, \Sigma_c)

A density is a policy whose observation says nothing: the same estimators, objectives and measures take it.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError
from latentpg.programs import Categorical, Observations

COVARIANCES = ("full", "diagonal")
"""Shapes of a component's covariance."""


class GaussianMixture(nn.Module):
    r"""A Gaussian mixture of C components in D dimensions, its component the latent ``"z"``.

    Its guide is the exact posterior and has no parameters. ``maximize`` is the M step of EM in closed form under the
    constraint that no component is narrower than ``floor`` in any direction, without which the likelihood has no
    maximum: one component on one point gains without end (C. M. Bishop, "Pattern recognition and machine learning",
    2006, section 9.2). Gradients know of no floor.

    >>> from latentpg.imitation.rows import point_rows
    >>> from latentpg.imitation.em import fit_em
    >>> points = torch.tensor([[-1.0], [-1.2], [1.0], [1.4]], dtype=torch.float64)
    >>> mixture = GaussianMixture(torch.tensor([[-0.5], [0.5]], dtype=torch.float64), floor=0.01)
    >>> found = fit_em(mixture, point_rows(points))
    >>> mixture.loc.flatten().tolist()
    [-1.1, 1.2]
    """

    def __init__(
        self,
        loc: Float[Tensor, "C D"],
        *,
        scale: Float[Tensor, " D"] | None = None,
        covariance: str = "full",
        floor: float | int = 1e-3,
    ) -> None:
        """Start at these means with equal weights and the same standard deviations, 1 unless told otherwise."""
        super().__init__()
        if loc.ndim != 2 or 0 in loc.shape:
            raise ShapeError("GaussianMixture()", "`loc`", expected="[C, D]", got=str(list(loc.shape)))
        if covariance not in COVARIANCES:
            raise OptionError("GaussianMixture()", "`covariance`", expected=" or ".join(COVARIANCES), got=covariance)
        if not 0 < floor < math.inf:
            raise OptionError("GaussianMixture()", "`floor`", expected="a number > 0", got=repr(floor))
        components, size = loc.shape
        start = loc.new_ones(size) if scale is None else scale
        self.covariance, self.floor = covariance, float(floor)
        self.logits = nn.Parameter(loc.new_zeros(components))
        self.loc = nn.Parameter(loc.detach().clone())
        self.log_diagonal = nn.Parameter(start.clamp_min(self.floor).log().expand(components, size).clone())
        self.lower = nn.Parameter(loc.new_zeros(components, size, size)) if covariance == "full" else None

    @classmethod
    def from_points(
        cls,
        points: Float[Tensor, "B D"],
        *,
        num_components: int,
        covariance: str = "full",
        floor: float | int = 1e-3,
    ) -> GaussianMixture:
        """Start at points far from each other, with the spread of all points.

        Each next mean is a point drawn in proportion to its squared distance from the nearest mean so far (D. Arthur
        and S. Vassilvitskii, "k-means++: the advantages of careful seeding", 2007), from the ambient stream.
        """
        if not 1 <= num_components <= len(points):
            raise OptionError(
                "GaussianMixture.from_points()",
                "`num_components`",
                expected=f"an integer in [1, {len(points)}], the number of points",
                got=repr(num_components),
            )
        chosen = [int(torch.randint(len(points), ()))]
        while len(chosen) < num_components:
            distance = torch.cdist(points, points[chosen]).amin(1).square()
            distance = distance if bool(distance.sum() > 0) else torch.ones_like(distance)
            chosen.append(int(torch.multinomial(distance, 1)))
        scale = points.std(0, correction=0)
        return cls(points[chosen], scale=scale, covariance=covariance, floor=floor)

    def scale_tril(self) -> Float[Tensor, "C D D"]:
        r"""Return the Cholesky factors of :math:`\Sigma_c`."""
        diagonal = torch.diag_embed(self.log_diagonal.exp())
        return diagonal if self.lower is None else self.lower.tril(-1) + diagonal

    def weights(self) -> Float[Tensor, " C"]:
        """Return the weights, which add up to one."""
        return self.logits.softmax(0)

    def log_pi(self, obs: Observations, action: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        """Return log p(x) in nats, differentiable; ``obs`` says nothing."""
        return self._log_joint(action).logsumexp(0)

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample the component, then the point."""
        z = pyro.sample("z", Categorical(self.logits))
        normal = dist.MultivariateNormal(self.loc[z], scale_tril=self.scale_tril()[z], validate_args=False)
        return pyro.sample("action", normal, obs=action)

    def guide(self, obs: Observations, action: Tensor | None) -> Tensor:
        """Sample the component from its exact posterior."""
        if action is None:
            raise ShapeError("GaussianMixture.guide()", "`action`", expected="the points, [B, D]", got="None")
        return pyro.sample("z", Categorical(self._log_joint(action).detach().T))

    def maximize(self, obs: Observations, action: Float[Tensor, "B D"], responsibilities: Float[Tensor, "C B"]) -> None:
        """Set weights, means and covariances to the maximum of the expected complete log-likelihood."""
        found = maximize_mixture(
            action, responsibilities, self.loc.detach(), covariance=self.covariance, floor=self.floor
        )
        weight, loc, spread = found
        old, tril = self.scale_tril().detach(), torch.linalg.cholesky(spread)
        empty = (weight <= 0)[:, None, None]  # a component without points keeps its shape
        tril = torch.where(empty, old, tril)
        with torch.no_grad():
            self.logits.copy_(weight.clamp_min(torch.finfo(weight.dtype).tiny).log())
            self.loc.copy_(loc)
            self.log_diagonal.copy_(tril.diagonal(dim1=-2, dim2=-1).log())
            if self.lower is not None:
                self.lower.copy_(tril.tril(-1))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Parameters phi: the weights' logits."""
        return [self.logits]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Parameters theta: means and covariances."""
        return [self.loc, self.log_diagonal, *([] if self.lower is None else [self.lower])]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Return none: the posterior is exact."""
        return []

    def _log_joint(self, points: Tensor) -> Float[Tensor, "C B"]:
        return mixture_log_joint(points, self.logits.log_softmax(0), self.loc, self.scale_tril())


def mixture_log_joint(
    points: Float[Tensor, "*N B D"],
    log_weight: Float[Tensor, "*N C"],
    loc: Float[Tensor, "*N C D"],
    scale_tril: Float[Tensor, "*N C D D"],
) -> Float[Tensor, "*N C B"]:
    r"""Compute :math:`\log w_c + \log\mathcal N(x_b; \mu_c, \Sigma_c)`, for any number of mixtures at once."""
    away = (points.unsqueeze(-3) - loc.unsqueeze(-2)).transpose(-1, -2)
    solved = torch.linalg.solve_triangular(scale_tril, away, upper=False)
    log_det = scale_tril.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    constant = log_det + 0.5 * points.shape[-1] * math.log(2 * math.pi)
    return (log_weight - constant).unsqueeze(-1) - 0.5 * solved.square().sum(-2)


def maximize_mixture(
    points: Float[Tensor, "*N B D"],
    responsibilities: Float[Tensor, "*N C B"],
    old_loc: Float[Tensor, "*N C D"],
    *,
    covariance: str = "full",
    floor: float | int = 1e-3,
) -> tuple[Float[Tensor, "*N C"], Float[Tensor, "*N C D"], Float[Tensor, "*N C D D"]]:
    r"""Return weights, means and covariances that maximise the expected complete log-likelihood.

    With :math:`N_c = \sum_b\rho_{cb}`:

    .. math:: w_c = N_c/B, \qquad \mu_c = \frac1{N_c}\sum_b\rho_{cb}x_b, \qquad
       S_c = \frac1{N_c}\sum_b\rho_{cb}(x_b-\mu_c)(x_b-\mu_c)^\top ,

    and :math:`\Sigma_c` is :math:`S_c` with its eigenvalues (or, for a diagonal one, its diagonal) raised to
    :math:`\text{floor}^2` where they are below: the maximum of :math:`-\log|\Sigma| - \operatorname{tr}\Sigma^{-1}S`
    among covariances no narrower than that, since it parts into one such term an eigenvalue, each with one peak. A
    component without points keeps its mean. Any number of mixtures at once.
    """
    count = responsibilities.sum(-1)
    share = responsibilities / count.clamp_min(torch.finfo(count.dtype).tiny).unsqueeze(-1)
    empty = (count <= 0).unsqueeze(-1)
    loc = torch.where(empty, old_loc, share @ points)
    away = points.unsqueeze(-3) - loc.unsqueeze(-2)
    if covariance == "diagonal":
        spread = torch.diag_embed((share.unsqueeze(-1) * away.square()).sum(-2).clamp_min(floor**2))
    else:
        scatter = (share.unsqueeze(-1) * away).transpose(-1, -2) @ away
        values, vectors = torch.linalg.eigh(0.5 * (scatter + scatter.transpose(-1, -2)))
        spread = (vectors * values.clamp_min(floor**2).unsqueeze(-2)) @ vectors.transpose(-1, -2)
        spread = 0.5 * (spread + spread.transpose(-1, -2))
    return count / points.shape[-2], loc, spread
