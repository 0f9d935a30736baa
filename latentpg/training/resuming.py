"""Bringing a learner back to where a checkpoint left it, exactly or saying that it is not.

A learner's state replays each member's episode from its recorded seed. Where the environment's course hangs on more
than its seed and actions that cannot be; everything else comes back all the same, every member begins a new episode,
and the run says ``exact_resume = false`` and why.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.learners import Learner
from latentpg.rollout import EnvironmentFault
from latentpg.training.facts import held_to_its_learner

OF_EPISODES: Mapping[str, float] = {
    "collector.waiting": 1.0,
    "collector.episode_return": 0.0,
    "scaler.carried": 0.0,
    "factor": 1.0,
    "actor_trace.": 0.0,
    "critic_trace.": 0.0,
}
"""What of a learner's state belongs to episodes that go on, and what it is where all of them begin; names and stems."""

OF_OPTIMISERS = ("agent.model.", "agent.guide.", "value.")
"""Stems of what optimisers remember, which is nothing before their first step."""


def restore(learner: Learner, state: Mapping[str, Tensor]) -> str | None:
    """Go on where the state was taken; return None, or why the environments could not be brought back."""
    check_names(learner, state)
    with held_to_its_learner():
        try:
            learner.restore(state)
        except EnvironmentFault as fault:
            learner.restore(without_episodes(state))
            return str(fault)
    return None


def without_episodes(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the state with every member waiting for a new episode, from seeds that were not used yet.

    >>> found = without_episodes({"factor": torch.tensor([0.5]), "agent.policy.w": torch.ones(1)})
    >>> found["factor"].tolist(), found["agent.policy.w"].tolist()
    ([1.0], [1.0])
    """
    begins = {
        name: torch.full_like(value, start)
        for name, value in state.items()
        for stem, start in OF_EPISODES.items()
        if name == stem or (stem.endswith(".") and name.startswith(stem))
    }
    return {**state, **begins}


def check_names(learner: Learner, state: Mapping[str, Tensor]) -> None:
    """Refuse a state that lacks what the learner has, holds what it has not, or has another shape for it.

    That is what a checkpoint of other options looks like: of rewards that were not normalised, say, whose statistics
    nothing could stand for.
    """
    mine = {name: value for name, value in learner.state().items() if not name.startswith(OF_OPTIMISERS)}
    theirs = {name: value for name, value in state.items() if not name.startswith(OF_OPTIMISERS)}
    lacking, strange = sorted(mine.keys() - theirs.keys()), sorted(theirs.keys() - mine.keys())
    strange += [
        f"{name} {list(theirs[name].shape)}, not {list(value.shape)}"
        for name, value in sorted(mine.items())
        if name in theirs and name != "collector.actions" and theirs[name].shape != value.shape
    ]
    if not lacking and not strange:
        return
    raise OptionError(
        "latentpg resume",
        "the checkpoint is of a learner with other options",
        expected=f"the state of {type(learner).__name__} with the options that are asked for",
        got="; ".join(f"{word} {_some(names)}" for word, names in (("without", lacking), ("with", strange)) if names),
        likely=_likely([*lacking, *strange]),
        fix="the options that the run began with",
    )


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _likely(names: list[str]) -> str | None:
    hints = {"scaler.": "normalize_reward", "reference.": "kl_coefficient", "normalizer": "normalize_observations"}
    found = [option for sign, option in hints.items() if any(sign in name for name in names)]
    return f"another {' or '.join(found)}" if found else None
