r"""The rows of REINFORCE's objective: credit less a baseline, on-policy or times a ratio to the policy that acted.

On-policy a row is :math:`A_t\log\pi_t`. Off-policy, :math:`\rho_t A_t`, and two that stay right as the policy moves:
:math:`\rho_{0:T-1}A_0`, and with :math:`\rho_{0:t}` the product of ratios up to step t,

.. math:: \sum_t \rho_{0:t}\,\gamma^t r_t - \sum_t(\rho_{0:t} - \rho_{0:t-1})\,b_t
   = \sum_t \rho_{0:t}\,(A_t - A_{t+1}) + \mathrm{const}, \qquad A_t = \sum_{k\ge t}\gamma^k r_k - b_t,

:math:`A_T = 0`. A baseline that does not hang on the step's own action is free there, because
:math:`\rho_{0:t} - \rho_{0:t-1}` is zero on average whatever came before. A product of the steps' estimated ratios is
unbiased where each is, since particles of different steps are independent given the episode.

Source: D. Precup, R. S. Sutton and S. Singh, "Eligibility traces for off-policy policy evaluation", 2000.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentpg.learners.episodic import EpisodeBatch, credit_to_go, step_discounts, total_credit
from latentpg.learners.parallel import ALONE, Group, standardized_over, together
from latentpg.learners.reinforce_options import ReinforceOptions
from latentpg.numerics.baselines import (
    batch_mean_baseline,
    leave_one_out_baseline,
    less_baseline,
    variance_optimal_baseline,
)
from latentpg.numerics.ratios import per_decision_ratio, trajectory_ratio
from latentpg.numerics.surrogates import importance_weighted, reinforce
from latentpg.rollout import Episodes


def reinforce_advantages(
    episodes: Episodes,
    reward: Float[Tensor, " M"],
    value: Float[Tensor, " M"] | None = None,
    squared_score: Float[Tensor, " S"] | None = None,
    *,
    options: ReinforceOptions,
    group: Group = ALONE,
) -> Float[Tensor, " B"]:
    """Return the credit of every row less its baseline, in float64; baselines compare the episodes of all workers.

    ``value`` is the critic's of every step. ``squared_score`` is wanted by the variance-optimal baseline: of every
    episode's whole score with ``credit="total"``, and else of every step's.
    """
    if options.credit == "total":
        credit = total_credit(episodes, reward, gamma=options.gamma)  # [E]
        rows_of = (lambda total: total) if episodes.held else episodes.spread
        weights_of: Callable[[Tensor], Tensor] = lambda squares: squares  # noqa: E731
    else:
        from_start = options.discounting == "from-start"
        credit = credit_to_go(episodes, reward, gamma=options.gamma, from_start=from_start).T  # [E, T]
        rows_of = lambda steps: episodes.unpad(steps.T)  # noqa: E731
        weights_of = lambda squares: episodes.pad(squares).T  # noqa: E731
    if options.baseline == "batch-mean":
        advantage = rows_of(_compared(group, credit, batch_mean_baseline))
    elif options.baseline == "leave-one-out":
        advantage = rows_of(_compared(group, credit, leave_one_out_baseline))
    elif options.baseline == "variance-optimal" and squared_score is not None:
        weights = together(group, weights_of(squared_score.double())).rows
        advantage = rows_of(_compared(group, credit, lambda every: variance_optimal_baseline(every, weights)))
    elif value is not None:
        advantage = less_baseline(rows_of(credit), _baseline_of(value, episodes, options))
    else:
        advantage = rows_of(credit)
    return standardized_over(group, advantage) if options.normalize_advantage else advantage


def _compared(group: Group, credit: Tensor, baseline: Callable[[Tensor], Tensor]) -> Tensor:
    """Take from the credits ``[E, ...]`` a baseline that is made of those of all workers."""
    every = together(group, credit)
    advantage = every.mine(less_baseline(every.rows, baseline(every.rows)))
    return advantage[:, : credit.shape[1]] if credit.ndim > 1 else advantage


def reinforce_rows(
    log_prob: Float[Tensor, " M"],
    log_ratio: Float[Tensor, " M"],
    batch: EpisodeBatch,
    part: Int[Tensor, " M"],
    *,
    options: ReinforceOptions,
) -> Float[Tensor, " R"]:
    """Return the weighted rows of the surrogate for the batch's rows ``part``; their sum is the objective's share.

    There is one a row, or one an episode with ``ratio="trajectory"``. For that and for ``"per-decision"`` the part must
    hold whole episodes, the rows of each in the order of its steps.
    """
    episode, advantage = batch.episode[part], batch.advantage[part]
    weight = batch.weight[episode]
    if options.ratio == "none":
        return weight * reinforce(log_prob, advantage)
    if options.ratio == "step":
        return weight * importance_weighted(log_ratio.exp(), advantage)
    laid = _lay_out(episode)
    steps, credit = laid.pad(log_ratio), laid.pad(advantage)
    if options.ratio == "trajectory":
        ratio = trajectory_ratio(steps, mask=laid.mask)
        return batch.weight[laid.episode] * importance_weighted(ratio, credit[0])
    ratio = per_decision_ratio(steps, mask=laid.mask)
    following = torch.cat([credit[1:], torch.zeros_like(credit[:1])])
    return weight * importance_weighted(ratio, credit - following)[laid.step, laid.column]


@dataclass(frozen=True, eq=False)
class _Layout:
    """Where rows go when each episode is a column: step t of column n; ``episode [n]`` is each column's."""

    step: Int[Tensor, " M"]
    column: Int[Tensor, " M"]
    episode: Int[Tensor, " n"]
    mask: Bool[Tensor, "T n"]

    def pad(self, rows: Float[Tensor, " M"]) -> Float[Tensor, "T n"]:
        return rows.new_zeros(self.mask.shape).index_put((self.step, self.column), rows)


def _lay_out(episode: Int[Tensor, " M"]) -> _Layout:
    ids, column, length = episode.unique(return_inverse=True, return_counts=True)
    order = torch.argsort(column, stable=True)
    step = torch.empty_like(column)
    step[order] = torch.arange(len(column), device=column.device) - (length.cumsum(0) - length)[column[order]]
    return _Layout(step, column, ids, torch.arange(int(length.max()), device=length.device)[:, None] < length)


def _baseline_of(value: Tensor, episodes: Episodes, options: ReinforceOptions) -> Tensor:
    """Put the values of every step in the units of the credit: times gamma^t where it counts from the start."""
    baseline = value.double()
    if options.credit == "total" or options.discounting == "from-start":
        baseline = baseline * step_discounts(episodes, gamma=options.gamma)
    return baseline[episodes.step == 0] if episodes.held else baseline
