"""Pure functions on tensors, one formula each; nothing here knows of Pyro, policies or estimators."""

from latentpg.numerics.divergences import k1, k2, k3
from latentpg.numerics.quadrature import hermite_grid
from latentpg.numerics.returns import discount_factors, discounted_return, discounted_reward_to_go, reward_to_go
from latentpg.numerics.rng import named_seeds, seeded
from latentpg.numerics.surrogates import (
    importance_weighted,
    per_decision_ratio,
    ppo_clip,
    reinforce,
    step_ratio,
    trajectory_ratio,
)
from latentpg.numerics.weights import (
    ess,
    leave_one_out_log_mean_exp,
    leave_one_out_mean,
    log_mean_exp,
    normalized_weights,
    pareto_k,
)

__all__ = [
    "discount_factors",
    "discounted_return",
    "discounted_reward_to_go",
    "ess",
    "hermite_grid",
    "importance_weighted",
    "k1",
    "k2",
    "k3",
    "leave_one_out_log_mean_exp",
    "leave_one_out_mean",
    "log_mean_exp",
    "named_seeds",
    "normalized_weights",
    "pareto_k",
    "per_decision_ratio",
    "ppo_clip",
    "reinforce",
    "reward_to_go",
    "seeded",
    "step_ratio",
    "trajectory_ratio",
]
