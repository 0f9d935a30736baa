"""Pure functions on tensors, one formula each; nothing here knows of Pyro, policies or estimators."""

from latentpg.numerics.activations import Tanh, tanh
from latentpg.numerics.aggregation import (
    constant_weights,
    sequence_weights,
    token_weights,
    weighted_rows,
    weighted_steps,
)
from latentpg.numerics.baselines import (
    batch_mean_baseline,
    leave_one_out_baseline,
    less_baseline,
    standardized,
    variance_optimal_baseline,
    variance_optimal_constant,
)
from latentpg.numerics.controllers import AdaptiveBeta
from latentpg.numerics.divergences import k1, k2, k3, kl_old_new
from latentpg.numerics.group_advantages import (
    batch_std_advantage,
    group_mean_advantage,
    group_std_advantage,
    rloo_advantage,
    zero_variance_groups,
)
from latentpg.numerics.penalties import KLEstimator, penalty, ratio_penalty, reward_penalty
from latentpg.numerics.quadrature import hermite_grid
from latentpg.numerics.ratios import per_decision_ratio, sequence_ratio, step_ratio, trajectory_ratio
from latentpg.numerics.returns import discount_factors, discounted_return, discounted_reward_to_go, reward_to_go
from latentpg.numerics.rng import named_seeds, seeded
from latentpg.numerics.surrogates import cispo, importance_weighted, ppo_clip, ppo_clip_dual, ppo_kl, reinforce
from latentpg.numerics.targets import (
    gae,
    monte_carlo_target,
    n_step_target,
    td0_target,
    td_error,
    td_lambda_target,
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
    "AdaptiveBeta",
    "KLEstimator",
    "Tanh",
    "batch_mean_baseline",
    "batch_std_advantage",
    "cispo",
    "constant_weights",
    "discount_factors",
    "discounted_return",
    "discounted_reward_to_go",
    "ess",
    "gae",
    "group_mean_advantage",
    "group_std_advantage",
    "hermite_grid",
    "importance_weighted",
    "k1",
    "k2",
    "k3",
    "kl_old_new",
    "leave_one_out_baseline",
    "leave_one_out_log_mean_exp",
    "leave_one_out_mean",
    "less_baseline",
    "log_mean_exp",
    "monte_carlo_target",
    "n_step_target",
    "named_seeds",
    "normalized_weights",
    "pareto_k",
    "penalty",
    "per_decision_ratio",
    "ppo_clip",
    "ppo_clip_dual",
    "ppo_kl",
    "ratio_penalty",
    "reinforce",
    "reward_penalty",
    "reward_to_go",
    "rloo_advantage",
    "seeded",
    "sequence_ratio",
    "sequence_weights",
    "standardized",
    "step_ratio",
    "tanh",
    "td0_target",
    "td_error",
    "td_lambda_target",
    "token_weights",
    "trajectory_ratio",
    "variance_optimal_baseline",
    "variance_optimal_constant",
    "weighted_rows",
    "weighted_steps",
    "zero_variance_groups",
]
