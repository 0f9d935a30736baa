"""From a few lines of dynamics to a Gymnasium environment, and to a natively vectorised one.

An environment here is a frozen dataclass of :class:`Dynamics`: pure functions of a state ``[N, D]`` in float64, written
once for N members. :class:`DynamicsEnv` runs them for one member and :class:`DynamicsVectorEnv` for N at once; for the
same seeds and actions the two give the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from jaxtyping import Bool, Float
from numpy.typing import NDArray

_States = Float[NDArray[np.float64], "N D"]


@runtime_checkable
class Dynamics(Protocol):
    """What a small environment does; its time limit is registered beside it."""

    @property
    def observation_space(self) -> spaces.Box:
        """What one member shows."""
        ...

    @property
    def action_space(self) -> spaces.Space[Any]:
        """What one member takes."""
        ...

    def start(self, noise: np.random.Generator) -> Float[NDArray[np.float64], " D"]:
        """Draw one member's initial state."""
        ...

    def step(
        self, state: _States, action: NDArray[Any], noise: Sequence[np.random.Generator]
    ) -> tuple[_States, Float[NDArray[np.float64], " N"], Bool[NDArray[np.bool_], " N"]]:
        """Return the next state, the reward and whether the episode has come to its end; each member has its noise."""
        ...

    def observe(self, state: _States) -> Float[NDArray[np.floating[Any]], "N S"]:
        """Return what the members show."""
        ...


class DynamicsEnv(gymnasium.Env[NDArray[np.float32], Any]):
    """One member; ``gymnasium.make`` puts the time limit around it."""

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012 (Gymnasium has it so)

    def __init__(self, dynamics: Dynamics) -> None:
        """Take what it does."""
        self.dynamics = dynamics
        self.observation_space: spaces.Space[Any] = dynamics.observation_space
        self.action_space = dynamics.action_space
        self.state: _States | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode."""
        super().reset(seed=seed)
        self.state = self.dynamics.start(self.np_random)[None]
        return self._look(self.state), {}

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:  # noqa: ANN401 (of its space)
        """Move on."""
        if self.state is None:
            raise gymnasium.error.ResetNeeded("call reset() before step()")
        self.state, reward, terminated = self.dynamics.step(self.state, np.asarray(action)[None], [self.np_random])
        return self._look(self.state), float(reward[0]), bool(terminated[0]), False, {}

    def _look(self, state: _States) -> NDArray[np.float32]:
        return np.asarray(self.dynamics.observe(state)[0], dtype=np.float32)


class DynamicsVectorEnv(VectorEnv[NDArray[np.float32], NDArray[Any], NDArray[Any]]):
    """N members stepped as one array and reset by the caller, as Gymnasium's own with ``autoreset_mode`` DISABLED.

    ``reset`` takes a seed a member and ``options={"reset_mask": mask}``. To step a member whose episode is over is
    :class:`gymnasium.error.ResetNeeded`.
    """

    def __init__(self, dynamics: Dynamics, *, num_envs: int, max_episode_steps: int) -> None:
        """Take what it does, N, and the time limit."""
        self.dynamics, self.num_envs, self.max_episode_steps = dynamics, num_envs, max_episode_steps
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.DISABLED}
        self.single_observation_space, self.single_action_space = dynamics.observation_space, dynamics.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.noise = [np.random.default_rng() for _ in range(num_envs)]
        self.state: _States | None = None
        self.age = np.zeros(num_envs, dtype=np.int64)
        self.over = np.ones(num_envs, dtype=np.bool_)

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Begin an episode in every member, or in those of ``options["reset_mask"]`` (taken out of the options)."""
        mask = None if options is None else options.pop("reset_mask", None)
        chosen = np.ones(self.num_envs, dtype=np.bool_) if mask is None else self._checked(mask)
        seeds = [None] * self.num_envs if seed is None else seed
        each = [seeds + n for n in range(self.num_envs)] if isinstance(seeds, int) else list(seeds)
        if len(each) != self.num_envs:
            raise ValueError(f"expected {self.num_envs} seeds, got {len(each)}")
        if self.state is None and not chosen.all():
            raise gymnasium.error.ResetNeeded("the first reset() must be of every member")
        starts = {}
        for member in np.flatnonzero(chosen):
            if each[member] is not None:
                self.noise[member] = gymnasium.utils.seeding.np_random(each[member])[0]
            starts[member] = self.dynamics.start(self.noise[member])
        if self.state is None:
            self.state = np.stack(list(starts.values()))
        else:
            self.state = self.state.copy()
            for member, start in starts.items():
                self.state[member] = start
        self.age[chosen], self.over[chosen] = 0, False
        return self._look(self.state), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[NDArray[np.float32], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Move every member on."""
        if self.state is None or self.over.any():
            raise gymnasium.error.ResetNeeded(f"members {np.flatnonzero(self.over).tolist()} must be reset first")
        self.state, reward, terminated = self.dynamics.step(self.state, np.asarray(actions), self.noise)
        self.age += 1
        truncated = self.age >= self.max_episode_steps
        self.over = terminated | truncated
        return self._look(self.state), reward, terminated, truncated, {}

    def get_attr(self, name: str) -> tuple[Any, ...]:
        """Return each member's ``np_random``."""
        if name != "np_random":
            raise AttributeError(f"members have no attribute {name!r}")
        return tuple(self.noise)

    def set_attr(self, name: str, values: Sequence[Any]) -> None:
        """Replace each member's ``np_random``."""
        self.get_attr(name)
        self.noise = list(values)

    def _checked(self, mask: object) -> NDArray[np.bool_]:
        if isinstance(mask, np.ndarray) and mask.dtype == np.bool_ and mask.shape == (self.num_envs,) and mask.any():
            return mask
        raise ValueError(f"`reset_mask` is to be a boolean array [{self.num_envs}] with a true entry, got {mask!r}")

    def _look(self, state: _States) -> NDArray[np.float32]:
        return np.array(self.dynamics.observe(state), dtype=np.float32)


def constant_observation(state: _States) -> Float[NDArray[np.float64], "N S"]:
    """Show a zero, whatever the state."""
    return np.zeros((len(state), 1))
