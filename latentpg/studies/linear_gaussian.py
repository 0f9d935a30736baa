r"""The linear-Gaussian model on which the collapse of the guide's signal-to-noise ratio was found.

.. math::

    z \sim \mathcal N(\mu, I), \qquad x \mid z \sim \mathcal N(z, I), \qquad
    q_\psi(z \mid x) = \mathcal N(A x + b,\ \tfrac23 I)

in D dimensions, as a policy whose action is x: :math:`\log\pi(x) = \log\mathcal N(x; \mu, 2I)`, and the posterior is
:math:`\mathcal N((x + \mu)/2,\ \tfrac12 I)`. The guide's mean is right at :math:`A = I/2, b = \mu/2`, its variance
never, so that importance weights stay random even there.

Source: T. Rainforth, A. R. Kosiorek, T. A. Le, C. J. Maddison, M. Igl, F. Wood and Y. W. Teh, "Tighter Variational
Bounds Are Not Necessarily Better", 2018, section 4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pyro
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import kl_divergence

from latentpg.errors import OptionError, ShapeError
from latentpg.estimators import ClosedForm
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import DiagNormal, Latents, Observations, draw, num_rows
from latentpg.studies.problem import Problem

GUIDE_VARIANCE = 2 / 3
"""Variance of each coordinate of the guide, which is not trained; the posterior's is 1/2."""


