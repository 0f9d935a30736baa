r"""A tabular latent-variable policy: everything about it has a closed form, and it is a Pyro policy all the same.

.. math::

    \pi(a|s) = \sum_z p_\theta(a|s,z)\, p_\phi(z|s), \qquad
    p_\phi(z|s) \propto e^{\phi_{sz}}, \quad p_\theta(a|s,z) \propto e^{\theta_{sza}}, \quad
    q_\psi(z|s,a) \propto e^{\psi_{saz}} .

Tables come in the order state, latent, action: ``[S, C]``, ``[S, C, A]``; what is conditioned on an action has the
latent last, ``[S, A, C]``. Parameters are float64. Observations are the states' indices, int64 ``[B]``.
"""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.errors import ShapeError
from latentpg.oracles.mdp import TabularMDP


class TabularLatentPolicy(nn.Module):
    r"""Softmax tables with one categorical latent ``z`` per step; ``model`` and ``guide`` are its Pyro programs.

    Both programs are plate-free. ``z`` may carry leading particle dimensions: with ``z`` of shape ``[K, B]`` the site
    ``action`` has batch shape ``[K, B]``, while the prior runs on ``[B]`` rows. Without ``guide_logits`` the guide is
    uniform.

    >>> policy = TabularLatentPolicy(torch.zeros(1, 2), torch.tensor([[[0.0, 0.0], [0.0, 3.0]]]).log1p())
    >>> policy.log_pi().exp()  # half of (1/2, 1/2) and half of (1/5, 4/5)
    tensor([[0.3500, 0.6500]], dtype=torch.float64, grad_fn=<ExpBackward0>)
    """

    def __init__(
        self,
        prior_logits: Float[Tensor, "S C"],
        decoder_logits: Float[Tensor, "S C A"],
        guide_logits: Float[Tensor, "S A C"] | None = None,
    ) -> None:
        """Copy the three tables into float64 parameters."""
        super().__init__()
        if decoder_logits.ndim != 3:
            raise _shape_error("decoder_logits", decoder_logits, "[S, C, A]")
        states, latents, actions = decoder_logits.shape
        if guide_logits is None:
            guide_logits = decoder_logits.new_zeros(states, actions, latents)
        if prior_logits.shape != (states, latents):
            raise _shape_error("prior_logits", prior_logits, f"[S={states}, C={latents}]")
        if guide_logits.shape != (states, actions, latents):
            raise _shape_error("guide_logits", guide_logits, f"[S={states}, A={actions}, C={latents}]")
        self.prior_logits = nn.Parameter(prior_logits.detach().double().clone())
        self.decoder_logits = nn.Parameter(decoder_logits.detach().double().clone())
        self.guide_logits = nn.Parameter(guide_logits.detach().double().clone())

    @classmethod
    def random(cls, *, num_states: int, num_latents: int, num_actions: int, scale: float = 1.0) -> TabularLatentPolicy:
        """Draw all logits from N(0, scale²), from the ambient random stream."""
        return cls(
            scale * torch.randn(num_states, num_latents, dtype=torch.float64),
            scale * torch.randn(num_states, num_latents, num_actions, dtype=torch.float64),
            scale * torch.randn(num_states, num_actions, num_latents, dtype=torch.float64),
        )

    def log_prior(self) -> Float[Tensor, "S C"]:
        r"""Return :math:`\log p_\phi(z|s)`."""
        return self.prior_logits.log_softmax(-1)

    def log_decoder(self) -> Float[Tensor, "S C A"]:
        r"""Return :math:`\log p_\theta(a|s,z)`."""
        return self.decoder_logits.log_softmax(-1)

    def log_joint(self) -> Float[Tensor, "S C A"]:
        r"""Return :math:`\log p(z,a|s) = \log p_\phi(z|s) + \log p_\theta(a|s,z)`."""
        return self.log_prior()[:, :, None] + self.log_decoder()

    def log_pi(self) -> Float[Tensor, "S A"]:
        r"""Return :math:`\log\pi(a|s) = \log\sum_z p(z,a|s)`."""
        return self.log_joint().logsumexp(1)

    def log_posterior(self) -> Float[Tensor, "S A C"]:
        r"""Return :math:`\log p(z|s,a) = \log p(z,a|s) - \log\pi(a|s)`."""
        return self.log_joint().log_softmax(1).transpose(1, 2)

    def log_guide(self) -> Float[Tensor, "S A C"]:
        r"""Return :math:`\log q_\psi(z|s,a)`."""
        return self.guide_logits.log_softmax(-1)

    def model(self, obs: Int[Tensor, " B"], action: Int[Tensor, " B"] | None = None) -> Int[Tensor, "*KB"]:
        """Sample ``z`` from the prior, then ``action`` from the decoder (observed when given); return the action."""
        z = pyro.sample("z", dist.Categorical(logits=self.prior_logits[obs], validate_args=False))
        decoder = dist.Categorical(logits=self.decoder_logits[obs, z], validate_args=False)
        return pyro.sample("action", decoder, obs=action)

    def guide(self, obs: Int[Tensor, " B"], action: Int[Tensor, " B"] | None) -> Int[Tensor, "*KB"]:
        """Sample ``z`` from the guide's table, knowing the action; return it."""
        if action is None:
            raise ShapeError("TabularLatentPolicy.guide()", "`action`", expected="the actions taken, [B]", got="None")
        return pyro.sample("z", dist.Categorical(logits=self.guide_logits[obs, action], validate_args=False))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Return phi."""
        return [self.prior_logits]

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return theta."""
        return [self.decoder_logits]

    def guide_parameters(self) -> list[nn.Parameter]:
        """Return psi."""
        return [self.guide_logits]


