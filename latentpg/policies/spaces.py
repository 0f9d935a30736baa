"""Gymnasium spaces as tensors: observations become flat float32 vectors, actions live in policy coordinates.

Policy coordinates of an action are integers counted from zero (``Discrete`` and ``MultiDiscrete`` whatever their
``start``), 0/1 vectors (``MultiBinary``), and unbounded floats (``Box``), where the interval [-1, 1] is mapped onto
finite bounds and the result is clipped at the environment's edge only, so that log-probabilities and ratios are those
of the raw action.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from latentpg.errors import ShapeError, SpaceError

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def observation_size(space: spaces.Space[Any]) -> int:
    """Count the entries of a flattened observation.

    >>> observation_size(spaces.Dict({"image": spaces.Box(0, 1, (2, 3)), "key": spaces.Discrete(4)}))
    10
    """
    _check_observation_space(space)
    return spaces.utils.flatdim(space)


def encode_observations(space: spaces.Space[Any], batch: Any) -> Float[Tensor, "N S"]:  # noqa: ANN401 (what an env gives)
    """Flatten observations of N members to float32 ``[N, S]``, in the order of Gymnasium's ``flatten``.

    ``Box`` rows are reshaped, ``Discrete`` and ``MultiDiscrete`` become one-hot, ``Dict`` and ``Tuple`` are
    concatenated.

    >>> encode_observations(spaces.Discrete(3, start=5), np.array([5, 7])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _check_observation_space(space)
    return torch.from_numpy(np.ascontiguousarray(_flatten(space, batch), dtype=np.float32))


def _flatten(space: spaces.Space[Any], batch: Any) -> NDArray[Any]:  # noqa: ANN401 (see above)
    match space:
        case spaces.Dict():
            return np.concatenate([_flatten(part, batch[name]) for name, part in space.spaces.items()], -1)
        case spaces.Tuple():
            return np.concatenate([_flatten(part, batch[i]) for i, part in enumerate(space.spaces)], -1)
        case spaces.Discrete():
            return np.eye(int(space.n))[np.asarray(batch, dtype=np.int64) - int(space.start)]
        case spaces.MultiDiscrete():
            rows = np.asarray(batch, dtype=np.int64)
            return np.stack([np.asarray(spaces.utils.flatten(space, row)) for row in rows])
        case _:
            rows = np.asarray(batch)
            if rows.shape[1:] != space.shape:
                raise ShapeError(
                    "encode_observations()",
                    "a batch of observations",
                    expected=f"[N, {', '.join(map(str, space.shape or ()))}]",
                    got=str(list(rows.shape)),
                    fix="stack one observation a member; obs[None] makes one a batch",
                )
            return rows.reshape(len(rows), -1)


def encode_actions(space: spaces.Space[Any], batch: NDArray[Any]) -> Tensor:
    """Turn environment actions ``[N, ...]`` (of demonstrations, say) into policy coordinates.

    The inverse of :func:`decode_actions` within a ``Box``'s bounds.

    >>> encode_actions(spaces.Discrete(3, start=5), np.array([5, 7])).tolist()
    [0, 2]
    """
    match space:
        case spaces.Discrete():
            return torch.as_tensor(np.asarray(batch, dtype=np.int64) - int(space.start))
        case spaces.MultiDiscrete():
            return torch.as_tensor(np.asarray(batch, dtype=np.int64) - space.start).flatten(1)
        case spaces.MultiBinary():
            return torch.as_tensor(np.asarray(batch, dtype=np.float32)).flatten(1)
        case spaces.Box():
            center, half = _affine(space)
            return torch.as_tensor(((np.asarray(batch, dtype=np.float64) - center) / half).astype(np.float32)).flatten(
                1
            )
        case _:
            raise unsupported_action_space(space)


def decode_actions(space: spaces.Space[Any], action: Tensor) -> NDArray[Any]:
    """Turn policy coordinates ``[N, ...]`` into what the environment's ``step`` takes, clipped to its bounds.

    >>> decode_actions(spaces.Box(0.0, 2.0, (1,)), torch.tensor([[0.0], [9.0]])).tolist()
    [[1.0], [2.0]]
    """
    raw = action.detach().cpu().numpy()
    match space:
        case spaces.Discrete():
            return (raw + int(space.start)).astype(space.dtype)
        case spaces.MultiDiscrete():
            return (raw.reshape(-1, *space.shape) + space.start).astype(space.dtype)
        case spaces.MultiBinary():
            return raw.reshape(-1, *space.shape).astype(space.dtype)
        case spaces.Box():
            center, half = _affine(space)
            scaled = center + half * raw.reshape(-1, *space.shape).astype(np.float64)
            return np.clip(scaled, space.low, space.high).astype(space.dtype)
        case _:
            raise unsupported_action_space(space)


def unsupported_action_space(space: spaces.Space[Any]) -> SpaceError:
    """Build the error for an action space that no head serves."""
    return SpaceError(
        "action space",
        "no action head serves it",
        expected="Discrete, MultiDiscrete, MultiBinary or a floating-point Box",
        got=repr(space),
        fix="wrap the environment with gymnasium.wrappers.TransformAction, or write your own decoder program",
    )


def _affine(space: spaces.Box) -> tuple[NDArray[Any], NDArray[Any]]:
    """Center and half-width where both bounds are finite; elsewhere the identity."""
    finite = np.isfinite(space.low) & np.isfinite(space.high)
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    with np.errstate(invalid="ignore"):
        center = np.where(finite, 0.5 * (low + high), 0.0)
        half = np.where(finite, 0.5 * (high - low), 1.0)
    return center, np.where(half == 0, 1.0, half)


def _check_observation_space(space: spaces.Space[Any]) -> None:
    parts: list[spaces.Space[Any]] = [space]
    while parts:
        part = parts.pop()
        if isinstance(part, spaces.Dict):
            parts.extend(part.spaces.values())
        elif isinstance(part, spaces.Tuple):
            parts.extend(part.spaces)
        elif not isinstance(part, _LEAVES):
            raise SpaceError(
                "observation space",
                f"{type(part).__name__} cannot be flattened to a fixed number of entries",
                expected="Box, Discrete, MultiDiscrete, MultiBinary, or Dict and Tuple of those",
                got=repr(part),
                fix="wrap the environment with gymnasium.wrappers.TransformObservation",
            )
