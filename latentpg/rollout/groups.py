r"""Whole episodes: groups of them from one initial state, or any number of them.

**Groups.** The G members of a group are reset with one seed, and their first observations are compared, bit by bit.
With ``noise="shared"`` that is all: the same seed drives the environment's own noise too, so that members differ by
what the policy drew alone (common random numbers; members who act alike stay alike). With ``noise="independent"`` the
stream ``np_random`` of each member's environment is replaced after the reset by one with a seed of its own: the same
initial state, another course of chance. Where that stream cannot be replaced it is refused; an environment that draws
from elsewhere is not found out. A group's advantage has the gradient that GRPO's formulas promise for the expected
return *given the initial state* in both cases.

**Whole.** An episode ends when its environment says so. Each of the N members plays one episode after the other from a
queue, and every episode that was begun is finished: none is dropped for being long, as all that stop on a step count
do, favouring the short ones. Members for which the queue has run dry are stepped along and not recorded.

**Time limits.** An environment's own limit (``truncated``) ends an episode as ``terminated`` does: its return is that
of the time-limited task. ``max_steps`` is a limit of ours against episodes that never end: to reach it is an error, or
a truncation if ``on_max_steps="truncate"`` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from torch import Tensor

from latentpg.errors import OptionError, did_you_mean
from latentpg.numerics.devices import device_of
from latentpg.programs import LatentPolicy, act, take_rows
from latentpg.rollout.chunked import OpenLoop
from latentpg.rollout.collector import Acting
from latentpg.rollout.edge import Edge, start_seeds
from latentpg.rollout.environments import LARGEST_SEED, require_our_resets
from latentpg.rollout.episodes import Episodes
from latentpg.rollout.faults import EnvironmentFault
from latentpg.rollout.held import act_holding
from latentpg.rollout.noise import replace_noise
from latentpg.rollout.transitions import Record


def collect_groups(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    *,
    num_groups: int,
    group_size: int,
    seed: int,
    noise: str = "shared",
    latent: str = "step",
    execute: int | None = None,
    max_steps: int = 100_000,
    on_max_steps: str = "error",
    acting: Acting = act,
    share: range | None = None,
) -> Episodes:
    """Play G whole episodes from each of ``num_groups`` initial states; see the module's docstring.

    ``seed`` fixes the environments; give another one for each update. ``latent="episode"`` draws the latent once an
    episode, ``latent="chunk"`` once a chunk of actions, of which ``execute`` are carried out (all, unless told; see
    :mod:`latentpg.rollout.chunked`). ``acting`` may replace the way of acting where the latent is drawn per step. Of
    the groups, which are numbered from 0, only those of a ``share`` are played if there is one: other workers play the
    others.

    >>> from latentpg.policies import MixturePolicy
    >>> from latentpg.rollout import make_envs
    >>> envs = make_envs("CartPole-v1", 3)
    >>> policy = MixturePolicy(envs.single_observation_space, envs.single_action_space)
    >>> collect_groups(envs, policy, num_groups=2, group_size=4, seed=0).group_returns.shape
    torch.Size([2, 4])
    """
    where = "collect_groups()"
    _check_count(where, "num_groups", num_groups, 1, None)
    _check_count(where, "group_size", group_size, 2, "a group of one has nothing to be compared with")
    _check_choice(where, "noise", noise, ("shared", "independent"))
    played = range(num_groups) if share is None else share
    starts = np.repeat(start_seeds(seed, 0, num_groups, LARGEST_SEED), group_size)
    members = slice(played.start * group_size, played.stop * group_size)
    starts = starts[members].tolist()
    noises = None
    if noise == "independent":
        noises = start_seeds(seed, 1, num_groups * group_size, LARGEST_SEED)[members]
    limits = _Limits(max_steps, on_max_steps)
    return _play(where, envs, policy, starts, noises, group_size, latent, execute, limits, acting)


def collect_episodes(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    *,
    num_episodes: int,
    seed: int,
    latent: str = "step",
    execute: int | None = None,
    max_steps: int = 100_000,
    on_max_steps: str = "error",
    acting: Acting = act,
    share: range | None = None,
) -> Episodes:
    """Play a number of whole episodes, each with a seed of its own: for evaluation, and for plain REINFORCE.

    Exactly the first E that were begun are kept, however long; so their mean return is unbiased. ``share`` as in
    :func:`collect_groups`, of the episodes.
    """
    where = "collect_episodes()"
    _check_count(where, "num_episodes", num_episodes, 1, None)
    starts = start_seeds(seed, 0, num_episodes, LARGEST_SEED)
    if share is not None:
        starts = starts[share.start : share.stop]
    return _play(where, envs, policy, starts, None, 1, latent, execute, _Limits(max_steps, on_max_steps), acting)


@dataclass(frozen=True)
class _Limits:
    max_steps: int
    on_max_steps: str


def _play(
    where: str,
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    starts: Sequence[int],
    noises: Sequence[int] | None,
    group_size: int,
    latent: str,
    execute: int | None,
    limits: _Limits,
    acting: Acting,
) -> Episodes:
    """Let N members play the queue of E episodes, in order."""
    require_our_resets(where, envs)
    _check_choice(where, "latent", latent, ("step", "episode", "chunk"))
    _check_execute(where, latent, execute)
    _check_choice(where, "on_max_steps", limits.on_max_steps, ("error", "truncate"))
    _check_count(where, "max_steps", limits.max_steps, 1, None)
    edge, size, held = Edge(envs, where), envs.num_envs, latent == "episode"
    loop = OpenLoop(where, policy, execute, envs.single_action_space) if latent == "chunk" else None
    queue = iter(range(len(starts)))
    playing = np.full(size, -1)  # each member's episode; -1 for those who have none
    age = np.zeros(size, dtype=np.int64)
    over = np.ones(size, dtype=np.bool_)
    seeds = [starts[0]] * size
    first: dict[int, Tensor] = {}
    latents = None
    record, here = Record(), device_of(policy)
    episode_of: list[NDArray[Any]] = []
    obs = torch.empty(0)
    with torch.inference_mode():
        while True:
            if over.any():
                for member in np.flatnonzero(over):
                    playing[member] = next(queue, -1)
                    seeds[member] = starts[max(playing[member], 0)]
                if (playing < 0).all():
                    break
                begins = over & (playing >= 0)
                obs = edge.reset(seeds, over)
                age[over] = 0
                _check_initial_states(where, first, obs, begins, playing // group_size)
                if noises is not None and begins.any():
                    replace_noise(where, envs, {int(n): noises[playing[n]] for n in np.flatnonzero(begins)})
            if held:
                acted = act_holding(policy, obs.to(here), latents, torch.from_numpy(age == 0).to(here))
                latents = acted.latents
            elif loop is not None:
                acted = loop(obs.to(here), age)
            else:
                acted = acting(policy, obs.to(here))
            outcome = edge.step(acted.action)
            age += 1
            over = outcome.terminated | outcome.truncated
            endless = (age >= limits.max_steps) & ~over & (playing >= 0)
            if endless.any():
                _check_may_truncate(where, limits, int(np.flatnonzero(endless)[0]))
                outcome = replace(outcome, truncated=outcome.truncated | endless)
                over = over | endless
            record.add(obs, acted, outcome)
            episode_of.append(playing.copy())
            obs = outcome.next_obs
    episode = torch.from_numpy(np.concatenate(episode_of)).to(here)
    recorded = episode >= 0
    order = torch.argsort(episode[recorded], stable=True)
    rows = take_rows(recorded.nonzero().squeeze(1), order)
    steps = record.transitions().rows(rows)
    decisions = None if loop is None else loop.decisions(steps.obs, rows)
    return Episodes(steps, episode[rows], group_size, held, int((~recorded).sum()), decisions)


def _check_execute(where: str, latent: str, execute: int | None) -> None:
    if execute is not None and (latent != "chunk" or execute < 1):
        raise OptionError(
            where,
            "`execute`",
            expected='an integer >= 1, at most the horizon H, with latent="chunk"; else None',
            got=f'{execute!r} with latent="{latent}"',
        )


def _check_initial_states(
    where: str, first: dict[int, Tensor], obs: Tensor, begins: NDArray[np.bool_], group: NDArray[Any]
) -> None:
    """Hold the first observation of every member of a group against the group's first."""
    for member in np.flatnonzero(begins):
        known = first.setdefault(int(group[member]), obs[member])
        if not torch.equal(known, obs[member]):
            raise EnvironmentFault(
                where,
                f"two members of group {int(group[member])} did not start in the same state",
                expected=f"the first observation {known.tolist()}",
                got=str(obs[member].tolist()),
                likely="the environment's reset hangs on more than its seed",
                fix="draw everything from self.np_random in reset(), after super().reset(seed=seed)",
            )


def _check_may_truncate(where: str, limits: _Limits, member: int) -> None:
    if limits.on_max_steps == "truncate":
        return
    raise EnvironmentFault(
        where,
        f"the episode of member {member} does not end",
        expected=f"an end within max_steps={limits.max_steps}",
        got=f"{limits.max_steps} steps without one",
        fix='gymnasium.wrappers.TimeLimit, a larger max_steps, or on_max_steps="truncate"',
    )


def _check_count(where: str, name: str, value: int, least: int, why: str | None) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise OptionError(where, f"`{name}`", expected=f"an integer >= {least}", got=repr(value), likely=why)


def _check_choice(where: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise OptionError(
            where,
            f"`{name}`",
            expected=" or ".join(f'"{choice}"' for choice in choices),
            got=repr(value),
            fix=did_you_mean(str(value), choices),
        )
