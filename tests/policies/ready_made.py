"""The ready-made policies in small, over every kind of action and of row, and Pyro's own trace to score them by."""

import copy
import math
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from pyro import poutine
from torch import Tensor

from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy, encode_actions
from latentpg.programs import Latents, Observations, Span, num_rows, take_rows

ReadyMade = MixturePolicy | GaussianPolicy | TwoLevelPolicy

SEEN = spaces.Box(-1.0, 1.0, (3,))

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(4, start=2),
    "multi-discrete": spaces.MultiDiscrete(np.array([2, 3])),
    "multi-binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (2,)),
}

KINDS = ("mixture", "gaussian", "standard", "two-level")

LATENTS: dict[str, dict[str, tuple[int, ...]]] = {
    "mixture": {"z": ()},
    "gaussian": {"z": (2,)},
    "standard": {"z": (2,)},
    "two-level": {"mode": (), "style": (2,)},
}
"""Site to event shape; what has none is a category."""

ROWS = 3
STEPS = 3


def make(kind: str, actions: str, *, seen: spaces.Space[Any] = SEEN, **options: Any) -> ReadyMade:  # noqa: ANN401
    """Build a policy of a kind with small networks, in float64."""
    space, options = ACTIONS[actions], {"hidden": (5, 4), **options}
    policy: ReadyMade
    if kind == "mixture":
        policy = MixturePolicy(seen, space, num_components=3, **options)
    elif kind == "two-level":
        policy = TwoLevelPolicy(seen, space, num_modes=3, style_size=2, **options)
    else:
        prior = "learned" if kind == "gaussian" else "standard"
        policy = GaussianPolicy(seen, space, latent_size=2, prior=prior, **options)
    return policy.double()


def observations(rows: str, *, size: int = 3) -> Observations:
    """Draw observations for step rows or for spans of unequal length."""
    if rows == "step":
        return torch.randn(ROWS, size, dtype=torch.float64)
    mask = torch.arange(STEPS) < torch.tensor([[3], [1], [2]])
    return Span(torch.randn(ROWS, STEPS, size, dtype=torch.float64), mask)


def some_actions(actions: str, *lead: int, seed: int = 1) -> Tensor:
    """Give actions of a space in policy coordinates, the same in every test and not all alike."""
    space = copy.deepcopy(ACTIONS[actions])
    space.seed(seed)
    drawn = encode_actions(space, np.stack([space.sample() for _ in range(math.prod(lead))]))
    assert len(drawn.unique(dim=0)) > 1
    return (drawn.double() if drawn.is_floating_point() else drawn).reshape(*lead, *drawn.shape[1:])


def actions_for(actions: str, obs: Observations) -> Tensor:
    """Give one action a row, or a step of a span."""
    return some_actions(actions, ROWS, STEPS) if isinstance(obs, Span) else some_actions(actions, ROWS)


def trace_each_row(program: Any, obs: Observations, action: Tensor | None, latents: Latents) -> dict[str, Tensor]:  # noqa: ANN401
    """Score one particle of one row at a time by Pyro's own trace: ``[K, B]`` by site."""
    particles, rows = next(iter(latents.values())).shape[0], num_rows(obs)
    found: dict[str, list[Tensor]] = {}
    for k in range(particles):
        for b in range(rows):
            one = slice(b, b + 1)
            values = {name: value[k, one] for name, value in latents.items()}
            conditioned = poutine.condition(program, data=values)
            trace = poutine.trace(conditioned).get_trace(
                take_rows(obs, one), None if action is None else take_rows(action, one)
            )
            trace.compute_log_prob()
            for name in trace.stochastic_nodes + trace.observation_nodes:
                log_prob = trace.nodes[name]["log_prob"]
                assert log_prob.shape == (1,)  # one row, and nothing broadcast to more
                found.setdefault(name, []).append(log_prob[0])
    return {name: torch.stack(values).reshape(particles, rows) for name, values in found.items()}


def sum_of(by_site: dict[str, Tensor]) -> Tensor:
    total = torch.zeros((), dtype=torch.float64)
    for value in by_site.values():
        total = total + value
    assert math.prod(total.shape) > 0
    return total
