r"""Losses of critics: rows to minimise, with the bootstrap term never differentiated.

Shapes must be equal, because ``[B, 1]`` less ``[B]`` would silently be ``[B, B]``; targets are constants here.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.numerics._checks import fraction, mask_of, positive, same_shape
from latentpg.values.critics import Critic


def value_loss(value: Float[Tensor, "*B"], target: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
    r"""Return :math:`\frac12 (V(s) - \mathrm{sg}[y])^2`, rows to minimise.

    Its gradient is :math:`(V - y)\nabla V`, whatever the target was computed from: the semi-gradient.

    Source: R. S. Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition 2018, section 9.3.

    >>> value_loss(torch.tensor([1.0, 3.0]), torch.tensor([3.0, 3.0])).tolist()
    [2.0, 0.0]
    """
    same_shape("value_loss()", "value", value, "target", target)
    return 0.5 * (value - target.detach()).square()


def clipped_value_loss(
    value: Float[Tensor, "*B"],
    old_value: Float[Tensor, "*B"],
    target: Float[Tensor, "*B"],
    *,
    clip_range: float | int,
) -> Float[Tensor, "*B"]:
    r"""Return PPO2's clipped value loss :math:`\frac12\max[(V-y)^2,\ (V_c-y)^2]`, rows to minimise.

    :math:`V_c = V_{old} + \mathrm{clip}(V - V_{old}, -\varepsilon, \varepsilon)`. A row whose value has moved more than
    ``clip_range`` :math:`\varepsilon` towards its target since the rollout gives no gradient any more. The range is in
    units of the value, so that it means something only where rewards are normalised.

    It is not in the PPO paper: it came with the code known as PPO2 (P. Dhariwal et al., "OpenAI Baselines", 2017).
    Engstrom et al., "Implementation matters in deep policy gradients", 2020, describe it and found no benefit from it;
    M. Andrychowicz et al., "What matters for on-policy deep actor-critic methods?", 2021, found it to hurt.

    >>> value, old = torch.tensor([0.5, 1.1, 0.9]), torch.zeros(3)
    >>> [round(row, 3) for row in clipped_value_loss(value, old, torch.ones(3), clip_range=1.0).tolist()]
    [0.125, 0.005, 0.005]
    >>> [round(row, 3) for row in clipped_value_loss(value, old, torch.ones(3), clip_range=0.2).tolist()]
    [0.32, 0.32, 0.32]
    """
    same_shape("clipped_value_loss()", "value", value, "old_value", old_value)
    same_shape("clipped_value_loss()", "value", value, "target", target)
    positive("clipped_value_loss()", "clip_range", clip_range)
    old = old_value.detach()
    clipped = old + (value - old).clamp(-clip_range, clip_range)
    return torch.maximum(value_loss(value, target), value_loss(clipped, target))


def td_loss(
    critic: Critic,
    obs: Float[Tensor, "B S"],
    reward: Float[Tensor, " B"],
    next_obs: Float[Tensor, "B S"],
    terminated: Bool[Tensor, " B"],
    *,
    discount: float | int,
) -> Float[Tensor, " B"]:
    r"""Return :math:`\frac12 (V(s) - \mathrm{sg}[r + \gamma\,(1 - \mathrm{terminated})\,V(s')])^2`, rows to minimise.

    Its gradient is that of TD(0), :math:`-\delta\,\nabla V(s)`. Differentiating the bootstrap too would descend the
    Bellman residual, whose minimum is another point as soon as transitions are random. Of a step's two ends only
    ``terminated`` counts: a truncated one has a future.

    Source: Sutton and Barto 2018, sections 9.3 and 11.5.
    """
    fraction("td_loss()", "discount", discount)
    value = critic(obs)
    same_shape("td_loss()", "critic(obs)", value, "reward", reward)
    mask_of("td_loss()", "critic(obs)", value, "terminated", terminated)
    with torch.no_grad():
        target = reward + discount * critic(next_obs).masked_fill(terminated, 0.0)
    return value_loss(value, target)
