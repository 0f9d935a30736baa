r"""The contract of a guide objective: what psi is trained on, chosen apart from the estimator.

``loss(policy, obs, action, *, particles, latents)`` returns rows ``[B]`` to *minimise*; only its gradient in psi is
meant, and a learner takes it by ``torch.autograd.grad`` over ``policy.guide_parameters()``, so that no objective leaks
into another's parameters. ``particles`` are stored ones, ``latents`` those recorded while acting; an objective says
which it needs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from latentpg.errors import EstimatorError
from latentpg.estimators.base import Particles
from latentpg.programs import Drawn, LatentPolicy, Latents, Observations, log_joint, score_guide


@runtime_checkable
class GuideObjective(Protocol):
    """What every guide objective offers; see the module's docstring."""

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Float[Tensor, " B"]:
        """Return one loss a row."""
        ...


def require_pathwise(where: str, distributions: Mapping[str, Distribution], instead: str) -> None:
    """Refuse a guide with a site through which no pathwise gradient exists."""
    for name, fn in distributions.items():
        if not fn.has_rsample:
            raise EstimatorError(
                where,
                f"latent `{name}` has no pathwise gradient",
                expected="guide sites with rsample (Normal, DiagNormal, ...)",
                got=type(fn).__name__,
                fix=instead,
            )


def bound_log_weight(policy: LatentPolicy, obs: Observations, action: Tensor, drawn: Drawn) -> Float[Tensor, "K B"]:
    """Score guide draws: log p(z, a | s) - log q(z | s, a), differentiable through both."""
    return log_joint(policy, obs, action, drawn.latents) - drawn.log_prob


def path_only_log_weight(policy: LatentPolicy, obs: Observations, action: Tensor, drawn: Drawn) -> Float[Tensor, "K B"]:
    r"""Score guide draws with psi held fixed inside log q: gradients reach psi through z alone.

    The guide is scored a second time at detached latents, which isolates the direct term :math:`\partial\log
    q/\partial\psi`; taking it off leaves the path (Roeder, Wu and Duvenaud, "Sticking the Landing", 2017).
    """
    held = {name: value.detach() for name, value in drawn.latents.items()}
    direct = score_guide(policy, obs, action, held).log_prob
    return bound_log_weight(policy, obs, action, drawn) + (direct - direct.detach())


def with_value(value: Tensor, gradient: Tensor) -> Tensor:
    """Return a tensor with the value of one expression and the gradient of another."""
    return value.detach() + gradient - gradient.detach()
