"""Action heads: from a network's output to a Pyro distribution over actions in policy coordinates.

``head(parameters [..., P])`` gives a distribution of batch shape ``[...]``; ``head.embed(action)`` gives the floats
``[..., E]`` by which a guide sees an action.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributions import Distribution

from latentpg.errors import OptionError
from latentpg.policies.networks import one_hot
from latentpg.policies.spaces import empty_space, unsupported_action_space
from latentpg.programs.distributions import Categorical, DiagNormal, MultiBernoulli, MultiCategorical


class DiscreteHead(nn.Module):
    """One categorical over n actions; actions are int64 ``[...]`` counted from zero."""

    def __init__(self, num_actions: int) -> None:
        """Take the number of actions."""
        super().__init__()
        self.num_parameters = self.embedding_size = num_actions
        self.event_shape: tuple[int, ...] = ()

    def forward(self, parameters: Float[Tensor, "*B P"]) -> Distribution:
        """Read the parameters as logits."""
        return Categorical(parameters)

    def embed(self, action: Tensor) -> Float[Tensor, "*B E"]:
        """One-hot."""
        return one_hot(action, self.num_parameters)


class MultiDiscreteHead(nn.Module):
    """Independent categoricals; actions are int64 ``[..., D]`` counted from zero."""

    def __init__(self, sizes: tuple[int, ...]) -> None:
        """Take the number of values of each coordinate."""
        super().__init__()
        self.sizes = sizes
        self.num_parameters = self.embedding_size = sum(sizes)
        self.event_shape = (len(sizes),)

    def forward(self, parameters: Float[Tensor, "*B P"]) -> Distribution:
        """Read the parameters as the concatenated logits."""
        return MultiCategorical(parameters, self.sizes)

    def embed(self, action: Tensor) -> Float[Tensor, "*B E"]:
        """Concatenated one-hots."""
        return torch.cat([one_hot(action[..., i], size) for i, size in enumerate(self.sizes)], -1)


class MultiBinaryHead(nn.Module):
    """Independent coin flips; actions are floats 0 or 1, ``[..., D]``."""

    def __init__(self, size: int) -> None:
        """Take the number of coins."""
        super().__init__()
        self.num_parameters = self.embedding_size = size
        self.event_shape = (size,)

    def forward(self, parameters: Float[Tensor, "*B P"]) -> Distribution:
        """Read the parameters as logits of a one."""
        return MultiBernoulli(parameters)

    def embed(self, action: Tensor) -> Float[Tensor, "*B E"]:
        """Return the bits as floats."""
        return action.to(torch.get_default_dtype())


class BoxHead(nn.Module):
    r"""A Gaussian with one learned log standard deviation a coordinate, shared by all states.

    Actions are ``[..., D]``. Without a floor :math:`\sigma_i = e^{\rho_i}`, rho the parameter ``log_std``. With
    ``min_log_std`` m it is :math:`\sigma_i = e^m + e^{\rho_i}`, which is never below :math:`e^m`, has a slope
    everywhere, and hardly moves what is well above: a likelihood of actions that can be foretold to any precision is
    then bounded, by a number that was chosen.
    """

    def __init__(
        self, size: int, *, initial_log_std: float | int = 0.0, min_log_std: float | int | None = None
    ) -> None:
        """Take the number of coordinates, where ``log_std`` begins, and a floor or None; in policy coordinates."""
        super().__init__()
        self.num_parameters = self.embedding_size = size
        self.event_shape = (size,)
        self.min_log_std = _check_floor(min_log_std)
        self.log_std = nn.Parameter(torch.full((size,), float(initial_log_std)))

    def forward(self, parameters: Float[Tensor, "*B P"]) -> Distribution:
        """Read the parameters as the mean."""
        return DiagNormal(parameters, self.log_scale)

    @property
    def log_scale(self) -> Float[Tensor, " D"]:
        r"""Logarithm of :math:`\sigma`, the floor in it."""
        if self.min_log_std is None:
            return self.log_std
        return torch.logaddexp(self.log_std, torch.full_like(self.log_std, self.min_log_std))

    def embed(self, action: Tensor) -> Float[Tensor, "*B E"]:
        """Return the action as it is."""
        return action


ActionHead = DiscreteHead | MultiDiscreteHead | MultiBinaryHead | BoxHead
"""Any of the heads."""


def set_scale(
    head: nn.Module, *, initial_log_std: float | int | None = None, min_log_std: float | int | None = None
) -> None:
    """Let a :class:`BoxHead`'s log standard deviations begin there, over that floor; other heads have none.

    A value of None leaves the head's own.
    """
    if not isinstance(head, BoxHead):
        return
    if min_log_std is not None:
        head.min_log_std = _check_floor(min_log_std)
    if initial_log_std is not None:
        with torch.no_grad():
            head.log_std.fill_(float(initial_log_std))


def scale_floors(module: nn.Module) -> list[float | None]:
    """List the floor of every :class:`BoxHead` in a module, as a log standard deviation in policy coordinates.

    >>> scale_floors(nn.ModuleList([BoxHead(2), BoxHead(1, min_log_std=-4), DiscreteHead(3)]))
    [None, -4.0]
    """
    return [each.min_log_std for each in module.modules() if isinstance(each, BoxHead)]


def make_head(space: spaces.Space[Any]) -> ActionHead:
    """Choose the head of an action space.

    >>> make_head(spaces.Discrete(3, start=7)).num_parameters
    3
    """
    if 0 in tuple(space.shape or ()):
        raise empty_space("action space", space)
    match space:
        case spaces.Discrete():
            return DiscreteHead(int(space.n))
        case spaces.MultiDiscrete():
            return MultiDiscreteHead(tuple(int(n) for n in space.nvec.flatten()))
        case spaces.MultiBinary():
            return MultiBinaryHead(int(np.prod(space.shape)))
        case spaces.Box() if np.issubdtype(space.dtype, np.floating):
            return BoxHead(int(np.prod(space.shape)))
        case _:
            raise unsupported_action_space(space)


def _check_floor(value: float | int | None) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not math.isfinite(value):
        raise OptionError("BoxHead()", "`min_log_std`", expected="a finite number, or None", got=repr(value))
    return float(value)