@dataclass(frozen=True, eq=False)
class PolicyGradient:
    r"""The gradient of an objective in the two tables of the policy."""

    prior: Float[Tensor, "S C"]
    """With respect to the prior's logits phi."""
    decoder: Float[Tensor, "S C A"]
    """With respect to the decoder's logits theta."""

    def flat(self) -> Float[Tensor, " D"]:
        """Return phi's part, then theta's, as one vector."""
        return torch.cat([self.prior.flatten(), self.decoder.flatten()])


def exact_gradient(mdp: TabularMDP, policy: TabularLatentPolicy) -> PolicyGradient:
    r"""Return :math:`\nabla_{\phi,\theta} J` exactly, by autograd through the solved Bellman equations.

    For one state and one step, :math:`\partial J/\partial\phi_z = p(z)\,(\bar r_z - J)` with :math:`\bar r_z = \sum_a
    p(a|z) r_a`, and :math:`\partial J/\partial\theta_{za} = p(z)\,p(a|z)\,(r_a - \bar r_z)`. Below, :math:`\bar r =
    (1/2, 4/5)` and :math:`J = 13/20`:

    >>> policy = TabularLatentPolicy(torch.zeros(1, 2), torch.tensor([[[0.0, 0.0], [0.0, 3.0]]]).log1p())
    >>> bandit = TabularMDP(
    ...     transition=torch.ones(1, 2, 1, dtype=torch.float64), reward=torch.tensor([[0.0, 1.0]], dtype=torch.float64),
    ...     initial=torch.ones(1, dtype=torch.float64), discount=0.0)
    >>> gradient = exact_gradient(bandit, policy)
    >>> [round(entry, 4) for entry in gradient.flat().tolist()]
    [-0.075, 0.075, -0.125, 0.125, -0.08, 0.08]
    """
    objective = mdp.objective(policy.log_pi().exp())
    prior, decoder = torch.autograd.grad(objective, [policy.prior_logits, policy.decoder_logits])
    return PolicyGradient(prior=prior, decoder=decoder)


def _shape_error(name: str, table: Tensor, expected: str) -> ShapeError:
    return ShapeError("TabularLatentPolicy()", f"`{name}`", expected=expected, got=str(list(table.shape)))
