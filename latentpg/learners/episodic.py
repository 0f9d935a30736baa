r"""Whole episodes as an update sees them: their rows, what is credited to each, and how much each counts.

A latent drawn at every step makes every step a row, and a latent held for a chunk or the episode makes that one row,
whose log pi is that of all its actions together. In all cases the rows of an episode are a *sum* over its steps, so
that one weight an episode (:mod:`latentpg.numerics.aggregation`) serves all. Credits are computed in float64 and
handed on in the rows' own type.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.errors import OptionError, did_you_mean
from latentpg.learners.batches import num_parts
from latentpg.learners.parallel import ALONE, Group, together, total_over
from latentpg.learners.scoring import Rows
from latentpg.numerics.aggregation import constant_weights, sequence_weights, token_weights
from latentpg.numerics.returns import discount_factors, discounted_return, discounted_reward_to_go, reward_to_go
from latentpg.rollout import Episodes

Aggregation = Literal["token", "sequence", "constant"]
"""How steps of episodes of different lengths share the loss."""


@dataclass(frozen=True, eq=False)
class EpisodeRows:
    """B rows of E episodes: the spans of a latent; ``log_joint`` is as the policy acted.

    ``episode [B]`` is each row's episode and ``length [E]`` the number of steps of each.
    """

    rows: Rows
    log_joint: Float[Tensor, " B"]
    episode: Int[Tensor, " B"]
    length: Int[Tensor, " E"]


def episode_rows(episodes: Episodes) -> EpisodeRows:
    """Take the rows of episodes: their spans if a latent was held for some steps, and else their steps."""
    if episodes.held or episodes.decisions is not None:
        spans = episodes.spans()
        rows = Rows(spans.obs, spans.action, spans.latents)
        return EpisodeRows(rows, spans.log_joint, episodes.episode[episodes.begins], episodes.lengths)
    steps = episodes.transitions
    return EpisodeRows(
        Rows(steps.obs, steps.action, steps.latents), steps.log_joint, episodes.episode, episodes.lengths
    )


@dataclass(frozen=True, eq=False)
class EpisodeBatch:
    """What an update learns from: B rows of E episodes, the advantage of each row, what a step of each episode weighs.

    ``length`` is the number of steps of each episode. ``shared`` is the number of rows of all workers where there are
    several, and weights are those within the episodes of all.
    """

    rows: Rows
    episode: Int[Tensor, " B"]
    advantage: Float[Tensor, " B"]
    length: Int[Tensor, " E"]
    weight: Float[Tensor, " E"]
    shared: int | None = None

    @property
    def size(self) -> int:
        """Rows of all workers."""
        return self.rows.size if self.shared is None else self.shared


def episode_batch(
    episodes: Episodes,
    advantage: Float[Tensor, " B"],
    *,
    aggregation: Aggregation,
    horizon: float | int,
    group: Group = ALONE,
) -> EpisodeBatch:
    """Put rows, advantages and weights of the episodes together."""
    found = episode_rows(episodes)
    dtype, every = found.log_joint.dtype, together(group, found.length)
    weight = episode_weights(every.rows, aggregation=aggregation, horizon=horizon, dtype=dtype)
    size = int(total_over(group, found.rows.size))
    return EpisodeBatch(found.rows, found.episode, advantage.to(dtype), found.length, every.mine(weight), size)


def total_credit(episodes: Episodes, reward: Float[Tensor, " M"], *, gamma: float | int) -> Float[Tensor, " E"]:
    r"""Return :math:`\sum_t\gamma^t r_t` of each episode, in float64."""
    return discounted_return(_padded(episodes, reward), discount=gamma, done=_done(episodes))


def credit_to_go(
    episodes: Episodes, reward: Float[Tensor, " M"], *, gamma: float | int, from_start: bool
) -> Float[Tensor, "T E"]:
    r"""Return :math:`\sum_{k\ge t}\gamma^{k-t}r_k` of each step, 0 behind an episode's end, in float64.

    ``from_start`` multiplies by :math:`\gamma^t`, which makes it :math:`\sum_{k\ge t}\gamma^k r_k`.
    """
    function = discounted_reward_to_go if from_start else reward_to_go
    return function(_padded(episodes, reward), discount=gamma, done=_done(episodes))


def step_discounts(episodes: Episodes, *, gamma: float | int) -> Float[Tensor, " M"]:
    r"""Return :math:`\gamma^t` of every step, in float64."""
    return episodes.unpad(discount_factors(_done(episodes), discount=gamma, dtype=torch.float64))


def episode_weights(
    length: Int[Tensor, " E"], *, aggregation: Aggregation, horizon: float | int, dtype: torch.dtype
) -> Float[Tensor, " E"]:
    """Return what each step of an episode weighs in the loss, by the name of the aggregation."""
    if aggregation == "token":
        return token_weights(length, dtype=dtype)
    if aggregation == "sequence":
        return sequence_weights(length, dtype=dtype)
    return constant_weights(length, horizon=horizon, dtype=dtype)


def sums(values: Float[Tensor, " B"], group: Int[Tensor, " B"], number: int) -> Float[Tensor, " E"]:
    """Sum the values of each of so many groups.

    >>> sums(torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0, 2, 2]), 3).tolist()
    [1.0, 0.0, 6.0]
    """
    return values.new_zeros(number).index_add(0, group, values)


def whole_episodes(
    episode: Int[Tensor, " B"], length: Int[Tensor, " E"], batch_size: int, *, group: Group = ALONE
) -> Iterator[Int[Tensor, " M"]]:
    """Shuffle episodes by the ambient stream and yield the rows of as many as make ``batch_size`` steps, or just more.

    In a ``group`` each worker has its share of every minibatch: its own episodes, in as many parts as the others'.

    >>> parts = whole_episodes(torch.tensor([0, 0, 1, 2, 2]), torch.tensor([2, 1, 2]), 100)
    >>> [sorted(part.tolist()) for part in parts]
    [[0, 1, 2, 3, 4]]
    """
    order = torch.randperm(len(length), device=length.device)
    steps = length[order].cumsum(0)
    part_of = torch.empty_like(order)
    part_of[order] = (steps - length[order]) // batch_size  # by the step at which the episode begins
    if group.size > 1:
        parts = num_parts(int(length.sum()), batch_size, group=group, at_most=len(length))
        for number, chosen in enumerate(order.tensor_split(parts)):
            part_of[chosen] = number
    for part in part_of.unique():
        yield (part_of[episode] == part).nonzero().squeeze(1)


def episode_metrics(episodes: Episodes) -> dict[str, float]:
    """Return mean return and length of the episodes, how many they are, and the share of steps that went unrecorded."""
    rows, idle = episodes.transitions.num_rows, episodes.num_idle_steps
    return {
        "rollout/ep_rew_mean": float(episodes.returns.mean()),
        "rollout/ep_len_mean": float(episodes.lengths.double().mean()),
        "rollout/episodes": float(episodes.num_episodes),
        "rollout/idle_share": idle / (rows + idle),
    }


def check_counts(where: str, least: Mapping[str, tuple[int, int]], why: Mapping[str, str] | None = None) -> None:
    """Refuse what is not an integer of at least so much; ``least`` maps names to value and bound."""
    for name, (value, bound) in least.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < bound:
            reason = None if why is None else why.get(name)
            raise OptionError(where, f"`{name}`", expected=f"an integer >= {bound}", got=repr(value), likely=reason)


def check_positive(where: str, values: Mapping[str, float | int | None]) -> None:
    """Refuse numbers that are not above zero; None is left alone."""
    for name, value in values.items():
        if value is not None and not 0 < value < math.inf:
            raise OptionError(where, f"`{name}`", expected="a number > 0", got=repr(value))


def check_choices(where: str, values: Mapping[str, tuple[str, tuple[str, ...]]]) -> None:
    """Refuse a name that is not among its choices."""
    for name, (value, choices) in values.items():
        if value not in choices:
            raise OptionError(
                where,
                f"`{name}`",
                expected=" or ".join(f'"{choice}"' for choice in choices),
                got=repr(value),
                fix=did_you_mean(str(value), choices),
            )


def check_fraction(where: str, name: str, value: float | int) -> None:
    """Refuse a number outside [0, 1]."""
    if not 0 <= value <= 1:
        raise OptionError(where, f"`{name}`", expected="a number in [0, 1]", got=repr(value))


def _padded(episodes: Episodes, reward: Tensor) -> Tensor:
    return episodes.pad(reward.double())


def _done(episodes: Episodes) -> Tensor:
    return episodes.pad(episodes.transitions.done, fill=True)
