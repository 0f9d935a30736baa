r"""Acting by chunks: H actions are decided on at once, and h of them carried out before the next decision.

**Open loop.** :func:`collect_chunks` draws z and a_1, ..., a_H at every h-th step of an episode, and carries out the
first h, or as many as the episode lasts. One chunk is one row. What was carried out is scored, the rest is set to zero
and outside the mask: given (s, a_1, ..., a_h) the recorded z is an exact draw from the posterior, because where an
episode ends hangs on z through the executed actions alone.

**Temporal ensembling.** :func:`play_ensembled` decides anew at every step and carries out the average of all that was
ever predicted for it (T. Z. Zhao et al., "Learning fine-grained bimanual manipulation with low-cost hardware", 2023).
The average has no tractable density, so this is for evaluation, and what it returns cannot be learnt from. Predictions
under different latents are never averaged: half-way between two modes lies none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics.devices import device_of
from latentpg.programs import Acted, LatentPolicy, Latents, Span, act, conditionals, draw_prior, log_joint, take_rows
from latentpg.programs.capture import ACTION, is_real
from latentpg.rollout.edge import Edge, start_seeds
from latentpg.rollout.environments import LARGEST_SEED, require_our_resets
from latentpg.rollout.episodes import Decisions, Episodes, SpanRows
from latentpg.rollout.faults import EnvironmentFault
from latentpg.rollout.transitions import Record, Transitions


@dataclass(frozen=True)
class Chunks:
    """C chunks of E whole episodes: those of episode 0 in order, then those of episode 1, and so on.

    ``rows`` is what an estimator takes, one row a chunk: a span ``[C, H, S]`` whose mask is true at executed steps,
    actions ``[C, H, ...]``, the latents drawn and log p(z, executed actions | s). ``reward [C, H]`` is zero outside the
    mask. ``terminated`` and ``truncated`` tell of the chunks with which an episode ended, ``next_obs [C, S]`` is what
    was seen behind a chunk's last step, and ``episode [C]`` is whose chunk it is.
    """

    rows: SpanRows
    reward: Float[Tensor, "C H"]
    terminated: Bool[Tensor, " C"]
    truncated: Bool[Tensor, " C"]
    next_obs: Float[Tensor, "C S"]
    episode: Int[Tensor, " C"]

    @property
    def num_chunks(self) -> int:
        """C."""
        return len(self.episode)

    @property
    def num_episodes(self) -> int:
        """E."""
        return int(self.episode[-1]) + 1

    @property
    def executed(self) -> Int[Tensor, " C"]:
        """Executed steps of each chunk."""
        return self.rows.obs.mask.sum(1)

    @property
    def lengths(self) -> Int[Tensor, " E"]:
        """Steps of each episode."""
        total = torch.zeros(self.num_episodes, dtype=torch.int64, device=self.episode.device)
        return total.index_add_(0, self.episode, self.executed)

    @property
    def returns(self) -> Float[Tensor, " E"]:
        """Undiscounted sum of each episode's rewards, in float64."""
        total = torch.zeros(self.num_episodes, dtype=torch.float64, device=self.episode.device)
        return total.index_add_(0, self.episode, self.reward.double().sum(1))

    def steps(self, values: Tensor) -> Tensor:
        """Take the executed steps out of ``[C, H, ...]``: rows ``[M, ...]``, one episode after the other."""
        mask = self.rows.obs.mask
        if values.shape[:2] != mask.shape:
            raise ShapeError(
                "Chunks.steps()", "`values`", expected=f"[C, H, ...] = {list(mask.shape)}", got=str(list(values.shape))
            )
        return values[mask]


