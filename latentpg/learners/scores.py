r"""How long the score :math:`\nabla\log\pi` of each row or episode is, which the variance-optimal baseline weighs by.

A gradient a row cannot be had from one pass backwards: a few rows at a time are scored, and differentiated together by
a batched pass.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.learners.scoring import Scorer
from latentpg.programs import LatentPolicy, model_parameters

ROWS = 16
"""Rows that are scored together: a batched pass costs groups times rows of them."""


def squared_scores(policy: LatentPolicy, scorer: Scorer, group: Int[Tensor, " B"], number: int) -> Float[Tensor, " E"]:
    r"""Return :math:`\|\sum_{i\in e}\nabla\log\pi(a_i|s_i)\|^2` of each group e of rows, in theta and phi.

    ``group [B]`` is each row's, rising from 0; with ``torch.arange(B)`` every row is one by itself. The estimator's
    gradient on the update's particles stands for the score.
    """
    parameters = model_parameters(policy)
    length = torch.bincount(group, minlength=number)
    at_once = max(1, ROWS * number // max(len(group), 1))
    found = []
    for chosen in torch.arange(number, device=group.device).split(at_once):
        first = int(length[: chosen[0]].sum())
        index = torch.arange(first, first + int(length[chosen].sum()), device=group.device)
        log_prob = scorer.score(policy, index).log_prob
        each = (group[index] == chosen[:, None]).to(log_prob.dtype)
        gradients = torch.autograd.grad(
            log_prob, parameters, each, is_grads_batched=True, allow_unused=True, materialize_grads=True
        )
        found.append(torch.stack([g.detach().flatten(1).square().sum(1) for g in gradients]).sum(0))
    return torch.cat(found)
