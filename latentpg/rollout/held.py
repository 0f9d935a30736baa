"""Acting with a latent that is held for an episode.

z is drawn from p_phi(z | s_0) at an episode's first observation; every action of it then comes from
p_theta(a | s_t, z). The episode is one row: log p(z, a_0, a_1, ... | s) = log p(z | s_0) + sum_t log p(a_t | s_t, z).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool
from torch import Tensor

from latentpg.programs import Acted, LatentPolicy, Latents, draw_prior
from latentpg.programs.capture import Capture


def act_holding(policy: LatentPolicy, obs: Tensor, held: Latents | None, begins: Bool[Tensor, " N"]) -> Acted:
    """Act on ``obs [N, S]``: rows in ``begins`` draw latents, the others keep those of ``held [N, ...]``.

    ``log_joint`` is log p(a | s, z), and log p(z | s) on top of it in the rows that drew. Without ``held`` every row
    must begin.
    """
    log_prior = torch.zeros(len(obs), device=obs.device)
    latents: Latents = {} if held is None else held
    if bool(begins.any()):
        drawn = draw_prior(policy, obs[begins], num_particles=1)
        log_prior = log_prior.to(drawn.log_prob.dtype).masked_scatter(begins, drawn.log_prob[0])
        fresh = {name: value[0] for name, value in drawn.latents.items()}
        latents = fresh if bool(begins.all()) else {name: _put(latents[name], begins, fresh[name]) for name in fresh}
    return _act_with(policy, obs, latents, log_prior)


def _put(old: Tensor, where: Bool[Tensor, " N"], new: Tensor) -> Tensor:
    result = old.clone()
    result[where] = new
    return result


def _act_with(policy: LatentPolicy, obs: Tensor, latents: Latents, log_prior: Tensor) -> Acted:
    """Run the model with its latents given, and draw and score its action."""
    capture = Capture("model", len(obs), values=latents, score_latents=False)
    with capture:
        policy.model(obs, None)
    assert capture.action is not None
    total = log_prior
    for part in capture.log_observed.values():
        total = total + part
    return Acted(capture.action, latents, total)
