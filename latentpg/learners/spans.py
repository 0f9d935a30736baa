r"""What a critic says of whole episodes whose latents span several steps: credit by the decision.

Between two decisions lie L steps, so that decisions make a semi-Markov process (R. S. Sutton, D. Precup and S. Singh,
"Between MDPs and semi-MDPs: a framework for temporal abstraction in reinforcement learning", 1999). Decision j, made at
step t, earns and is followed by

.. math:: R_j = \sum_{i<L_j}\gamma^i r_{t+i}, \qquad
   \delta_j = R_j + \gamma^{L_j}\,(1-\mathrm{terminated}_j)\,V(s_{t+L_j}) - V(s_t), \qquad
   A_j = \delta_j + \gamma^{L_j}\lambda\,(1-\mathrm{done}_j)\,A_{j+1}.

:math:`\lambda` is per decision. A chunk's length hangs on where the episode ended and on nothing else. An episode that
was truncated bootstraps from its last observation. A latent held for an episode makes one decision, and
:math:`A = R - V(s_0)`; a latent a step makes every step one, and this is
:func:`~latentpg.numerics.targets.gae`.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from latentpg.learners.episodic import EpisodeRows, episode_rows, sums
from latentpg.learners.parallel import ALONE, Group, moments_over
from latentpg.numerics._checks import fraction
from latentpg.rollout import Episodes, RewardScaler


@dataclass(frozen=True, eq=False)
class SpanCredit:
    """B rows of whole episodes, what each is worth, what the critic said of it, and the scaler that saw the rewards."""

    rows: EpisodeRows
    advantage: Float[Tensor, " B"]
    value: Float[Tensor, " B"]
    scaler: RewardScaler | None


def span_credit(
    episodes: Episodes,
    critic: nn.Module,
    scaler: RewardScaler | None = None,
    *,
    discount: float | int,
    trace_decay: float | int,
    group: Group = ALONE,
) -> SpanCredit:
    """Value the observation at which each decision was made, and what was seen behind its last step.

    The scaler sees the rewards of all workers of the ``group``.
    """
    steps, begins = episodes.transitions, episodes.begins
    ends = torch.cat([begins[1:], begins.new_ones(1)])
    with torch.no_grad():
        value, following = critic(steps.obs[begins]), critic(steps.next_obs[ends])
    reward = steps.reward
    if scaler is not None:
        done = episodes.pad(steps.done, fill=True)
        seen = partial(moments_over, group)
        scaler = scaler.update(episodes.pad(reward), done, mask=episodes.mask, joined=seen)
        reward = scaler.scale(reward)
    row = begins.cumsum(0) - 1
    age = torch.arange(len(row), device=row.device) - begins.nonzero().squeeze(1)[row]
    advantage = span_gae(
        sums(reward * (discount**age).to(reward.dtype), row, len(value)),
        value,
        following,
        steps.terminated[ends],
        steps.truncated[ends],
        torch.bincount(row),
        discount=discount,
        trace_decay=trace_decay,
    )
    return SpanCredit(episode_rows(episodes), advantage, value, scaler)


def span_gae(
    reward: Float[Tensor, " B"],
    value: Float[Tensor, " B"],
    next_value: Float[Tensor, " B"],
    terminated: Bool[Tensor, " B"],
    truncated: Bool[Tensor, " B"],
    length: Int[Tensor, " B"],
    *,
    discount: float | int,
    trace_decay: float | int,
) -> Float[Tensor, " B"]:
    r"""Return :math:`A_j` of the module's formula for the decisions of whole episodes, one episode after the other.

    ``reward`` is :math:`R_j`, discounted within the span. With λ = 1 and no truncation it is all that was earned since,
    discounted, less :math:`V(s_t)`, whatever the critic.

    >>> ends = torch.tensor([False, True])
    >>> one = torch.ones(2)
    >>> span_gae(one, 0 * one, 8 * one, ends, ~ends & False, torch.tensor([2, 1]), discount=0.5, trace_decay=1).tolist()
    [3.25, 1.0]
    """
    fraction("span_gae()", "discount", discount)
    fraction("span_gae()", "trace_decay", trace_decay)
    factor = (discount**length).to(reward.dtype)
    error = reward + factor * next_value.masked_fill(terminated, 0.0) - value
    decay = (trace_decay * factor).masked_fill(terminated | truncated, 0.0)
    advantage = torch.empty_like(error)
    later = torch.zeros_like(error[0])
    for j in reversed(range(len(error))):
        later = error[j] + decay[j] * later
        advantage[j] = later
    return advantage
