"""Estimators of log pi(a | s), its gradient and the ratio.

Guide objectives are in :mod:`latentpg.estimators.guides`.
"""

from latentpg.estimators.base import Estimate, Estimator, Particles
from latentpg.estimators.closed_form import ClosedForm
from latentpg.estimators.compiled import Compiled
from latentpg.estimators.divergence import exact_entropy, exact_kl, joint_kl, marginal_table
from latentpg.estimators.entropy import Entropy, entropy_surrogate
from latentpg.estimators.exact import Exact
from latentpg.estimators.importance import (
    ELBO,
    ConditionalIS,
    JointScore,
    PosteriorIS,
    SplitIS,
    WakeSleep,
    importance_estimate,
    log_weights,
)
from latentpg.estimators.markovian import MarkovianIS
from latentpg.estimators.proposals import Guide, Mixture, Prior, Proposal, Proposed
from latentpg.estimators.quadrature import Quadrature
from latentpg.estimators.registry import (
    ESTIMATORS,
    GUIDE_OBJECTIVES,
    PROPOSALS,
    make_estimator,
    make_guide_objective,
)
from latentpg.estimators.reparameterized import Reparameterized
from latentpg.estimators.replicates import replicate, replicate_gradients, replicate_guide_gradients

__all__ = [
    "ELBO",
    "ESTIMATORS",
    "GUIDE_OBJECTIVES",
    "PROPOSALS",
    "ClosedForm",
    "Compiled",
    "ConditionalIS",
    "Entropy",
    "Estimate",
    "Estimator",
    "Exact",
    "Guide",
    "JointScore",
    "MarkovianIS",
    "Mixture",
    "Particles",
    "PosteriorIS",
    "Prior",
    "Proposal",
    "Proposed",
    "Quadrature",
    "Reparameterized",
    "SplitIS",
    "WakeSleep",
    "entropy_surrogate",
    "exact_entropy",
    "exact_kl",
    "importance_estimate",
    "joint_kl",
    "log_weights",
    "make_estimator",
    "make_guide_objective",
    "marginal_table",
    "replicate",
    "replicate_gradients",
    "replicate_guide_gradients",
]
