"""Hold demonstrations against the spaces of an environment and against a policy, before anything is learnt.

Datasets record actions as the environment took them; policies score them in policy coordinates
(:mod:`latentpg.policies.spaces`). An action that lies outside its space is no demonstration of anything, and is named.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from latentpg.data.demonstrations import Demonstrations
from latentpg.data.guards import DataError
from latentpg.data.rows import DemonstrationRows
from latentpg.errors import LatentPGError
from latentpg.numerics.rng import seeded
from latentpg.policies.spaces import encode_actions, observation_size, unsupported_action_space
from latentpg.programs import LatentPolicy, Observations, draw_prior, log_joint, parameter_dtype


def encode_for_spaces(
    demonstrations: Demonstrations, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]
) -> Demonstrations:
    """Return demonstrations with actions in policy coordinates, or refuse those that do not fit the spaces.

    Observations must have as many entries as the flattened space. Actions of a ``Box`` must lie within its bounds,
    integers within their range. Add :func:`action_log_jacobian` to a log-likelihood of encoded actions to have that of
    the environment's own.

    >>> demos = Demonstrations.from_episodes([[[0.0]]], [[[1.5]]])
    >>> encode_for_spaces(demos, spaces.Box(-1, 1, (1,)), spaces.Box(0, 2, (1,))).action.tolist()
    [[0.5]]
    """
    size = observation_size(observation_space)
    if demonstrations.obs.shape[1] != size:
        raise DataError(
            demonstrations.source,
            "observations of another size than the environment's",
            expected=f"[M, S={size}], {observation_space} flattened",
            got=str(list(demonstrations.obs.shape)),
            likely="other observation keys than the policy was made for",
        )
    action = _shaped(demonstrations, action_space)
    outside = _outside(action_space, action.numpy()).reshape(len(action), -1).any(1)
    if outside.any():
        bad = torch.from_numpy(outside)
        raise DataError(
            demonstrations.source,
            f"actions outside {action_space}",
            expected="actions as the environment takes them",
            got=f"{demonstrations.action[bad][0].tolist()} in {demonstrations.where(bad)}",
            fix="action.clip(low, high) if the environment clips them anyway",
        )
    encoded = encode_actions(action_space, action.numpy())
    return replace(demonstrations, action=encoded.to(demonstrations.obs.dtype) if _is_float(encoded) else encoded)


def action_log_jacobian(action_space: spaces.Space[Any]) -> float:
    r"""Return :math:`\sum_i\log\frac{2}{h_i-l_i}` over the finite bounds of a ``Box``, 0 for integers; nats a step.

    It is :math:`\log p(a) - \log p(\text{encoded } a)`.

    >>> round(action_log_jacobian(spaces.Box(0.0, 4.0, (1,))), 6)
    -0.693147
    """
    if not isinstance(action_space, spaces.Box):
        return 0.0
    finite = np.isfinite(action_space.low) & np.isfinite(action_space.high)
    width = action_space.high[finite].astype(np.float64) - action_space.low[finite].astype(np.float64)
    return float(np.log(2.0 / width[width > 0]).sum())


def check_policy(
    demonstrations: Demonstrations, policy: LatentPolicy, *, rows: DemonstrationRows | None = None
) -> None:
    """Score two rows, to find out before training whether data and policy have the same types and dimensions.

    Without ``rows`` a row is a step. A policy over chunks or episodes is asked about the ``rows`` that were cut from
    the demonstrations for it (:func:`~latentpg.data.chunk_rows`, :func:`~latentpg.data.episode_rows`).
    """
    dtype = parameter_dtype(policy)
    if demonstrations.obs.dtype != dtype:
        raise DataError(
            demonstrations.source,
            "another floating-point type than the policy's",
            expected=str(dtype),
            got=str(demonstrations.obs.dtype),
            fix=f"demonstrations.to({dtype})",
        )
    obs: Observations = demonstrations.obs[:2]
    action, what = demonstrations.action[:2], ["M"]
    if rows is not None:
        some = rows.take(torch.arange(min(2, len(rows.action))))
        obs, action, what = some.obs, some.action, ["B", f"T={rows.action.shape[1]}"]
    try:
        with seeded(0), torch.no_grad():
            latents = draw_prior(policy, obs, num_particles=1).latents
            scored = log_joint(policy, obs, action, latents)
    except (RuntimeError, ValueError, LookupError, TypeError) as error:
        told, chunked = isinstance(error, LatentPGError), rows is None and hasattr(policy, "horizon")
        raise DataError(
            demonstrations.source,
            f"the policy does not run on observations {_shape(what, demonstrations.obs)} and actions "
            f"{_shape(what, demonstrations.action)}",
            expected="data of the dimensions and types that the policy was made for",
            got=str(error).strip() if told else f"{type(error).__name__}: {error}",
            likely="a policy over chunks: check_policy(..., rows=...)" if chunked else None,
        ) from error
    if not bool(torch.isfinite(scored).all()):
        raise DataError(
            demonstrations.source,
            "actions that the policy cannot produce",
            expected="a finite log p(z, a | s)",
            got=str(scored.flatten().tolist()),
        )


def _shape(leading: list[str], steps: Tensor) -> str:
    return f"[{', '.join([*leading, *map(str, steps.shape[1:])])}]"


def _is_float(values: Tensor) -> bool:
    return values.is_floating_point()


def _shaped(demonstrations: Demonstrations, space: spaces.Space[Any]) -> Tensor:
    """Return actions ``[M, *space.shape]``, or refuse their size or kind."""
    action = demonstrations.action
    if not isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        raise unsupported_action_space(space)
    shape = tuple(space.shape or ())
    sizes = () if isinstance(space, spaces.Discrete) else (math.prod(shape),)
    floating = isinstance(space, spaces.Box)
    if tuple(action.shape[1:]) != sizes or _is_float(action) != floating:
        raise DataError(
            demonstrations.source,
            f"actions that are none of {space}",
            expected=f"{'floating-point numbers' if floating else 'integers'} {['M', *sizes]}",
            got=f"{action.dtype} {['M', *action.shape[1:]]}",
            fix="action.squeeze(-1)" if tuple(action.shape[1:]) == (1,) and not sizes else None,
        )
    return action.reshape(len(action), *shape)


def _outside(space: spaces.Space[Any], action: np.ndarray) -> np.ndarray:
    match space:
        case spaces.Box():
            typed = action.astype(space.dtype)  # bounds are rounded to the space's type, so actions are too
            return (typed < space.low) | (typed > space.high)
        case spaces.Discrete():
            return (action < space.start) | (action >= space.start + space.n)
        case spaces.MultiDiscrete():
            return (action < space.start) | (action >= space.start + space.nvec)
        case _:
            return (action != 0) & (action != 1)
