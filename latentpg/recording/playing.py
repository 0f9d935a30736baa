"""Play whole episodes with an expert and keep those that are good enough, as demonstrations.

An episode is kept when its undiscounted return is at least ``min_return``. Episodes are played until there are enough,
and ``max_episodes`` of them at most: an expert that hardly ever succeeds is told, and nothing is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from latentpg.data import Demonstrations
from latentpg.errors import LatentPGError, OptionError
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies import decode_actions, encode_observations
from latentpg.programs import LatentPolicy, act
from latentpg.recording.experts import Act, MakeExpert
from latentpg.rollout import Acting, collect_episodes
from latentpg.rollout.edge import start_seeds
from latentpg.rollout.environments import LARGEST_SEED


@dataclass(frozen=True)
class Wanted:
    """How many episodes to keep, from which return on, of how many at most, and the seed of it all."""

    episodes: int
    seed: int = 0
    min_return: float | int | None = None
    max_episodes: int | None = None

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, value, least in (("episodes", self.episodes, 1), ("seed", self.seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError("latentpg record", f"`--{name}`", expected=f"an integer >= {least}", got=repr(value))
        if self.max_episodes is not None and self.max_episodes < self.episodes:
            raise OptionError(
                "latentpg record",
                "`--max-episodes`",
                expected=f"at least the {self.episodes} to keep",
                got=repr(self.max_episodes),
            )

    @property
    def most(self) -> int:
        """Episodes that may be played; ten for each that is kept unless told."""
        return 10 * self.episodes if self.max_episodes is None else self.max_episodes


@dataclass(frozen=True, eq=False)
class Played:
    """One episode of T steps: observations as flat float32, actions as the environment takes them, and its mode."""

    obs: Float[NDArray[np.float32], "T S"]
    action: NDArray[Any]
    reward: Float[NDArray[np.float32], " T"]
    mode: int | None = None


@dataclass(frozen=True, eq=False)
class Recorded:
    """What was kept, and the returns of all episodes that were played for it."""

    demonstrations: Demonstrations
    returns: Float[Tensor, " N"]


def record(episodes: Iterator[Played], wanted: Wanted, *, source: str) -> Recorded:
    """Take episodes until enough of them are good enough."""
    kept: list[Played] = []
    returns: list[float] = []
    for episode in episodes:
        returns.append(float(episode.reward.astype(np.float64).sum()))
        if wanted.min_return is None or returns[-1] >= wanted.min_return:
            kept.append(episode)
        if len(kept) == wanted.episodes:
            break
        if len(returns) == wanted.most:
            raise OptionError(
                "latentpg record",
                f"{len(kept)} of {len(returns)} episodes were good enough, and {wanted.episodes} are wanted",
                expected=f"a return of {wanted.min_return:g} or more",
                got=f"returns from {min(returns):g} to {max(returns):g}, {np.mean(returns):g} on average",
                fix="a lower --min-return, a better expert, or a larger --max-episodes",
            )
    modes = [episode.mode for episode in kept if episode.mode is not None]
    demonstrations = Demonstrations.from_episodes(
        [episode.obs for episode in kept],
        [episode.action for episode in kept],
        mode=modes if len(modes) == len(kept) else None,
        reward=[episode.reward for episode in kept],
        source=source,
    )
    return Recorded(demonstrations, torch.tensor(returns, dtype=torch.float64))


def episodes_of_policy(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    wanted: Wanted,
    *,
    latent: str = "step",
    execute: int | None = None,
    acting: Acting = act,
) -> Iterator[Played]:
    """Play episodes in rounds of as many as are wanted; an episode hangs on the seed, its round and its place in it."""
    for number in range(-(-wanted.most // wanted.episodes)):
        with seeded(stream_seed(wanted.seed, f"actions {number}")):
            played = collect_episodes(
                envs,
                policy,
                num_episodes=wanted.episodes,
                seed=stream_seed(wanted.seed, f"episodes {number}"),
                latent=latent,
                execute=execute,
                acting=acting,
            )
        steps, cuts = played.transitions, played.lengths.tolist()
        # as they were carried out: scaled to the environment's bounds, and clipped to them
        action = torch.from_numpy(decode_actions(envs.single_action_space, steps.action))
        seen, reward_of = steps.obs.cpu(), steps.reward.cpu()
        for obs, done, reward in zip(seen.split(cuts), action.split(cuts), reward_of.split(cuts), strict=True):
            yield Played(obs.numpy(), done.numpy(), reward.numpy())


def episodes_of_function(env: gymnasium.Env[Any, Any], make: MakeExpert, wanted: Wanted) -> Iterator[Played]:
    """Play one episode after the other with an expert of the user's own, made anew for each with a seed of its own."""
    resets, actions = (start_seeds(wanted.seed, stream, wanted.most, LARGEST_SEED) for stream in (0, 1))
    for number, (reset, seed) in enumerate(zip(resets, actions, strict=True)):
        acts = _asked(number, partial(make, seed))
        raw, _ = env.reset(seed=reset)
        obs, action, reward, over = [], [], [], False
        while not over:
            done = np.asarray(_asked(number, partial(acts, raw)))
            _check_action(env.action_space, done, number)
            obs.append(encode_observations(env.observation_space, np.asarray(raw)[None]).numpy()[0])
            action.append(done)
            raw, gained, terminated, truncated, _ = env.step(done)
            reward.append(float(gained))
            over = terminated or truncated
        yield Played(np.stack(obs), np.stack(action), np.array(reward, np.float32), _mode(acts, number))


def _asked(number: int, call: Callable[[], Any]) -> Any:  # noqa: ANN401 (the user's own code)
    """Ask the user's function; what it raises is told with the episode in which it did."""
    try:
        return call()
    except LatentPGError:
        raise
    except Exception as error:
        raise OptionError(
            "latentpg record",
            f"the expert raised in episode {number}",
            expected="make(seed) -> act, and act(obs) -> action",
            got=f"{type(error).__name__}: {error!s:.200}",
            fix="mend the expert",
        ) from error


def _check_action(space: gymnasium.Space[Any], action: NDArray[Any], number: int) -> None:
    """Refuse what is no action of the environment's; a floating-point one is looked at in the space's own type."""
    like = action.astype(space.dtype) if action.dtype.kind == "f" and space.dtype is not None else action
    value = like[()] if isinstance(space, gymnasium.spaces.Discrete) and like.ndim == 0 else like
    if not space.contains(value):
        raise OptionError(
            "latentpg record",
            f"the expert's action in episode {number} lies outside the action space",
            expected=str(space),
            got=f"{np.array2string(action, threshold=8)}, {action.dtype} {list(action.shape)}",
            fix="clip it in the expert, and return it in the space's shape",
        )


def _mode(acts: Act, number: int) -> int | None:
    mode = getattr(acts, "mode", None)
    if mode is not None and (isinstance(mode, bool) or not isinstance(mode, int | np.integer) or mode < 0):
        raise OptionError(
            "latentpg record", f"the expert's `mode` of episode {number}", expected="an integer >= 0", got=repr(mode)
        )
    return None if mode is None else int(mode)
