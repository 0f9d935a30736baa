"""The guard between acting and learning: recorded rows are still what the policy says of them."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import RecordedLatentError
from latentpg.programs import LatentPolicy, Latents, Observations, log_joint


def check_record(
    policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents, recorded: Float[Tensor, " B"]
) -> float:
    """Recompute log p(z, a | s) of recorded rows and return its largest change; a real one is an error.

    It guards everything that follows: a moved normaliser, dropout or misaligned rows would make the recorded latents
    draws from some other policy's posterior. Rows without latents are held against the policy's own ``log_pi``.
    """
    with torch.no_grad():
        now = _log_joint(policy, obs, action, latents)
    finite = now.isfinite() & recorded.isfinite()  # an infinite record would make any tolerance infinite
    changes = (now - recorded).abs().masked_fill(~finite, math.inf)
    change = float(changes.max())
    tolerance = 1e3 * torch.finfo(now.dtype).eps * max(1.0, float(recorded.masked_fill(~finite, 0.0).abs().max()))
    if not change <= tolerance:
        raise RecordedLatentError(
            "recorded rows",
            "log p(z, a | s) is no longer what it was when the policy acted",
            expected=f"a change of at most {tolerance:.1e} nats",
            got=f"{change:.3g} nats in row {int(changes.argmax())}",
            likely="a network that depends on the batch or on random masks, or rows out of order",
            fix="act and score with the same parameters and buffers",
        )
    return change


def _log_joint(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Tensor:
    if latents:
        return log_joint(policy, obs, action, {name: value.unsqueeze(0) for name, value in latents.items()})[0]
    log_pi = getattr(policy, "log_pi", None)
    if log_pi is None:
        raise RecordedLatentError(
            "recorded rows",
            "no latents were recorded, and the policy has no log_pi of its own",
            expected="latents={site: [B, ...]}, or a policy with a method log_pi(obs, action)",
            got=type(policy).__name__,
        )
    return log_pi(obs, action)
