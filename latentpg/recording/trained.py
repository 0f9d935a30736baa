"""Experts that a run left behind: the policy of `latentpg train` or of `latentpg imitate`, and how it acts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gymnasium.vector import VectorEnv

from latentpg.errors import OptionError, SpaceError
from latentpg.programs import LatentPolicy
from latentpg.training.cloned import is_cloning, read_cloned
from latentpg.training.folders import open_run
from latentpg.training.policies import ChunkPart, EpisodePart, PolicyPart
from latentpg.training.preparing import latent_of, prepared
from latentpg.training.saving import load


@dataclass(frozen=True, eq=False)
class TrainedExpert:
    """A policy, how long it holds a latent (``"step"``, ``"episode"``, ``"chunk"``), and the steps done of a chunk."""

    policy: LatentPolicy
    latent: str
    execute: int | None = None


def load_expert(
    path: Path, envs: VectorEnv[Any, Any, Any], *, which: str, trusted: bool, say: Callable[[str], None]
) -> TrainedExpert:
    """Read the policy of a run for these environments, whose spaces must be those that it was made for.

    ``which`` is the checkpoint, ``"best"`` or ``"last"``; ``trusted`` lets the run's environment import a module.
    """
    path = path.expanduser().absolute()
    if is_cloning(path):
        cloned = read_cloned(path, which=which)
        policy = cloned.build(envs.single_observation_space, envs.single_action_space)
        return TrainedExpert(policy, *_span(cloned.part))
    run = open_run(path, trusted=trusted)
    if run.seeds is not None:
        raise OptionError(
            "latentpg record", f"{path} holds one run for each seed", expected="one run", fix=f"{path}/seed-N"
        )
    saved = load(path, which, say=say)
    with prepared(run.config) as built:
        theirs = built.envs
        for kind in ("single_observation_space", "single_action_space"):
            if getattr(theirs, kind) != getattr(envs, kind):
                raise SpaceError(
                    "latentpg record",
                    f"the expert was trained for {run.config.selection.env}, whose spaces are others",
                    expected=str(getattr(theirs, kind)),
                    got=str(getattr(envs, kind)),
                    fix=f"--env {run.config.selection.env}",
                )
        built.restore_policy(saved.state)
        return TrainedExpert(built.policy, latent_of(run.config))


def _span(part: PolicyPart) -> tuple[str, int | None]:
    match part:
        case EpisodePart():
            return "episode", None
        case ChunkPart():
            return "chunk", part.num_action_steps
        case _:
            return "step", None
