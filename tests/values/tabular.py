"""Tabular processes as rows: every transition with its probability, so that an average over rows is an expectation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from latentpg.oracles.mdp import TabularMDP
from latentpg.values import Experience, Identity, LinearCritic


def double(values: object) -> Tensor:
    """Make a float64 tensor."""
    return torch.tensor(values, dtype=torch.float64)


def flag(*values: bool) -> Tensor:
    return torch.tensor(values, dtype=torch.bool)


@dataclass(frozen=True)
class Rows:
    """Every transition (s, a, s') out of a live state; ``weight`` is pi(a|s) P(s'|s, a), 1 in total for each s."""

    obs: Tensor
    reward: Tensor
    next_obs: Tensor
    terminated: Tensor
    weight: Tensor
    state: Tensor


def transitions(mdp: TabularMDP, pi: Tensor) -> Rows:
    """Enumerate the transitions of a policy, observations one-hot."""
    probability = pi[:, :, None] * mdp.transition * mdp.live[:, None, None]
    state, action, following = probability.nonzero(as_tuple=True)
    hot = torch.eye(mdp.num_states, dtype=torch.float64)
    return Rows(
        obs=hot[state],
        reward=mdp.reward[state, action],
        next_obs=hot[following],
        terminated=~mdp.live[following],
        weight=probability[state, action, following],
        state=state,
    )


def ending() -> tuple[TabularMDP, Tensor]:
    """Three live states and an end: random transitions, of which some terminate; and a policy that is not uniform."""
    mdp = TabularMDP(
        transition=double(
            [
                [[0.1, 0.6, 0.3, 0.0], [0.5, 0.0, 0.3, 0.2]],
                [[0.0, 0.2, 0.5, 0.3], [0.9, 0.1, 0.0, 0.0]],
                [[0.4, 0.4, 0.2, 0.0], [0.0, 0.0, 0.4, 0.6]],
                [[0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]],
            ]
        ),
        reward=double([[1.0, -2.0], [0.5, 3.0], [-1.0, 2.0], [100.0, 100.0]]),  # the end's own never count
        initial=double([0.5, 0.3, 0.2, 0.0]),
        discount=0.8,
        terminal=flag(False, False, False, True),
    )
    return mdp, double([[0.3, 0.7], [0.6, 0.4], [0.5, 0.5], [0.5, 0.5]])


def table(num_states: int, values: Tensor | None = None) -> LinearCritic:
    """Make a critic that is a table over one-hot observations."""
    critic = LinearCritic(Identity(num_states), dtype=torch.float64)
    if values is not None:
        critic.load(values)
    return critic


def sampled(mdp: TabularMDP, pi: Tensor, *, steps: int, copies: int) -> Experience:
    """Sample one transition from every live state, ``copies`` times, at each of ``steps`` times, all independent.

    A step that does not terminate is cut off as a time limit would: the next step starts anew.
    """
    live = mdp.live.nonzero().flatten()
    state = live.repeat(copies).expand(steps, -1)
    action = torch.multinomial(pi[state.flatten()], 1).reshape(state.shape)
    following = torch.multinomial(mdp.transition[state, action].flatten(0, 1), 1).reshape(state.shape)
    hot = torch.eye(mdp.num_states, dtype=torch.float64)
    terminated = ~mdp.live[following]
    return Experience(hot[state], mdp.reward[state, action], hot[following], terminated, ~terminated)
