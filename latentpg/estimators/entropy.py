r"""The entropy of a latent policy's marginal, with a gradient that is right.

:math:`H(\pi) = -\mathbb E_{a\sim\pi}\log\pi(a|s)` has no closed form for a mixture. For actions drawn from the policy,

.. math:: \nabla H = -\mathbb E_{a\sim\pi}\big[(\log\pi(a|s) + b)\,\nabla\log\pi(a|s)\big]

for any constant b: a score-function estimator, in which value and gradient must come from *independent* particles (the
same for both were 20 to 52 % off on toys). The popular ``-log_prob.mean()`` on recorded actions has the right value and
an expected gradient of zero.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import ShapeError
from latentpg.estimators.base import Estimate, Estimator, Particles
from latentpg.estimators.importance import PosteriorIS
from latentpg.estimators.proposals import Guide
from latentpg.programs import LatentPolicy, Latents, Observations


def entropy_surrogate(
    log_prob: Float[Tensor, " B"], independent_value: Float[Tensor, " B"], *, baseline: float | Tensor = 0.0
) -> Float[Tensor, " B"]:
    r"""Return rows with value :math:`-\log\pi` and gradient :math:`-(\log\pi + b)\nabla\log\pi`; maximise their mean.

    ``log_prob`` brings the gradient, ``independent_value`` the value, from particles of its own. Valid only on-policy.
    A ``baseline`` b that does not depend on the row's action, such as minus the batch mean of the other rows, lowers
    the variance.

    >>> log_prob = torch.tensor([-1.0], requires_grad=True)
    >>> torch.autograd.grad(entropy_surrogate(log_prob, torch.tensor([-2.0])).sum(), log_prob)
    (tensor([2.]),)
    """
    if log_prob.shape != independent_value.shape:
        raise ShapeError(
            "entropy_surrogate()",
            "`independent_value`",
            expected=f"{list(log_prob.shape)}, as `log_prob`",
            got=str(list(independent_value.shape)),
            fix="one value a row",
        )
    value = independent_value.detach()
    return -value - (value + baseline) * (log_prob - log_prob.detach())


@dataclass(frozen=True)
class Entropy:
    """Entropy bonus on a policy's own actions: ``gradient`` brings ∇log pi, ``value`` an independent log pi.

    The rows' expected gradient is exact with ``Exact`` for both. With ``ConditionalIS`` for the gradient it is exact
    but for the O(1/K) bias of the value, which is a lower bound of log pi in expectation. Valid only at the parameters
    that acted.
    """

    gradient: Estimator
    value: Estimator = field(default_factory=lambda: PosteriorIS(32, Guide()))

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> tuple[Particles, Particles]:
        """Draw two independent sets, the gradient's first."""
        return (
            self.gradient.propose(policy, obs, action, latents),
            self.value.propose(policy, obs, action, latents),
        )

    def estimate(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: tuple[Particles, Particles]
    ) -> Estimate:
        """Return the rows of :func:`entropy_surrogate` in ``log_prob``'s place, with the gradient's diagnostics."""
        slope = self.gradient.estimate(policy, obs, action, particles[0])
        with torch.no_grad():
            value = self.value.estimate(policy, obs, action, particles[1]).log_prob
        return Estimate(entropy_surrogate(slope.log_prob, value), slope.info)