class SharedGaussianPolicy(nn.Module):
    """The policy of this module's docstring: one prior and one guide for all rows; observations are not looked at.

    >>> policy = SharedGaussianPolicy(torch.zeros(2), torch.eye(2) / 2, torch.zeros(2))
    >>> policy.log_pi(torch.zeros(3, 1), torch.zeros(3, 2, dtype=torch.float64)).shape
    torch.Size([3])
    """

    unit: Tensor
    guide_log_scale: Tensor

    def __init__(
        self, prior_loc: Float[Tensor, " D"], guide_weight: Float[Tensor, "D D"], guide_bias: Float[Tensor, " D"]
    ) -> None:
        """Copy mu, A and b into float64 parameters."""
        super().__init__()
        size = len(prior_loc)
        for name, value, shape in (("guide_weight", guide_weight, (size, size)), ("guide_bias", guide_bias, (size,))):
            if tuple(value.shape) != shape:
                raise ShapeError(
                    "SharedGaussianPolicy()", f"`{name}`", expected=str(list(shape)), got=str(list(value.shape))
                )
        self.prior_loc = nn.Parameter(prior_loc.detach().double().clone())
        self.guide_weight = nn.Parameter(guide_weight.detach().double().clone())
        self.guide_bias = nn.Parameter(guide_bias.detach().double().clone())
        self.register_buffer("unit", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("guide_log_scale", self.unit + 0.5 * math.log(GUIDE_VARIANCE))

    def model(self, obs: Observations, action: Tensor | None = None) -> Tensor:
        """Sample ``z [..., B, D]``, then the action x (observed when given); return the action."""
        z = pyro.sample("z", DiagNormal(self.prior_loc.expand(num_rows(obs), -1), self.unit))
        return pyro.sample("action", DiagNormal(z, self.unit), obs=action)

    def guide(self, obs: Observations, action: Tensor | None) -> Tensor:
        """Sample ``z`` from the guide, knowing the action; return it."""
        if action is None:
            raise ShapeError("SharedGaussianPolicy.guide()", "`action`", expected="the actions, [B, D]", got="None")
        return pyro.sample("z", self.guide_law(action))

    def guide_law(self, action: Float[Tensor, "B D"]) -> DiagNormal:
        r"""Return :math:`\mathcal N(A x + b,\ \tfrac23 I)`."""
        return DiagNormal(action @ self.guide_weight.T + self.guide_bias, self.guide_log_scale)

    def log_pi(self, obs: Observations, action: Float[Tensor, "B D"]) -> Float[Tensor, " B"]:
        r"""Return :math:`\log\mathcal N(x; \mu, 2I)`, differentiable in mu."""
        return DiagNormal(self.prior_loc, self.unit + 0.5 * math.log(2)).log_prob(action)

    def posterior(self, obs: Observations, action: Float[Tensor, "B D"]) -> DiagNormal:
        r"""Return :math:`\mathcal N((x + \mu)/2,\ \tfrac12 I)`."""
        return DiagNormal((action + self.prior_loc) / 2, self.unit - 0.5 * math.log(2))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Return phi = mu."""
        return [self.prior_loc]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return theta, which is empty."""
        return []

    def guide_parameters(self) -> list[nn.Parameter]:
        """Return psi: b first, so that it is the first D coordinates of a flat gradient, then A row by row."""
        return [self.guide_bias, self.guide_weight]


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    """Posterior draws for B rows: ``z [B, D]``, Gaussian with independent coordinates, fixed when it was made."""

    distribution: DiagNormal

    def __call__(self) -> Latents:
        """Draw from the ambient stream."""
        return {"z": draw("recorded latent", self.distribution)}


@dataclass(frozen=True)
class LinearGaussianData:
    r"""``num_data`` rows x ~ N(mu_true, 2I), with mu_true ~ N(0, I), and the model near its optimum.

    The optimum is :math:`\mu^* = \bar x` (maximum likelihood), :math:`A^* = I/2, b^* = \mu^*/2`; every entry of mu, A
    and b is moved from it by an independent :math:`\mathcal N(0, \texttt{perturbation}^2)`. The latents handed on are
    posterior draws at the model so made. Far from the optimum (perturbation 0.1) the collapse of the signal-to-noise
    ratio is not seen at these K.
    """

    dimension: int = 20
    num_data: int = 1024
    perturbation: float | int = 0.01

    def __post_init__(self) -> None:
        """Check the sizes."""
        for name in ("dimension", "num_data"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError("LinearGaussianData()", f"`{name}`", expected="an integer >= 1", got=repr(value))
        if not 0 <= self.perturbation < math.inf:
            raise OptionError(
                "LinearGaussianData()", "`perturbation`", expected="a number >= 0", got=repr(self.perturbation)
            )

    def describe(self) -> str:
        """Say what the rows are."""
        return (
            f"{self.num_data} rows of the {self.dimension}-dimensional linear-Gaussian model, "
            f"parameters within N(0, {self.perturbation:g}²) of the optimum"
        )

    def build(self, seed: int) -> Problem:
        """Draw the data, then the perturbation."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64)

        size = self.dimension
        with seeded(stream_seed(seed, "data")):
            true_mean = normal(size)
            action = true_mean + math.sqrt(2) * normal(self.num_data, size)
        optimum = action.mean(0)
        with seeded(stream_seed(seed, "policy")):
            policy = SharedGaussianPolicy(
                optimum + self.perturbation * normal(size),
                torch.eye(size, dtype=torch.float64) / 2 + self.perturbation * normal(size, size),
                optimum / 2 + self.perturbation * normal(size),
            )
        obs = torch.zeros(self.num_data, 1, dtype=torch.float64)
        with torch.no_grad():
            redraw = GaussianPosterior(policy.posterior(obs, action))
            gap = float((policy.guide_bias - policy.prior_loc / 2).norm())
        with seeded(stream_seed(seed, "act")):
            latents = redraw()
        facts: dict[str, float | int | str] = {"length of b - mu / 2": gap, "variance of the guide": GUIDE_VARIANCE}
        inclusive = partial(inclusive_loss, policy, obs, action)
        bound = partial(bound_loss, policy, obs, action)
        return Problem(
            policy,
            obs,
            action,
            latents,
            facts,
            exact=ClosedForm(),
            redraw=redraw,
            seed=seed,
            guide_losses={
                **dict.fromkeys(("wake", "conditional-wake", "recorded"), inclusive),
                **dict.fromkeys(("elbo", "elbo-score", "elbo-stl"), bound),
            },
        )


def inclusive_loss(policy: SharedGaussianPolicy, obs: Observations, action: Tensor) -> Float[Tensor, ""]:
    r"""Return :math:`\mathbb E_{p(z|x)}[-\log q_\psi(z|x)]`, averaged over rows: what wake aims at."""
    posterior = _held(policy, obs, action)
    return (kl_divergence(posterior, policy.guide_law(action)) + posterior.entropy()).mean()


def bound_loss(policy: SharedGaussianPolicy, obs: Observations, action: Tensor) -> Float[Tensor, ""]:
    r"""Return :math:`\mathrm{KL}(q_\psi\|p) - \log\pi(x)`, averaged over rows: minus the lower bound."""
    with torch.no_grad():
        log_pi = policy.log_pi(obs, action)
    return (kl_divergence(policy.guide_law(action), _held(policy, obs, action)) - log_pi).mean()


def _held(policy: SharedGaussianPolicy, obs: Observations, action: Tensor) -> DiagNormal:
    with torch.no_grad():
        return policy.posterior(obs, action)
