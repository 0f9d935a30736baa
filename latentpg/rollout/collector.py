"""Step rollouts: T steps of N environments that go on where the last rollout ended.

An episode may begin in one rollout and end in a later one. Everything is time-major: row ``t * N + n`` is step t of
member n, and ``[T, N]`` is a reshape away.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.devices import device_of
from latentpg.programs import Acted, LatentPolicy, act
from latentpg.rollout.edge import Edge, Outcome, start_seeds
from latentpg.rollout.environments import LARGEST_SEED, require_our_resets, resets_are_ours
from latentpg.rollout.faults import EnvironmentFault
from latentpg.rollout.transitions import Record, Transitions

Acting: TypeAlias = Callable[[LatentPolicy, Tensor], Acted]
"""How a policy acts on observations ``[N, S]``: :func:`~latentpg.programs.run.act`, or a rule for evaluation."""


@dataclass(frozen=True)
class Rollout:
    """M = T * N rows of N members, time-major, and the episodes that ended among them.

    ``mask`` is false in rows where nothing was decided: an environment that resets itself spends a step on it, whose
    action is ignored. Take no gradient, no statistic and no value target from such a row; the row before it is
    ``done``, so no return or advantage reaches across. ``episode_returns`` are sums of the raw rewards, undiscounted,
    in the order in which the episodes ended (by member where several end in one step); an episode counts with all of
    its steps, those of earlier rollouts too.
    """

    transitions: Transitions
    num_envs: int
    mask: Bool[Tensor, " M"]
    episode_returns: Float[Tensor, " E"]
    episode_lengths: Int[Tensor, " E"]

    @property
    def num_steps(self) -> int:
        """T."""
        return self.transitions.num_rows // self.num_envs

    @property
    def num_transitions(self) -> int:
        """Environment steps in which an action was taken: rows in the mask."""
        return int(self.mask.sum())

    def time_major(self, values: Tensor) -> Tensor:
        """Reshape rows ``[M, ...]`` to ``[T, N, ...]``."""
        if values.ndim == 0 or len(values) != self.transitions.num_rows:
            raise ShapeError(
                "Rollout.time_major()",
                "`values`",
                expected=f"[M={self.transitions.num_rows}, ...]",
                got=str(list(values.shape)),
            )
        return values.unflatten(0, (-1, self.num_envs))

    def flat(self, values: Tensor) -> Tensor:
        """Reshape ``[T, N, ...]`` to rows ``[M, ...]``."""
        if values.shape[:2] != (self.num_steps, self.num_envs):
            raise ShapeError(
                "Rollout.flat()",
                "`values`",
                expected=f"[T={self.num_steps}, N={self.num_envs}, ...]",
                got=str(list(values.shape)),
            )
        return values.flatten(0, 1)


@dataclass(frozen=True)
class CollectorState:
    """Where a :class:`StepCollector` stands, in integers and tensors that a checkpoint can hold.

    ``reset_seed`` and ``age`` say from which seed each member's present episode began and how many steps ago;
    ``actions`` are those of the last L = max(age) steps in the environment's own coordinates, ``obs`` is what each
    member sees now, and ``waiting`` those whose episode has ended.
    """

    seed: int
    num_resets: int
    reset_seed: Int[Tensor, " N"]
    age: Int[Tensor, " N"]
    actions: Tensor
    obs: Float[Tensor, "N S"]
    waiting: Bool[Tensor, " N"]
    episode_return: Float[Tensor, " N"]


class StepCollector:
    """Act in N environments, T steps at a time, and keep their state between rollouts.

    ``seed`` fixes the environments alone: the seeds of the k-th reset hang on ``seed`` and k. The policy draws from the
    ambient random stream. Environments that reset themselves in the step after an episode's last one (NEXT_STEP) are
    served too, their resetting steps masked; they take one seed at the start and go on by themselves. Where several
    collectors share the ``members`` of one, each says which its ``first`` is: no two then have a seed in common.

    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> envs = make_envs("CartPole-v1", 2)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> collector = StepCollector(envs, seed=0)
    >>> rollout = collector.collect(policy, num_steps=5)
    >>> rollout.time_major(rollout.transitions.reward).shape
    torch.Size([5, 2])
    """

    def __init__(
        self, envs: VectorEnv[Any, Any, Any], *, seed: int, first: int = 0, members: int | None = None
    ) -> None:
        """Reset every member."""
        self._begin(envs, seed, first, members)
        if self._resets_are_ours:
            self._reset(np.ones(envs.num_envs, dtype=np.bool_))
        else:
            self._obs = self._edge.reset_all(start_seeds(seed, 0, self._members, LARGEST_SEED)[first])

    def _begin(self, envs: VectorEnv[Any, Any, Any], seed: int, first: int, members: int | None) -> None:
        if seed < 0:
            raise OptionError("StepCollector()", "`seed`", expected="an integer >= 0", got=repr(seed), fix="seed=0")
        self._resets_are_ours = resets_are_ours(envs)
        if not self._resets_are_ours and envs.metadata.get("autoreset_mode") != AutoresetMode.NEXT_STEP:
            require_our_resets("StepCollector()", envs)
        size = envs.num_envs
        self.envs, self.seed = envs, seed
        self._first, self._members = first, first + size if members is None else members
        self._edge = Edge(envs, "StepCollector.collect()")
        self._num_resets = 0
        self._reset_seed, self._age = np.zeros(size, dtype=np.int64), np.zeros(size, dtype=np.int64)
        self._waiting = np.zeros(size, dtype=np.bool_)
        self._return = np.zeros(size, dtype=np.float64)
        self._history: list[NDArray[Any]] = []

    def collect(self, policy: LatentPolicy, *, num_steps: int, acting: Acting = act) -> Rollout:
        """Act for T = ``num_steps`` steps in every member, and record M = T * N rows."""
        if num_steps < 1:
            raise OptionError("StepCollector.collect()", "`num_steps`", expected="an integer >= 1", got=repr(num_steps))
        self._history = self._recent_actions()
        record, here = Record(), device_of(policy)
        dummy: list[NDArray[np.bool_]] = []
        ended: list[tuple[float, int]] = []
        with torch.inference_mode():  # what is joined outside of it is ordinary again
            for _ in range(num_steps):
                if self._resets_are_ours and self._waiting.any():
                    self._reset(self._waiting)
                acted = acting(policy, self._obs.to(here))
                outcome = self._edge.step(acted.action)
                record.add(self._obs, acted, outcome)
                dummy.append(self._waiting)
                ended += self._count(outcome)
        return Rollout(
            record.transitions(),
            self.envs.num_envs,
            torch.from_numpy(~np.concatenate(dummy)).to(here),
            torch.tensor([total for total, _ in ended], dtype=torch.float64),
            torch.tensor([length for _, length in ended], dtype=torch.int64),
        )

    def state(self) -> CollectorState:
        """Return where this collector stands; :func:`resume_collector` goes on from there."""
        require_our_resets("StepCollector.state()", self.envs)
        actions = self._recent_actions()
        empty = np.zeros((0, *(self.envs.action_space.shape or ())))
        return CollectorState(
            self.seed,
            self._num_resets,
            torch.tensor(self._reset_seed),
            torch.tensor(self._age),
            torch.tensor(np.stack(actions) if actions else empty),
            self._obs.clone(),
            torch.tensor(self._waiting),
            torch.tensor(self._return),
        )

    def _reset(self, mask: NDArray[np.bool_]) -> None:
        every = start_seeds(self.seed, self._num_resets, self._members, LARGEST_SEED)
        seeds = every[self._first : self._first + self.envs.num_envs]
        self._num_resets += 1
        self._obs = self._edge.reset(seeds, mask)
        self._reset_seed = np.where(mask, seeds, self._reset_seed)
        self._age = np.where(mask, 0, self._age)
        self._waiting = np.zeros_like(mask)

    def _count(self, outcome: Outcome) -> list[tuple[float, int]]:
        """Move on by one step, and return the episodes that ended with it."""
        decided = ~self._waiting if not self._resets_are_ours else np.ones_like(self._waiting)
        self._obs = outcome.next_obs
        self._history.append(outcome.env_action)
        self._return = np.where(decided, self._return + outcome.reward, 0.0)
        self._age = np.where(decided, self._age + 1, 0)
        self._waiting = decided & (outcome.terminated | outcome.truncated)
        ended = [(float(self._return[n]), int(self._age[n])) for n in np.flatnonzero(self._waiting)]
        self._return = np.where(self._waiting, 0.0, self._return)
        return ended

    def _recent_actions(self) -> list[NDArray[Any]]:
        """Forget the actions of episodes that are over."""
        needed = int(np.where(self._waiting, 0, self._age).max()) if self._resets_are_ours else 0
        return self._history[len(self._history) - needed :]


def resume_collector(
    envs: VectorEnv[Any, Any, Any], state: CollectorState, *, first: int = 0, members: int | None = None
) -> StepCollector:
    """Bring fresh environments to where a collector stood, by replaying each member's episode from its seed.

    That is exact where an episode hangs on its seed and its actions alone. Each member is held against the observation
    it had; another one is an :class:`EnvironmentFault`. Members whose episodes are shorter act out something else
    until it is time for theirs to begin. ``first`` and ``members`` are those of the collector that stood there.
    """
    require_our_resets("resume_collector()", envs)
    if len(state.age) != envs.num_envs:
        raise OptionError(
            "resume_collector()",
            "`envs`",
            expected=f"{len(state.age)} members, as when the state was taken",
            got=str(envs.num_envs),
            fix=f"make_envs(env_id, {len(state.age)})",
        )
    collector = StepCollector.__new__(StepCollector)
    collector._begin(envs, state.seed, first, members)
    edge, seeds = collector._edge, state.reset_seed.tolist()
    waiting = state.waiting.numpy().copy()
    age = np.where(waiting, 0, state.age.numpy())
    length = int(age.max())
    actions = list(state.actions.numpy()[len(state.actions) - length :])
    obs = edge.reset(seeds, np.ones(envs.num_envs, dtype=np.bool_))
    for tick, action in enumerate(actions):
        outcome = edge.step_raw(action)
        obs, over = outcome.next_obs, outcome.terminated | outcome.truncated
        early = tick + 1 <= length - age
        _check_replayed(over & ~early, obs, state)
        if (restart := (tick + 1 == length - age) | (over & early)).any():
            obs = edge.reset(seeds, restart)
    _check_replayed((obs.numpy() != state.obs.numpy()).any(1) & ~waiting, obs, state)
    collector._num_resets = state.num_resets
    collector._reset_seed, collector._age = state.reset_seed.numpy().copy(), state.age.numpy().copy()
    collector._waiting, collector._return = waiting, state.episode_return.numpy().copy()
    collector._obs, collector._history = state.obs.clone(), actions
    return collector


def _check_replayed(differs: NDArray[np.bool_], obs: Tensor, state: CollectorState) -> None:
    if not differs.any():
        return
    member = int(differs.argmax())
    raise EnvironmentFault(
        "resume_collector()",
        f"member {member} cannot be brought back to where it was",
        expected=f"an episode that goes on from the observation {state.obs[member].tolist()}",
        got=str(obs[member].tolist()),
        likely="the environment's course hangs on more than its seed and actions, or its version has changed",
        fix="begin new episodes: StepCollector(envs, seed=...)",
    )
