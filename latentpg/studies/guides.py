r"""Train a guide on fixed rows, for studies of what its quality is worth."""

from __future__ import annotations

import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import make_guide_objective
from latentpg.estimators.guides import GuideObjective
from latentpg.programs import LatentPolicy, Latents, Observations


def train_guide(
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    latents: Latents | None,
    *,
    objective: str | GuideObjective,
    steps: int,
    learning_rate: float,
) -> None:
    r"""Move psi by ``steps`` full-batch steps of Adam on the mean loss over the rows; theta and phi stay.

    ``objective`` is a guide objective or its registered name. Objectives that sample draw from the ambient stream.
    Gradients are taken in psi alone, and none is left behind in ``.grad``. Adam: Kingma and Ba, "Adam: A Method for
    Stochastic Optimization", 2015.

    >>> from latentpg.oracles import TabularLatentPolicy
    >>> policy = TabularLatentPolicy(torch.zeros(1, 2), torch.tensor([[[0.0, 0.0], [0.0, 3.0]]]).log1p())
    >>> row = torch.zeros(1, dtype=torch.int64)
    >>> train_guide(policy, row, row, {"z": row}, objective="recorded", steps=1, learning_rate=0.5)
    >>> policy.guide_logits[0, 0].tolist()  # latent 0 was recorded with action 0: Adam's first step is the whole rate
    [0.49999999..., -0.49999999...]
    """
    if isinstance(steps, bool) or steps < 0:
        raise OptionError("train_guide()", "`steps`", expected="an integer >= 0", got=repr(steps), fix="steps=60")
    if not learning_rate > 0:
        raise OptionError("train_guide()", "`learning_rate`", expected="a number > 0", got=repr(learning_rate))
    chosen = make_guide_objective(objective) if isinstance(objective, str) else objective
    parameters = list(policy.guide_parameters())
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    for _ in range(steps):
        loss = chosen.loss(policy, obs, action, latents=latents).mean()
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.grad = gradient
        optimizer.step()
    optimizer.zero_grad()
