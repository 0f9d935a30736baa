"""A prior that is set, not climbed: coordinate ascent on phi while theta and psi go by gradient.

The evidence lower bound is highest in phi where the prior is the guide's aggregate posterior, and a policy that can be
set so needs no gradient there. One that is climbed by gradient from random components covers what the guide never uses.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.imitation.rows import FitRows
from latentpg.programs import LatentPolicy, Observations, model_parameters


@runtime_checkable
class MatchesPrior(Protocol):
    """A policy that can set phi by itself, from rows and its guide."""

    def match_prior(self, obs: Observations, action: Tensor) -> None:
        """Set the prior to what is best for these rows, theta and psi as they are."""
        ...


def climbed_parameters(policy: LatentPolicy, match_prior_every: int | None) -> list[nn.Parameter]:
    """Return what the model's gradient moves: theta and phi, or theta alone where phi is matched.

    A policy without ``match_prior`` is an :class:`~latentpg.errors.OptionError` there.
    """
    if match_prior_every is None:
        return model_parameters(policy)
    if not isinstance(policy, MatchesPrior):
        raise OptionError(
            "Cloner()",
            "`match_prior_every` for a policy that has no `match_prior(obs, action)`",
            expected="EpisodePolicy with a mixture prior, or a policy with that method of its own",
            got=type(policy).__name__,
            fix="match_prior_every=None",
        )
    return list(policy.decoder_parameters())


def match_prior(policy: LatentPolicy, rows: FitRows) -> None:
    """Let a policy set its prior by rows."""
    assert isinstance(policy, MatchesPrior)
    policy.match_prior(rows.obs, rows.action)