def collect_chunks(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    *,
    num_episodes: int,
    seed: int,
    execute: int | None = None,
    max_steps: int = 100_000,
    on_max_steps: str = "error",
) -> Chunks:
    """Play whole episodes open-loop, chunk after chunk, ``execute`` steps of each (all H, unless told).

    ``policy`` gives ``[N, H, ...]`` actions for observations ``[N, S]``, as
    :class:`~latentpg.policies.chunk.ChunkPolicy` does. Seeds and the queue are those of
    :func:`~latentpg.rollout.collect_episodes`: exactly the first E episodes that were begun are kept, however long.

    >>> from latentpg.policies import ChunkPolicy
    >>> from latentpg.rollout import make_envs
    >>> envs = make_envs("latentpg/Avoiding-v0", 4, vectorization_mode="native")
    >>> policy = ChunkPolicy(envs.single_observation_space, envs.single_action_space, horizon=8)
    >>> chunks = collect_chunks(envs, policy, num_episodes=6, seed=0, execute=4)
    >>> chunks.num_episodes, chunks.rows.action.shape[1:], int(chunks.executed.max())
    (6, torch.Size([8, 2]), 4)
    """
    where = "collect_chunks()"
    if execute is not None and execute < 1:
        raise OptionError(where, "`execute`", expected="an integer >= 1, at most the horizon H", got=repr(execute))
    chooser = OpenLoop(where, policy, execute, envs.single_action_space)
    played = _play(where, envs, chooser, num_episodes, seed, max_steps, on_max_steps)
    return chooser.chunks(played)


def play_ensembled(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    *,
    num_episodes: int,
    seed: int,
    hold: int | None = None,
    decay: float | int = 0.01,
    max_steps: int = 100_000,
    on_max_steps: str = "error",
) -> Episodes:
    r"""Play whole episodes by temporal ensembling, to evaluate; ``log_joint`` of what is returned is NaN.

    At every step the policy predicts the means of H actions given what it sees and its latent, which is drawn anew
    every ``hold`` steps (at an episode's start only, by default). Carried out is the average of the predictions that
    were made for this step, :math:`i` steps ago for :math:`i = 0, \dots, H-1`, in this episode and under the very same
    latent, with weights :math:`\propto e^{\text{decay}\cdot i}`: as in the paper, older ones weigh more.
    """
    where = "play_ensembled()"
    if hold is not None and hold < 1:
        raise OptionError(where, "`hold`", expected="an integer >= 1, or None for the episode", got=repr(hold))
    if not math.isfinite(decay):
        raise OptionError(where, "`decay`", expected="a finite number", got=repr(decay), fix="decay=0.01")
    played = _play(
        where, envs, _Ensemble(where, policy, hold, float(decay)), num_episodes, seed, max_steps, on_max_steps
    )
    return Episodes(played.transitions, played.episode, 1)


@dataclass(frozen=True)
class _Played:
    """Steps as rows ``[M, ...]``, one episode after the other, and the order in which they were taken from all."""

    transitions: Transitions
    episode: Int[Tensor, " M"]
    rows: Int[Tensor, " M"]


def _play(
    where: str,
    envs: VectorEnv[Any, Any, Any],
    choose: OpenLoop | _Ensemble,
    num_episodes: int,
    seed: int,
    max_steps: int,
    on_max_steps: str,
) -> _Played:
    """Let N members play the queue of E episodes, in order; members without one are stepped along, unrecorded."""
    require_our_resets(where, envs)
    if num_episodes < 1 or max_steps < 1 or on_max_steps not in ("error", "truncate"):
        raise OptionError(
            where,
            "`num_episodes`, `max_steps` or `on_max_steps`",
            expected='integers >= 1, and "error" or "truncate"',
            got=f"{num_episodes!r}, {max_steps!r} and {on_max_steps!r}",
        )
    edge, size = Edge(envs, where), envs.num_envs
    starts, queue = start_seeds(seed, 0, num_episodes, LARGEST_SEED), iter(range(num_episodes))
    playing, age = np.full(size, -1), np.zeros(size, dtype=np.int64)
    over, seeds = np.ones(size, dtype=np.bool_), [starts[0]] * size
    record, episode_of, obs, here = Record(), [], torch.empty(0), device_of(choose.policy)
    with torch.inference_mode():
        while True:
            if over.any():
                for member in np.flatnonzero(over):
                    playing[member] = next(queue, -1)
                    seeds[member] = starts[max(playing[member], 0)]
                if (playing < 0).all():
                    break
                obs = edge.reset(seeds, over)
                age[over] = 0
            acted = choose(obs.to(here), age)
            outcome = edge.step(acted.action)
            age += 1
            over = outcome.terminated | outcome.truncated
            endless = (age >= max_steps) & ~over & (playing >= 0)
            if endless.any():
                if on_max_steps == "error":
                    raise EnvironmentFault(
                        where,
                        f"the episode of member {int(np.flatnonzero(endless)[0])} does not end",
                        expected=f"an end within max_steps={max_steps}",
                        got=f"{max_steps} steps without one",
                        fix='gymnasium.wrappers.TimeLimit, a larger max_steps, or on_max_steps="truncate"',
                    )
                outcome, over = replace(outcome, truncated=outcome.truncated | endless), over | endless
            record.add(obs, acted, outcome)
            episode_of.append(playing.copy())
            obs = outcome.next_obs
    episode = torch.from_numpy(np.concatenate(episode_of)).to(here)
    recorded = (episode >= 0).nonzero().squeeze(1)
    rows = take_rows(recorded, torch.argsort(episode[recorded], stable=True))
    return _Played(record.transitions().rows(rows), episode[rows], rows)


