"""From a Gymnasium environment to tensors: record what a policy sees, does and draws.

Environments are vector environments whose members are reset by us (``autoreset_mode`` DISABLED): the observation after
an episode's last step is then the true one, there are no dummy rows, and every reset has a seed of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError, did_you_mean
from latentpg.policies import decode_actions, encode_observations
from latentpg.programs import LatentPolicy, Latents, act, take_rows

LARGEST_SEED = 2**31 - 1
"""Seeds of environment resets are below this, so that every environment takes them."""


@dataclass(frozen=True)
class Transitions:
    """M = T * N recorded steps of N environments, time-major: row ``t * N + n`` is step t of environment n.

    ``obs`` and ``next_obs`` are flat float32, ``action`` is in policy coordinates (not clipped to the environment's
    bounds), ``latents`` are those drawn behind the action and ``log_joint`` is log p(z, a | s) as the acting policy had
    it. ``next_obs`` is the true next observation, at the end of an episode too. An episode that was ``terminated`` has
    no future; one that was ``truncated`` has one that was not recorded.
    """

    obs: Float[Tensor, "M S"]
    action: Tensor
    latents: Latents
    log_joint: Float[Tensor, " M"]
    reward: Float[Tensor, " M"]
    terminated: Bool[Tensor, " M"]
    truncated: Bool[Tensor, " M"]
    next_obs: Float[Tensor, "M S"]

    def __post_init__(self) -> None:
        """Check that every part has the same rows."""
        for name, value in [*((f.name, getattr(self, f.name)) for f in fields(self)), *self.latents.items()]:
            if isinstance(value, Tensor) and (value.ndim == 0 or len(value) != len(self.obs)):
                raise ShapeError(
                    "Transitions()", f"`{name}`", expected=f"[M={len(self.obs)}, ...]", got=str(list(value.shape))
                )

    @property
    def num_rows(self) -> int:
        """M."""
        return len(self.obs)

    @property
    def done(self) -> Bool[Tensor, " M"]:
        """Whether the episode ended with this step, for either reason."""
        return self.terminated | self.truncated

    def rows(self, index: slice | Tensor) -> Transitions:
        """Take some rows."""
        return Transitions(**{field.name: take_rows(getattr(self, field.name), index) for field in fields(self)})


def make_envs(env_id: str, num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Make N copies of a registered environment, stepped one after the other and reset by the caller.

    The vectorised entry point that some environments bring is never taken: it resets by rules of its own.

    >>> make_envs("CartPole-v1", 2).num_envs
    2
    """
    if num_envs < 1:
        raise OptionError("make_envs()", "`num_envs`", expected="an integer >= 1", got=repr(num_envs), fix="num_envs=8")
    try:
        return gymnasium.make_vec(
            env_id,
            num_envs=num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        )
    except gymnasium.error.DependencyNotInstalled as error:
        raise OptionError(
            "make_envs()",
            f"environment {env_id} needs a package that is not installed",
            got=str(error),
            fix="install what the message names, or choose another environment",
        ) from error
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise OptionError(
            "make_envs()",
            "unknown environment",
            expected="the name of an environment registered with Gymnasium, such as CartPole-v1",
            got=repr(env_id),
            fix=_nearest_environment(env_id),
        ) from error


def record_transitions(
    envs: VectorEnv[Any, Any, Any], policy: LatentPolicy, *, num_steps: int, seed: int
) -> Transitions:
    """Act for T = ``num_steps`` steps in every environment from a fresh start, and record M = T * N rows.

    ``seed`` fixes the environments alone: each reset of each member takes a new seed from one stream. The policy draws
    from the ambient random stream, so a caller who wants the same rows again opens ``seeded(...)`` around the call.

    >>> from latentpg.policies import MixturePolicy
    >>> envs = make_envs("CartPole-v1", 2)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> record_transitions(envs, policy, num_steps=3, seed=0).obs.shape
    torch.Size([6, 4])
    """
    if num_steps < 1:
        raise OptionError("record_transitions()", "`num_steps`", expected="an integer >= 1", got=repr(num_steps))
    if seed < 0:
        raise OptionError("record_transitions()", "`seed`", expected="an integer >= 0", got=repr(seed), fix="seed=0")
    _check_resets_are_ours(envs)
    space = envs.single_observation_space
    seeds = np.random.default_rng(seed)
    obs = encode_observations(space, _reset(envs, seeds, np.ones(envs.num_envs, dtype=np.bool_)))
    steps: list[Transitions] = []
    for step in range(num_steps):
        acted = act(policy, obs)
        raw, reward, terminated, truncated, _ = envs.step(decode_actions(envs.single_action_space, acted.action))
        next_obs = encode_observations(space, raw)
        steps.append(
            Transitions(
                obs,
                acted.action,
                acted.latents,
                acted.log_joint,
                torch.as_tensor(reward, dtype=torch.float32),
                torch.as_tensor(terminated),
                torch.as_tensor(truncated),
                next_obs,
            )
        )
        finished = np.logical_or(terminated, truncated)
        obs = next_obs
        if finished.any() and step + 1 < num_steps:
            # the members that go on are left as they are, and come back with the observation they already had
            obs = encode_observations(space, _reset(envs, seeds, finished))
    return _concatenate(steps)


def _reset(envs: VectorEnv[Any, Any, Any], seeds: np.random.Generator, mask: np.ndarray) -> Any:  # noqa: ANN401 (what an env gives)
    """Reset the members in ``mask``, each with a new seed.

    After a seeded reset an unseeded one would continue the same stream.
    """
    fresh: Any = [int(seed) for seed in seeds.integers(LARGEST_SEED, size=envs.num_envs)]  # Gymnasium types one seed
    return envs.reset(seed=fresh, options={"reset_mask": mask})[0]


def _concatenate(steps: Sequence[Transitions]) -> Transitions:
    def join(values: Sequence[Any]) -> Any:  # noqa: ANN401 (a tensor or a mapping of tensors)
        if isinstance(values[0], Mapping):
            return {name: torch.cat([value[name] for value in values]) for name in values[0]}
        return torch.cat(list(values))

    return Transitions(
        **{field.name: join([getattr(step, field.name) for step in steps]) for field in fields(Transitions)}
    )


def _check_resets_are_ours(envs: VectorEnv[Any, Any, Any]) -> None:
    mode = envs.metadata.get("autoreset_mode")
    if mode != AutoresetMode.DISABLED:
        raise OptionError(
            "record_transitions()",
            "the environments reset themselves, so the observation after an episode's last step would be lost",
            expected="a vector environment made with autoreset_mode=AutoresetMode.DISABLED",
            got=f"autoreset_mode={mode}",
            fix="make_envs(env_id, num_envs), or SyncVectorEnv(..., autoreset_mode=AutoresetMode.DISABLED)",
        )


def _nearest_environment(env_id: str) -> str:
    suggestion = did_you_mean(env_id, gymnasium.registry)
    is_whole_list = suggestion.startswith("choose one of")
    return "gymnasium.pprint_registry() lists what there is" if is_whole_list else suggestion
