"""Roll-outs of a cloned policy: whatever its latent spans, however it acts, and wherever its latent comes from.

How z is drawn and what is made of the action's distribution are replaced at the one place where anything is drawn
(:func:`~latentpg.programs.drawing`), so that steps, chunks and whole episodes all can be acted in each way.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, Independent

from latentpg.errors import OptionError, SpaceError
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import LatentPolicy, Latents, drawing
from latentpg.programs.capture import ACTION
from latentpg.rollout import Chunks, Episodes, collect_chunks, collect_episodes, collect_groups, play_ensembled
from latentpg.training.evaluate import center_of
from latentpg.training.policies import ChunkPart, EpisodePart, PolicyPart

SOURCES = ("prior", "prior-mean", "posterior")
"""Where z comes from: the prior, the prior's middle, or the guide's draws on the demonstrations learnt from."""


@dataclass(frozen=True, eq=False)
class Played:
    """E episodes as M rows of observations ``[M, S]``, with their lengths ``[E]`` and returns ``[E]``.

    They are on the processor, wherever the policy was.
    """

    obs: Float[Tensor, "M S"]
    lengths: Int[Tensor, " E"]
    returns: Float[Tensor, " E"]

    @property
    def starts(self) -> Float[Tensor, "E S"]:
        """First observation of each episode."""
        return self.obs[self.lengths.cumsum(0) - self.lengths]


def check_acting(part: PolicyPart, acting: str) -> None:
    """Refuse to average what is no prediction of several steps."""
    if acting == "ensembled" and not isinstance(part, ChunkPart):
        raise OptionError(
            "latentpg",
            "temporal ensembling averages what chunks predicted for the same step",
            expected="--policy chunk",
            got="--acting ensembled with a policy that decides step by step",
            fix="--acting stochastic, or decoder-mean",
        )


def play(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    part: PolicyPart,
    *,
    num_episodes: int,
    seed: int,
    acting: str = "stochastic",
    bank: Latents | None = None,
    source: str = "prior",
) -> Played:
    """Play whole episodes, each with a seed of its own; ``bank`` holds the latents of ``source="posterior"``.

    The ambient random stream is left as it was.
    """
    check_acting(part, acting)
    found: Episodes
    with seeded(stream_seed(seed, "actions")), replacing(acting, source, bank):
        start = stream_seed(seed, "episodes")
        if isinstance(part, ChunkPart) and acting == "ensembled":
            found = play_ensembled(envs, policy, num_episodes=num_episodes, seed=start, hold=part.num_action_steps)
        elif isinstance(part, ChunkPart):
            chunks = collect_chunks(envs, policy, num_episodes=num_episodes, seed=start, execute=part.num_action_steps)
            return _played(chunks.steps(chunks.rows.obs.obs), chunks)
        else:
            found = collect_episodes(envs, policy, num_episodes=num_episodes, seed=start, latent=span_of(part))
    return _played(found.transitions.obs, found)


def play_groups(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    part: PolicyPart,
    *,
    num_contexts: int,
    size: int,
    seed: int,
    acting: str = "stochastic",
) -> Played | None:
    """Play ``size`` episodes from each of some initial states, one state after the other; None for chunks."""
    if isinstance(part, ChunkPart):
        return None
    with seeded(stream_seed(seed, "actions")), replacing(acting, "prior", None):
        found = collect_groups(
            envs,
            policy,
            num_groups=num_contexts,
            group_size=size,
            seed=stream_seed(seed, "contexts"),
            latent=span_of(part),
        )
    return _played(found.transitions.obs, found)


def _played(obs: Tensor, found: Episodes | Chunks) -> Played:
    return Played(obs.cpu(), found.lengths.cpu(), found.returns.cpu())


def span_of(part: PolicyPart) -> str:
    """Say for how long a latent is held."""
    return "episode" if isinstance(part, EpisodePart) else "step"


@contextmanager
def replacing(acting: str, source: str, bank: Latents | None) -> Iterator[None]:
    """Draw z and actions inside the scope as is asked for."""
    if source not in SOURCES or (source == "posterior" and not bank):
        raise OptionError("play()", "`source`", expected=f"one of {', '.join(SOURCES)}", got=repr(source))
    if acting != "decoder-mean" and source == "prior":
        yield
        return
    with drawing(_Replaced(acting, source, dict(bank or {}))):
        yield


@dataclass
class _Replaced:
    """A source of draws: latents from the middle of the prior or from a bank, actions from their distribution's middle.

    Several sites of one draw come from the same entry of the bank.
    """

    acting: str
    source: str
    bank: Latents
    index: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        shape = sample_shape + fn.batch_shape
        if name == ACTION and self.acting != "decoder-mean":
            return fn.sample(sample_shape)
        if name == ACTION:
            return _center(fn).expand(shape + fn.event_shape)
        if self.source == "prior" or (self.source == "posterior" and name not in self.bank):
            return fn.sample(sample_shape)
        if self.source == "prior-mean":
            return _center(fn).expand(shape + fn.event_shape)
        if name == next(iter(self.bank)) or self.index.shape != shape:
            self.index = torch.randint(len(self.bank[name]), shape, device=self.bank[name].device)
        return self.bank[name][self.index]


def _center(fn: Distribution) -> Tensor:
    """Return the middle of a distribution, of all its steps where it is one of several."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    base = getattr(fn, "base_dist", fn)  # what a mask is laid over
    try:
        return center_of(base)
    except SpaceError:
        return fn.mean
