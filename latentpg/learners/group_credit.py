r"""What the steps of whole episodes are worth within their groups: GRPO's advantages, whatever the surrogate.

Credits come from the rewards of every step and are compared within a group of G episodes from one initial state, in
float64. ``"episode"`` and ``"reward-to-go"`` compare the members with each other; ``"pooled-to-go"`` compares steps
with all steps of the group.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.learners.episodic import credit_to_go, sums, total_credit
from latentpg.learners.grpo_options import ADVANTAGES, GRPOOptions
from latentpg.learners.parallel import ALONE, Group, together
from latentpg.numerics.group_advantages import zero_variance_groups
from latentpg.rollout import Episodes


def group_advantages(
    episodes: Episodes, reward: Float[Tensor, " M"], *, options: GRPOOptions, group: Group = ALONE
) -> Float[Tensor, " B"]:
    """Return the advantage of every row within its group, from the rewards of every step, in float64.

    A row of several steps has the advantage of its first step, at which its latent was drawn. A group of equal credits
    has the advantage 0 in every row; its rows stay where they are. A batch's standard deviation is that of the episodes
    of all workers in ``group``.
    """
    if options.credit == "pooled-to-go":
        to_go = credit_to_go(episodes, reward, gamma=options.gamma, from_start=False)
        pooled = _pooled_advantages(episodes, episodes.unpad(to_go), reward, options.advantage, group)
        return pooled[episodes.begins]
    if options.credit == "reward-to-go":
        credit = credit_to_go(episodes, reward, gamma=options.gamma, from_start=True)  # [T, E]
    else:
        credit = total_credit(episodes, reward, gamma=options.gamma)  # [E]
    advantage = _compared(episodes, credit, options.advantage, group)
    steps = episodes.unpad(advantage) if options.credit == "reward-to-go" else episodes.spread(advantage)
    return steps[episodes.begins]


def _compared(episodes: Episodes, credit: Tensor, kind: str, group: Group) -> Tensor:
    """Compare the credits ``[..., E]`` within each group of episodes; only a batch's deviation asks other workers."""
    every = together(ALONE if kind != "batch-std" else group, credit.movedim(-1, 0))
    members_first = every.rows.unflatten(0, (-1, episodes.group_size)).movedim(1, 0)
    whole = ADVANTAGES[kind](members_first).movedim(0, 1).flatten(0, 1)
    return every.mine(whole)[(slice(None), *map(slice, credit.shape[:-1]))].movedim(0, -1)


def _pooled_advantages(
    episodes: Episodes, credit: Float[Tensor, " M"], reward: Float[Tensor, " M"], kind: str, others: Group
) -> Float[Tensor, " M"]:
    """Compare every step with all steps of its group, or of the group's other episodes."""
    groups, group = episodes.num_groups, episodes.group
    total, steps = sums(credit, group, groups)[group], torch.bincount(group)[group]
    if kind == "rloo":
        total = total - episodes.spread(sums(credit, episodes.episode, episodes.num_episodes))
        steps = steps - episodes.spread(episodes.lengths)
    centred = credit - total / steps
    if kind == "group-std":
        squares = sums(centred.square(), group, groups) / (torch.bincount(group) - 1)
        centred = centred / (squares.sqrt()[group] + 1e-4)
    elif kind == "batch-std":
        centred = centred / (together(others, credit).rows.std() + 1e-4)
    returns = total_credit(episodes, reward, gamma=1.0).unflatten(0, (groups, -1)).T
    return centred.masked_fill(zero_variance_groups(returns)[group], 0.0)


def group_metrics(episodes: Episodes) -> dict[str, float]:
    """Return the mean over groups of the returns' standard deviation, and how many groups have equal returns."""
    members_first = episodes.group_returns.T
    return {
        "rollout/group_std": float(members_first.std(0).mean()),
        "train/zero_variance_groups": float(zero_variance_groups(members_first).sum()),
    }
