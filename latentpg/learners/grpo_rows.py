"""The rows of GRPO's objective: clipped ratios and penalties, each already weighted with its episode's share.

A row of the batch is a step, or an episode whose latent was held. With one ratio a step the rows of the objective are
those of the batch; with one a sequence they are the episodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.learners.episodic import EpisodeBatch, sums
from latentpg.learners.grpo_options import KL_ESTIMATORS, GRPOOptions
from latentpg.numerics.penalties import penalty, ratio_penalty
from latentpg.numerics.surrogates import cispo, ppo_clip


@dataclass(frozen=True, eq=False)
class WeightedRows:
    """Rows of an objective to maximise, already weighted: their sum is the objective's share. ``ratio`` is each one's.

    There is one a row of the batch, or one an episode with ``ratio="sequence"``.
    """

    value: Float[Tensor, " R"]
    ratio: Float[Tensor, " R"]


def grpo_rows(
    log_prob: Float[Tensor, " M"],
    log_ratio: Float[Tensor, " M"],
    batch: EpisodeBatch,
    part: Int[Tensor, " M"],
    *,
    options: GRPOOptions,
) -> WeightedRows:
    """Return the weighted rows of the surrogate for the batch's rows ``part``, of which these are the estimates.

    With ``ratio="sequence"`` the part must hold whole episodes.
    """
    episode, advantage = batch.episode[part], batch.advantage[part]
    weight = batch.weight[episode]
    if options.ratio == "sequence":
        ids = episode.unique()
        length = batch.length[ids]
        log_prob, log_ratio, advantage = (
            sums(values, episode, len(batch.length))[ids] / divisor
            for values, divisor in ((log_prob, length), (log_ratio, length), (advantage, torch.bincount(episode)[ids]))
        )
        weight = batch.weight[ids] * length  # the ratio is a mean over steps already
    ratio = log_ratio.exp()
    if options.surrogate == "cispo":
        high = options.clip_range if options.clip_range_high is None else options.clip_range_high
        rows = cispo(log_prob, ratio, advantage, epsilon_high=high)
    else:
        rows = ppo_clip(ratio, advantage, epsilon=options.clip_range, epsilon_high=options.clip_range_high)
    return WeightedRows(weight * rows, ratio.detach())


def penalty_rows(
    log_ratio: Float[Tensor, " M"],
    log_ratio_reference: Float[Tensor, " M"],
    batch: EpisodeBatch,
    part: Int[Tensor, " M"],
    *,
    options: GRPOOptions,
) -> Float[Tensor, " M"]:
    """Return the weighted rows of the penalty in the loss, to be added to the surrogate's and maximised."""
    estimator, beta = KL_ESTIMATORS[options.kl_estimator], options.kl_coefficient
    if options.kl_placement == "ratio":
        rows = ratio_penalty(log_ratio.exp(), log_ratio_reference, beta=beta, estimator=estimator)
    else:
        rows = penalty(log_ratio_reference, beta=beta, estimator=estimator)
    return batch.weight[batch.episode[part]] * rows