@dataclass
class OpenLoop:
    """Carry out decided actions in turn, and note which decision each step belongs to.

    Call it with ``obs [N, S]`` and every member's steps since its episode began; the ``log_joint`` of what it returns
    is zero, for the decision is what is scored.

    ``decided`` holds a batch of decisions an entry; ``chunk`` and ``slot`` hold, for every step of every member, the
    decision (counted over all) and the place in it.
    """

    where: str
    policy: LatentPolicy
    execute: int | None
    space: spaces.Space[Any]
    decided: list[Acted] = field(default_factory=list)
    chunk: list[Tensor] = field(default_factory=list)
    slot: list[Tensor] = field(default_factory=list)
    current: Tensor = field(default_factory=lambda: torch.empty(0))
    whose: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    count: int = 0

    def __call__(self, obs: Float[Tensor, "N S"], age: Int[NDArray[np.int64], " N"]) -> Acted:
        """Return every member's next action, after those that are due have decided."""
        ages = torch.from_numpy(age.copy()).to(obs.device)
        due = ages == 0 if self.execute is None else ages % self.execute == 0
        if self.execute is None and len(self.current):  # the horizon is known once a chunk has been drawn
            due = ages % self.current.shape[1] == 0
        if bool(due.any()):
            self._decide(obs, due)
        slot = ages % (self.execute or self.current.shape[1])
        self.chunk.append(self.whose.clone())
        self.slot.append(slot)
        every = torch.arange(len(obs), device=obs.device)
        return Acted(self.current[every, slot], {}, torch.zeros(len(obs), device=obs.device))

    def _decide(self, obs: Float[Tensor, "N S"], due: Bool[Tensor, " N"]) -> None:
        acted = act(self.policy, obs[due])
        least, shape = self.execute or 1, acted.action.shape
        event = () if isinstance(self.space, spaces.Discrete) else (math.prod(self.space.shape or ()),)
        if len(shape) < 2 or shape[1] < least or tuple(shape[2:]) != event:
            raise ShapeError(
                self.where,
                "the policy's action",
                expected=f"[{', '.join(map(str, ('N', 'H', *event)))}] with H >= execute={least}",
                got=str(list(shape)),
                fix="a policy that decides on chunks, such as ChunkPolicy(..., horizon=8)",
            )
        if not len(self.current):
            self.current = acted.action.new_zeros(len(obs), *acted.action.shape[1:])
            self.whose = torch.zeros(len(obs), dtype=torch.int64, device=obs.device)
        self.current = self.current.clone()
        self.current[due] = acted.action
        self.whose[due] = self.count + torch.arange(len(acted.action), device=obs.device)
        self.count += len(acted.action)
        self.decided.append(acted)

    def chunks(self, played: _Played) -> Chunks:
        """Put the executed steps of each decision side by side, in the order of episodes."""
        steps = played.transitions
        made = self.decisions(steps.obs, played.rows)
        ended = steps.rows(torch.cat([made.begins[1:], made.begins.new_ones(1)]))
        reward = steps.reward.new_zeros(made.rows.obs.mask.shape)
        reward[made.rows.obs.mask] = steps.reward
        episode = played.episode[made.begins]
        return Chunks(made.rows, reward, ended.terminated, ended.truncated, ended.next_obs, episode)

    def decisions(self, obs: Float[Tensor, "M S"], rows: Int[Tensor, " M"]) -> Decisions:
        """Score the executed steps of each decision; ``rows`` numbers the M steps as they were taken from all members.

        Steps come one episode after the other.
        """
        old, slot = torch.cat(self.chunk)[rows], torch.cat(self.slot)[rows]
        begins = slot == 0
        index = begins.cumsum(0) - 1  # each step's chunk, counted in the order of episodes
        kept = old[begins]
        action = torch.cat([each.action for each in self.decided])[kept]
        shape = (len(kept), action.shape[1])

        def spread(values: Tensor) -> Tensor:
            whole = values.new_zeros(*shape, *values.shape[1:])
            whole[index, slot] = values
            return whole

        mask = spread(torch.ones_like(begins))
        action = action.masked_fill(~mask.reshape(*shape, *[1] * (action.ndim - 2)), 0)
        names = self.decided[0].latents
        latents = {name: torch.cat([each.latents[name] for each in self.decided])[kept] for name in names}
        span = Span(spread(obs), mask)
        return Decisions(SpanRows(span, action, latents, _score(self.policy, span, action, latents)), begins)


