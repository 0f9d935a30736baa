"""The environments' edge: policy coordinates go in, flat float32 observations come out, and what is wrong is refused.

Actions are scaled and clipped here and nowhere else; what is recorded is the raw action, so that log-probabilities and
ratios are those of what the policy drew.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any

import numpy as np
from gymnasium.vector import AsyncVectorEnv, VectorEnv
from jaxtyping import Bool, Float
from numpy.typing import NDArray
from torch import Tensor

from latentpg.errors import LatentPGError
from latentpg.policies import decode_actions, encode_observations
from latentpg.rollout.environments import close_envs
from latentpg.rollout.faults import EnvironmentFault


@dataclass(frozen=True)
class Outcome:
    """What one step of N members gave, and the actions ``[N, ...]`` in the environment's own coordinates."""

    next_obs: Float[Tensor, "N S"]
    reward: Float[NDArray[np.float64], " N"]
    terminated: Bool[NDArray[np.bool_], " N"]
    truncated: Bool[NDArray[np.bool_], " N"]
    env_action: NDArray[Any]


class Edge:
    """Step and reset a vector environment in tensors; ``where`` names the caller in errors.

    NaN and infinite observations or rewards are an :class:`EnvironmentFault` that names the member, and so is a member
    that came back from another member's reset with another observation than it had: some vector environments ignore
    ``reset_mask`` and reset every member.
    """

    def __init__(self, envs: VectorEnv[Any, Any, Any], where: str) -> None:
        """Take the environments; nothing is done with them yet."""
        self.envs, self.where = envs, where
        self.space, self.action_space = envs.single_observation_space, envs.single_action_space
        self._last: NDArray[Any] | None = None
        self._seeds: Any = None  # of the last reset, and the last actions: for whoever looks into a fault
        self._actions: Any = None

    def reset(
        self, seeds: Sequence[int] | NDArray[np.integer[Any]], mask: Bool[NDArray[np.bool_], " N"]
    ) -> Float[Tensor, "N S"]:
        """Reset the members in ``mask``, member n with ``seeds[n]``, and return the observations of all.

        Seeds are handed on as Python integers: NumPy's own end the worker processes of an asynchronous environment.
        """
        options: dict[str, Any] = {"reset_mask": mask.copy()}
        plain: Any = [int(seed) for seed in seeds]  # Gymnasium types one seed
        self._seeds = plain
        obs = self._encode(self._answered(lambda: self.envs.reset(seed=plain, options=options))[0])
        if not mask.all():
            self._check_the_others_stayed(obs, mask, "reset_mask" in options)
        self._last = obs.numpy()
        return obs

    def reset_all(self, seed: int) -> Float[Tensor, "N S"]:
        """Reset every member of environments that take one seed for all."""
        self._seeds = int(seed)
        obs = self._encode(self._answered(lambda: self.envs.reset(seed=int(seed)))[0])
        self._last = obs.numpy()
        return obs

    def step(self, action: Tensor) -> Outcome:
        """Step every member with its action in policy coordinates."""
        return self.step_raw(decode_actions(self.action_space, action))

    def step_raw(self, env_action: NDArray[Any]) -> Outcome:
        """Step every member with its action as the environment takes it."""
        self._actions = env_action
        raw, reward, terminated, truncated, _ = self._answered(lambda: self.envs.step(env_action))
        reward = np.array(reward, dtype=np.float64)  # copies: environments may reuse their arrays
        self._check_finite("reward", reward)
        obs = self._encode(raw)
        self._last = obs.numpy()
        return Outcome(obs, reward, np.array(terminated), np.array(truncated), env_action)

    def _encode(self, raw: Any) -> Float[Tensor, "N S"]:  # noqa: ANN401 (what an env gives)
        obs = encode_observations(self.space, raw)
        self._check_finite("observation", obs.numpy())
        return obs

    def _check_finite(self, what: str, values: NDArray[Any]) -> None:
        finite = np.isfinite(values)
        if finite.all():
            return
        bad = (~finite).reshape(len(values), -1).any(1)
        member = int(bad.argmax())
        raise EnvironmentFault(
            self.where,
            f"member {member} gave a {what} that is not finite in float32",
            expected=f"finite numbers from each of {len(values)} members",
            got=f"{values[member].tolist()} ({int(bad.sum())} such members)",
            fix="mend the environment, or clip in a wrapper such as gymnasium.wrappers.TransformObservation",
        )

    def _check_the_others_stayed(self, obs: Tensor, mask: NDArray[np.bool_], unread: bool) -> None:
        moved = np.zeros_like(mask) if self._last is None else (obs.numpy() != self._last).any(1) & ~mask
        if not unread and not moved.any():
            return
        raise EnvironmentFault(
            self.where,
            "the vector environment ignores `reset_mask`: a reset of some members reaches the others",
            expected=f"members {np.flatnonzero(~mask).tolist()} left as they were",
            got=f"another observation of member {int(moved.argmax())}"
            if moved.any()
            else "`reset_mask` left unread in the options (SyncVectorEnv takes it out)",
            fix="make_envs(env_id, num_envs), which steps the environment's own copies one by one",
        )

    def _answered(self, call: Any) -> Any:  # noqa: ANN401 (a call to the environments and what it gives)
        """Ask the environments; what they raise becomes a fault, and where a worker has died all of them are ended."""
        try:
            return call()
        except LatentPGError:
            raise
        except (EOFError, ConnectionError) as error:
            bare = self.envs.unwrapped
            dead = []
            if isinstance(bare, AsyncVectorEnv):
                ended = wait([worker.sentinel for worker in bare.processes], timeout=1.0)
                dead = [n for n, worker in enumerate(bare.processes) if worker.sentinel in ended]
            close_envs(self.envs)
            raise EnvironmentFault(
                self.where,
                f"the worker process of member {dead[0] if dead else '?'} is gone; all workers have been ended",
                expected="an answer from each of the environments",
                got=type(error).__name__,
                fix='make_envs(..., vectorization_mode="sync") shows what an environment does before it dies',
            ) from error
        except Exception as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            raise EnvironmentFault(
                self.where,
                "an environment raised",
                expected=f"an answer from each of {self.envs.num_envs} members",
                got=f"{type(error).__name__}: {error!s:.200}; the last actions were {self._actions!s:.80}, the seeds "
                f"of the last reset {self._seeds!s:.80}",
                likely=f"raised at {place.filename}:{place.lineno}, in {place.name}",
                fix="mend the environment",
            ) from error


def start_seeds(seed: int, reset: int, size: int, largest: int) -> list[int]:
    """Draw the seeds of the ``reset``-th reset of all members; they hang on nothing else than these numbers.

    >>> start_seeds(0, 3, 2, 1000) == start_seeds(0, 3, 2, 1000)
    True
    """
    stream = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(reset,)))
    return [int(value) for value in stream.integers(largest, size=size)]
