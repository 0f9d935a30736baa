r"""A linear-Gaussian policy: a continuous latent whose marginal, posterior and gradient have closed forms.

.. math::

    z \mid s \sim \mathcal N(\mu_s, S_s),\quad S_s = \mathrm{diag}(\sigma_s^2), \qquad
    a \mid s, z \sim \mathcal N(W_s z + b_s,\ \tau_s^2 I), \qquad
    q_\psi(z \mid s, a) = \mathcal N(G_s a + g_s,\ \mathrm{diag}(\varsigma_s^2)) .

Then :math:`a \mid s \sim \mathcal N(W\mu + b,\ W S W^\top + \tau^2 I)`, and with
:math:`\Lambda = (S^{-1} + W^\top W/\tau^2)^{-1}` the posterior is
:math:`\mathcal N(m, \Lambda)` with :math:`m = \Lambda\,(S^{-1}\mu + W^\top(a - b)/\tau^2)`.

Every state has parameters of its own. Observations are the states' indices, int64 ``[B]``, actions ``[B, A]``, float64.

Source: C. M. Bishop, "Pattern recognition and machine learning", 2006, section 2.3.3.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

from latentpg.errors import ShapeError
from latentpg.programs import DiagNormal


@dataclass(frozen=True, eq=False)
class LinearGaussianGradient:
    r"""The gradient of :math:`\log\pi(a|s)` in the parameters of its own state, one row an action."""

    prior_loc: Float[Tensor, "B Z"]
    prior_log_scale: Float[Tensor, "B Z"]
    weight: Float[Tensor, "B A Z"]
    bias: Float[Tensor, "B A"]
    log_noise: Float[Tensor, " B"]


class LinearGaussianPolicy(nn.Module):
    r"""The policy of this module's docstring; ``model`` and ``guide`` are its Pyro programs, with one latent ``z``.

    >>> policy = LinearGaussianPolicy.random(num_states=3, latent_size=2, action_size=1)
    >>> policy.log_pi(torch.tensor([0, 2]), torch.zeros(2, 1, dtype=torch.float64)).shape
    torch.Size([2])
    """

    def __init__(
        self,
        *,
        prior_loc: Float[Tensor, "S Z"],
        prior_log_scale: Float[Tensor, "S Z"],
        weight: Float[Tensor, "S A Z"],
        bias: Float[Tensor, "S A"],
        log_noise: Float[Tensor, " S"],
        guide_weight: Float[Tensor, "S Z A"] | None = None,
        guide_bias: Float[Tensor, "S Z"] | None = None,
        guide_log_scale: Float[Tensor, "S Z"] | None = None,
    ) -> None:
        """Copy the tables into float64 parameters; a guide that is not given is the prior at these values."""
        super().__init__()
        states, latent, action = *prior_loc.shape, bias.shape[-1]
        self.prior_loc = _table("prior_loc", prior_loc, states, latent)
        self.prior_log_scale = _table("prior_log_scale", prior_log_scale, states, latent)
        self.weight = _table("weight", weight, states, action, latent)
        self.bias = _table("bias", bias, states, action)
        self.log_noise = _table("log_noise", log_noise, states)
        if guide_weight is None:
            guide_weight = weight.new_zeros(states, latent, action)
        self.guide_weight = _table("guide_weight", guide_weight, states, latent, action)
        self.guide_bias = _table("guide_bias", prior_loc if guide_bias is None else guide_bias, states, latent)
        guide_log_scale = prior_log_scale if guide_log_scale is None else guide_log_scale
        self.guide_log_scale = _table("guide_log_scale", guide_log_scale, states, latent)

    @classmethod
    def random(cls, *, num_states: int, latent_size: int, action_size: int) -> LinearGaussianPolicy:
        """Draw every table from a normal law (of scale 0.3 for what is a logarithm), from the ambient stream."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, dtype=torch.float64)

        return cls(
            prior_loc=normal(num_states, latent_size),
            prior_log_scale=0.3 * normal(num_states, latent_size),
            weight=normal(num_states, action_size, latent_size),
            bias=normal(num_states, action_size),
            log_noise=0.3 * normal(num_states),
            guide_weight=0.3 * normal(num_states, latent_size, action_size),
            guide_bias=normal(num_states, latent_size),
            guide_log_scale=0.3 * normal(num_states, latent_size),
        )

    def log_pi(self, obs: Int[Tensor, " B"], action: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        r"""Return :math:`\log\mathcal N(a;\ W\mu + b,\ WSW^\top + \tau^2 I)`."""
        weight = self.weight[obs]
        mean = (weight @ self.prior_loc[obs].unsqueeze(-1)).squeeze(-1) + self.bias[obs]
        spread = weight * self.prior_log_scale[obs].exp().unsqueeze(-2)
        noise = (2 * self.log_noise[obs]).exp()[:, None, None] * torch.eye(mean.shape[-1], dtype=mean.dtype)
        return MultivariateNormal(mean, spread @ spread.transpose(-1, -2) + noise).log_prob(action)

    def posterior(self, obs: Int[Tensor, " B"], action: Float[Tensor, "B A"]) -> MultivariateNormal:
        r"""Return :math:`p(z|s,a) = \mathcal N(m, \Lambda)`."""
        weight, precision = self.weight[obs], (-2 * self.log_noise[obs]).exp()
        prior_precision = (-2 * self.prior_log_scale[obs]).exp()
        total = torch.diag_embed(prior_precision) + precision[:, None, None] * weight.transpose(-1, -2) @ weight
        covariance = torch.linalg.inv(total)
        residual = precision[:, None] * (action - self.bias[obs])
        pull = prior_precision * self.prior_loc[obs] + (weight.transpose(-1, -2) @ residual.unsqueeze(-1)).squeeze(-1)
        return MultivariateNormal((covariance @ pull.unsqueeze(-1)).squeeze(-1), precision_matrix=total)

    def log_pi_gradient(self, obs: Int[Tensor, " B"], action: Float[Tensor, "B A"]) -> LinearGaussianGradient:
        r"""Return :math:`\nabla\log\pi(a|s) = \mathbb E_{z\sim p(z|s,a)}\nabla\log p(z,a|s)` by two posterior moments.

        With :math:`e = a - b - Wm`, for instance, :math:`\partial_W = (e m^\top - W\Lambda)/\tau^2` and
        :math:`\partial_\mu = S^{-1}(m - \mu)`.
        """
        with torch.no_grad():
            posterior = self.posterior(obs, action)
            mean, covariance = posterior.mean, posterior.covariance_matrix
            weight, precision = self.weight[obs], (-2 * self.log_noise[obs]).exp()
            prior_precision, offset = (-2 * self.prior_log_scale[obs]).exp(), mean - self.prior_loc[obs]
            error = action - self.bias[obs] - (weight @ mean.unsqueeze(-1)).squeeze(-1)
            spread = covariance.diagonal(dim1=-2, dim2=-1)
            residual = error.square().sum(-1) + (weight @ covariance * weight).sum((-1, -2))
            outer = error.unsqueeze(-1) * mean.unsqueeze(-2)
            return LinearGaussianGradient(
                prior_loc=prior_precision * offset,
                prior_log_scale=prior_precision * (offset.square() + spread) - 1,
                weight=precision[:, None, None] * (outer - weight @ covariance),
                bias=precision[:, None] * error,
                log_noise=precision * residual - action.shape[-1],
            )

    def log_bound(self, obs: Int[Tensor, " B"], action: Float[Tensor, "B A"]) -> Float[Tensor, " B"]:
        r"""Return the evidence lower bound :math:`\log\pi(a|s) - \mathrm{KL}(q_\psi(z|s,a)\,\|\,p(z|s,a))`."""
        loc, log_scale = self._guide(obs, action)
        guide = MultivariateNormal(loc, torch.diag_embed((2 * log_scale).exp()))
        return self.log_pi(obs, action) - torch.distributions.kl_divergence(guide, self.posterior(obs, action))

    def model(self, obs: Int[Tensor, " B"], action: Float[Tensor, "B A"] | None = None) -> Tensor:
        """Sample ``z [..., B, Z]`` from the prior, then ``action`` (observed when given); return the action."""
        z = pyro.sample("z", DiagNormal(self.prior_loc[obs], self.prior_log_scale[obs]))
        mean = (self.weight[obs] @ z.unsqueeze(-1)).squeeze(-1) + self.bias[obs]
        noise = self.log_noise[obs].exp().unsqueeze(-1)
        return pyro.sample("action", dist.Normal(mean, noise, validate_args=False).to_event(1), obs=action)

    def guide(self, obs: Int[Tensor, " B"], action: Float[Tensor, "B A"] | None) -> Tensor:
        """Sample ``z`` from the guide, knowing the action; return it."""
        if action is None:
            raise ShapeError("LinearGaussianPolicy.guide()", "`action`", expected="the actions, [B, A]", got="None")
        return pyro.sample("z", DiagNormal(*self._guide(obs, action)))

    def _guide(self, obs: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        loc = (self.guide_weight[obs] @ action.unsqueeze(-1)).squeeze(-1) + self.guide_bias[obs]
        return loc, self.guide_log_scale[obs]

    def prior_parameters(self) -> list[nn.Parameter]:
        """Return phi."""
        return [self.prior_loc, self.prior_log_scale]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return theta."""
        return [self.weight, self.bias, self.log_noise]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Return psi."""
        return [self.guide_weight, self.guide_bias, self.guide_log_scale]


def _table(name: str, table: Tensor, *shape: int) -> nn.Parameter:
    if tuple(table.shape) != shape:
        raise ShapeError("LinearGaussianPolicy()", f"`{name}`", expected=str(list(shape)), got=str(list(table.shape)))
    return nn.Parameter(table.detach().double().clone())
