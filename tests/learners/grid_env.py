"""The grid world of the oracles as an environment, for tests of what learners end up with."""

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import SyncVectorEnv
from torch import Tensor

from latentpg.oracles import TabularMDP, finite_horizon, grid_world
from latentpg.programs import LatentPolicy, log_joint
from tests.rollout.scripted import vectorize

HORIZON, DISCOUNT = 8, 0.9


class GridWorld(gymnasium.Env[Any, Any]):
    """Shows the state one-hot; 8 steps from any cell."""

    def __init__(self) -> None:
        self.mdp = grid_world()
        self.observation_space = spaces.Box(0.0, 1.0, (self.mdp.num_states,), np.float32)
        self.action_space = spaces.Discrete(self.mdp.num_actions)
        self.arrival = self.mdp.transition.argmax(-1).numpy()
        self.pay = self.mdp.reward.numpy()
        self.look = np.eye(self.mdp.num_states, dtype=np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.state, self.steps = int(self.np_random.integers(self.mdp.num_states)), 0
        return self.look[self.state], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        reward = float(self.pay[self.state, action])
        self.state, self.steps = int(self.arrival[self.state, action]), self.steps + 1
        return self.look[self.state], reward, False, self.steps == HORIZON, {}


def grid_worlds(num_envs: int) -> SyncVectorEnv:
    return vectorize([GridWorld] * num_envs)


def exact_value(table: Tensor) -> float:
    """Return J of a table pi [S, A] over the 8 steps, by the Bellman equations."""
    return TabularMDP.objective(task(), torch.cat([table.double().repeat(HORIZON, 1), table[:1].double()])).item()


def optimal_value() -> float:
    """Return the best J, by the Bellman optimality equation with the clock in the state."""
    return float(task().initial @ task().optimal().state_values)


def task() -> TabularMDP:
    return finite_horizon(grid_world(), horizon=HORIZON, discount=DISCOUNT)


def table_of(policy: LatentPolicy, num_components: int) -> Tensor:
    """Return the marginal pi [S, A] of a mixture policy, its component summed out."""
    states, actions = grid_world().num_states, grid_world().num_actions
    obs, action = torch.eye(states).repeat_interleave(actions, 0), torch.arange(actions).repeat(states)
    with torch.no_grad():
        z = torch.arange(num_components)[:, None].expand(-1, len(action))
        return log_joint(policy, obs, action, {"z": z}).logsumexp(0).exp().unflatten(0, (states, actions))


def greedy(table: Tensor) -> Tensor:
    """Take the likeliest action of each state, always."""
    return torch.nn.functional.one_hot(table.argmax(-1), table.shape[-1]).double()
