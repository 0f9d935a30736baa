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

from latentpg.errors import ShapeError, SpaceError, SupportError

_LEAVES = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def observation_size(space: spaces.Space[Any]) -> int:
    """Count the entries of a flattened observation.

    >>> observation_size(spaces.Dict({"image": spaces.Box(0, 1, (2, 3)), "key": spaces.Discrete(4)}))
    10
    """
    _check_observation_space(space)
    _check_entries(space)
    return spaces.utils.flatdim(space)


def encode_observations(space: spaces.Space[Any], batch: Any) -> Float[Tensor, "N S"]:  # noqa: ANN401 (what an env gives)
    """Flatten observations of N members to float32 ``[N, S]``, in the order of Gymnasium's ``flatten``.

    ``Box`` rows are reshaped, ``Discrete`` and ``MultiDiscrete`` become one-hot, ``Dict`` and ``Tuple`` are
    concatenated.

    >>> encode_observations(spaces.Discrete(3, start=5), np.array([5, 7])).tolist()
    [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    """
    _check_observation_space(space)
    return torch.from_numpy(np.array(_flatten(space, batch), dtype=np.float32))  # a copy: environments reuse theirs


def _flatten(space: spaces.Space[Any], batch: Any) -> NDArray[Any]:  # noqa: ANN401 (see above)
    match space:
        case spaces.Dict():
            return np.concatenate([_flatten(part, batch[name]) for name, part in space.spaces.items()], -1)
        case spaces.Tuple():
            return np.concatenate([_flatten(part, batch[i]) for i, part in enumerate(space.spaces)], -1)
        case spaces.Discrete():
            return np.eye(int(space.n))[_counted_from_zero("encode_observations()", space, batch)]
        case spaces.MultiDiscrete():
            digits = _counted_from_zero("encode_observations()", space, batch).reshape(-1, space.nvec.size)
            return np.concatenate([np.eye(int(n))[digits[:, i]] for i, n in enumerate(space.nvec.flatten())], -1)
        case _:
            rows = _rows("encode_observations()", space, batch)
            return rows.reshape(len(rows), -1)


def _rows(where: str, space: spaces.Space[Any], batch: Any) -> NDArray[Any]:  # noqa: ANN401 (see above)
    """Refuse what is not one value of the space a row: arithmetic with the space's bounds would broadcast it."""
    rows, shape = np.asarray(batch), tuple(space.shape or ())
    if rows.ndim == 0 or rows.shape[1:] != shape:
        raise ShapeError(
            where,
            f"a batch of values of {space}",
            expected=f"[{', '.join(map(str, ('N', *shape)))}]",
            got=str(list(rows.shape)),
            fix="stack one value a member; value[None] makes one a batch",
        )
    return rows


def _counted_from_zero(where: str, space: spaces.Discrete | spaces.MultiDiscrete, batch: Any) -> NDArray[Any]:  # noqa: ANN401 (see above)
    """Take off the space's ``start``; a value below it would be read from the end."""
    rows = _rows(where, space, batch)
    sizes = space.n if isinstance(space, spaces.Discrete) else space.nvec
    counted = rows.astype(np.int64) - space.start
    outside = ((counted < 0) | (counted >= sizes)).reshape(len(rows), -1).any(1)
    if outside.any():
        row = int(outside.argmax())
        raise SupportError(
            where,
            f"a value outside {space}",
            expected=f"integers from {space.start} on, fewer than {sizes} above it",
            got=f"{rows[row].tolist()} in row {row} ({int(outside.sum())} such rows)",
            fix="pass values as the environment gives and takes them, not counted from zero",
        )
    return counted


def encode_actions(space: spaces.Space[Any], batch: NDArray[Any]) -> Tensor:
    """Turn environment actions ``[N, ...]`` (of demonstrations, say) into policy coordinates.

    The inverse of :func:`decode_actions` within a ``Box``'s bounds.

    >>> encode_actions(spaces.Discrete(3, start=5), np.array([5, 7])).tolist()
    [0, 2]
    """
    match space:
        case spaces.Discrete() | spaces.MultiDiscrete():
            rows = _counted_from_zero("encode_actions()", space, batch)
            return torch.as_tensor(rows if isinstance(space, spaces.Discrete) else rows.reshape(len(rows), -1))
        case spaces.MultiBinary():
            rows = _rows("encode_actions()", space, batch).astype(np.float32)
            return torch.as_tensor(rows.reshape(len(rows), -1))
        case spaces.Box():
            center, half = _affine(space)
            rows = (_rows("encode_actions()", space, batch).astype(np.float64) - center) / half
            return torch.as_tensor(rows.reshape(len(rows), -1).astype(np.float32))
        case _:
            raise unsupported_action_space(space)


def decode_actions(space: spaces.Space[Any], action: Tensor) -> NDArray[Any]:
    """Turn policy coordinates ``[N, ...]`` into what the environment's ``step`` takes, clipped to its bounds.

    >>> decode_actions(spaces.Box(0.0, 2.0, (1,)), torch.tensor([[0.0], [9.0]])).tolist()
    [[1.0], [2.0]]
    """
    raw = action.detach().cpu().numpy()
    size = () if isinstance(space, spaces.Discrete) else (int(np.prod(space.shape or ())),)
    if isinstance(space, _LEAVES) and (raw.ndim == 0 or raw.shape[1:] != size):
        raise ShapeError(
            "decode_actions()",
            "`action`",
            expected=f"policy coordinates of {space}: [{', '.join(map(str, ('N', *size)))}]",
            got=str(list(raw.shape)),
            fix="one action a row, as act(policy, obs).action is",
        )
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
        center = np.where(finite, 0.5 * low + 0.5 * high, 0.0)
        half = np.where(finite, 0.5 * high - 0.5 * low, 1.0)  # halved first: high - low may overflow
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


def _check_entries(space: spaces.Space[Any]) -> None:
    parts: list[spaces.Space[Any]] = [space]
    while parts:
        part = parts.pop()
        inner = [*part.spaces.values()] if isinstance(part, spaces.Dict) else []
        inner = list(part.spaces) if isinstance(part, spaces.Tuple) else inner
        parts.extend(inner)
        if not inner and not spaces.utils.flatdim(part):
            raise empty_space("observation space", part)


def empty_space(where: str, space: spaces.Space[Any]) -> SpaceError:
    """Build the error for a space, or a part of one, that has no entries."""
    return SpaceError(
        where, "it has no entries", expected="one or more", got=repr(space), fix="Box(1, 1, (1,)), a constant, instead"
    )
