"""A policy that a learner keeps still, to stay near: the one that it began with, or that it was some updates ago."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.estimators import Estimator
from latentpg.learners.scoring import Scored
from latentpg.programs import LatentPolicy


def frozen(policy: LatentPolicy) -> LatentPolicy:
    """Copy a policy so that nothing moves the copy."""
    copied = copy.deepcopy(policy)
    module_of(copied).requires_grad_(False)
    return copied


def reference_log_prob(reference: LatentPolicy, estimator: Estimator, scored: Scored) -> Float[Tensor, " B"]:
    """Estimate log pi of the reference on the particles that the rows were scored on, without a gradient."""
    rows = scored.rows
    with torch.no_grad():
        return estimator.estimate(reference, rows.obs, rows.action, scored.particles).log_prob


def module_of(policy: LatentPolicy) -> nn.Module:
    """Return the policy as the module that an agent has seen it to be."""
    assert isinstance(policy, nn.Module)
    return policy
