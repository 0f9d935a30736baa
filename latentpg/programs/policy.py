"""What a latent-variable policy is: two Pyro programs and three disjoint sets of parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn


@runtime_checkable
class LatentPolicy(Protocol):
    r"""A policy :math:`\pi(a|s) = \int p_\theta(a|s,z)\, p_\phi(z|s)\, dz` with a guide :math:`q_\psi(z|s,a)`.

    ``model`` samples the latent sites, then the site ``"action"``, observed when an action is given. ``guide`` samples
    the same latent sites. Both are plate-free and broadcast on the left: latents arrive as ``[K, B, ...]`` against
    ``obs [B, ...]`` and ``action [B, ...]``. Ready-made ones are in :mod:`latentpg.policies`;
    :func:`latentpg.policies.from_pyro` wraps any others.

    A policy with one latent site over C categories may say so by an attribute ``categories``, ``{site: C}``: more
    particles than categories are then scored a category at a time.

    The three parameter sets are disjoint. A trunk that two of them share is declared in one of them, and only that
    one's objective moves it.
    """

    def model(self, obs: Any, action: Tensor | None = None) -> Any:  # noqa: ANN401 (a user's program returns what it likes)
        """Sample the latents and the action."""
        ...

    def guide(self, obs: Any, action: Tensor | None) -> Any:  # noqa: ANN401 (see above)
        """Sample the same latents, knowing the action."""
        ...

    def prior_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters phi of p_phi(z | s)."""
        ...

    def decoder_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters theta of p_theta(a | s, z)."""
        ...

    def guide_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters psi of q_psi(z | s, a)."""
        ...


def model_parameters(policy: LatentPolicy) -> list[nn.Parameter]:
    """List theta and phi, the parameters that an estimator of log pi moves."""
    return [*policy.prior_parameters(), *policy.decoder_parameters()]


def parameter_dtype(policy: LatentPolicy) -> torch.dtype:
    """Tell the floating-point type that log-probabilities of this policy come in."""
    # A module is asked as a module: under torch.func its parameters are tensors, which the three lists do not promise.
    parameters: Iterable[Tensor] = policy.parameters() if isinstance(policy, nn.Module) else model_parameters(policy)
    first = next(iter(parameters), None)
    return torch.get_default_dtype() if first is None else first.dtype