def _score(policy: LatentPolicy, span: Span, action: Tensor, latents: Latents) -> Float[Tensor, " C"]:
    with torch.no_grad():
        return log_joint(policy, span, action, {name: value.unsqueeze(0) for name, value in latents.items()})[0]


@dataclass
class _Ensemble:
    """Remember the last H predictions of every member, with the latents and the step they were made under."""

    where: str
    policy: LatentPolicy
    hold: int | None
    decay: float
    latents: Latents = field(default_factory=dict)
    past: list[tuple[Tensor, Latents]] = field(default_factory=list)

    def __call__(self, obs: Float[Tensor, "N S"], age: Int[NDArray[np.int64], " N"]) -> Acted:
        ages = torch.from_numpy(age.copy()).to(obs.device)
        due = ages == 0 if self.hold is None else ages % self.hold == 0
        if bool(due.any()):
            drawn = draw_prior(self.policy, obs, num_particles=1).latents
            self.latents = {name: _choose(due, value[0], self.latents.get(name)) for name, value in drawn.items()}
        mean = self._predict(obs)
        horizon = mean.shape[1]
        self.past = [(mean, self.latents), *self.past[: horizon - 1]]  # entry i was predicted i steps ago
        weights, predictions = [], []
        for i, (predicted, latents) in enumerate(self.past):
            usable = (ages >= i) & _same(latents, self.latents, ages)
            weights.append(usable.to(mean.dtype) * math.exp(self.decay * (i - horizon + 1)))
            predictions.append(predicted[:, i])
        weight = torch.stack(weights)
        weight = (weight / weight.sum(0)).reshape(*weight.shape, *[1] * (mean.ndim - 2))
        action = (weight * torch.stack(predictions)).sum(0)
        return Acted(action, {}, torch.full((len(obs),), math.nan, device=obs.device))

    def _predict(self, obs: Float[Tensor, "N S"]) -> Float[Tensor, "N H A"]:
        given = {name: value.unsqueeze(0) for name, value in self.latents.items()}
        steps = conditionals(self.policy, obs, given)[ACTION]
        base = getattr(steps, "base_dist", steps)
        if not is_real(getattr(base, "support", None)) or len(steps.event_shape) < 2:
            raise OptionError(
                self.where,
                "there is nothing to average",
                expected="a policy over chunks [H, A] of floating-point actions",
                got=f"{type(base).__name__} of event shape {list(steps.event_shape)}",
                fix="collect_chunks(), which carries chunks out one after the other",
            )
        return steps.mean.reshape(len(obs), *steps.event_shape)


def _choose(due: Bool[Tensor, " N"], new: Tensor, old: Tensor | None) -> Tensor:
    return new if old is None else torch.where(due.reshape(-1, *[1] * (new.ndim - 1)), new, old)


def _same(one: Latents, other: Latents, ages: Int[Tensor, " N"]) -> Bool[Tensor, " N"]:
    """Tell in which rows all latents are the very same."""
    same = torch.ones_like(ages, dtype=torch.bool)
    for name, value in one.items():
        same &= (value == other[name]).reshape(len(ages), -1).all(1)
    return same
