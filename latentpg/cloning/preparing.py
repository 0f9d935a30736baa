"""What a run of cloning needs, built and checked before anything is written, and closed when it is over.

Demonstrations are held against the spaces, split by episode, and cut into the rows that the policy's latent spans:
steps, chunks or whole episodes. The training part's statistics are the policy's encoder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv
from torch import nn

from latentpg.cloning.acting import check_acting
from latentpg.cloning.config import CloningConfig
from latentpg.cloning.sources import demonstrations_of, spaces_of
from latentpg.data import (
    DemonstrationRows,
    Demonstrations,
    Normalization,
    Split,
    check_policy,
    chunk_rows,
    encode_for_spaces,
    episode_rows,
    split_episodes,
)
from latentpg.errors import OptionError
from latentpg.imitation import Cloner, FitRows, PerDatum, executed_rows, span_rows, step_rows
from latentpg.numerics.devices import CPU
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import LatentPolicy
from latentpg.rollout import close_envs, make_envs
from latentpg.studies.workers import one_thread
from latentpg.training.policies import ChunkPart, EpisodePart, PolicyPart, build_policy

NATIVE = "latentpg/"
"""What ids of environments begin with that step all their members at once."""


@dataclass(frozen=True, eq=False)
class Prepared:
    """The configuration as the data completed it, the data and their parts, the rows, the policy and its learner.

    ``validation`` and ``test`` are rows to be measured on: of chunks the executed steps alone. ``split`` is in policy
    coordinates. ``envs`` is None where there is no environment to act in. Rows and policy are on ``device``, what was
    demonstrated and the environments on the processor.
    """

    config: CloningConfig
    spaces: tuple[spaces.Space[Any], spaces.Space[Any]]
    split: Split
    normalization: Normalization
    rows: FitRows
    validation: FitRows
    test: FitRows
    policy: LatentPolicy
    cloner: Cloner
    envs: VectorEnv[Any, Any, Any] | None
    device: torch.device = CPU

    @property
    def digest(self) -> str:
        """A digest of all demonstrations as they were split, by which a run knows its data again."""
        found = hashlib.sha256()
        for part in (self.split.train, self.split.validation, self.split.test):
            for values in (part.obs, part.action, part.episode):
                found.update(values.contiguous().numpy().tobytes())
        return found.hexdigest()


@contextmanager
def prepared(config: CloningConfig, *, device: torch.device = CPU) -> Iterator[Prepared]:
    """Build what a run needs, compute on one thread inside the scope, and close the environments at its end.

    Whatever is wrong with data and configuration shows here, before anything is written.
    """
    with one_thread():
        envs = open_envs(config)
        try:
            yield prepare(config, envs, device=device)
        finally:
            if envs is not None:
                close_envs(envs)


def open_envs(config: CloningConfig) -> VectorEnv[Any, Any, Any] | None:
    """Make the environments of a run, or none."""
    env = config.selection.env
    if env is None:
        return None
    mode = "native" if env.startswith(NATIVE) else "sync"
    return make_envs(env, config.run.num_envs, vectorization_mode=mode)


def prepare(config: CloningConfig, envs: VectorEnv[Any, Any, Any] | None, *, device: torch.device = CPU) -> Prepared:
    """Read, hold against the spaces, split, cut into rows, and build; initial parameters hang on the seed alone.

    Everything is built on the processor, so that they are the same on every device, and then moved.
    """
    run = config.run
    check_acting(config.policy, run.acting)
    data = config.selection.data
    demonstrations = demonstrations_of(data, number=run.num_demonstrations, seed=run.demonstration_seed)
    where: tuple[spaces.Space[Any], spaces.Space[Any]]
    if envs is None:
        where = spaces_of(demonstrations)
    else:
        where = envs.single_observation_space, envs.single_action_space
    split = split_episodes(encode_for_spaces(demonstrations, *where), seed=run.seed, fractions=run.split)
    config = completed(config, split)
    normalization = Normalization.of(split.train)
    with seeded(stream_seed(run.seed, "initial parameters")):
        policy = build_policy(config.policy, run, *where, encoder=normalization.encoder())
    rows, validation, test = (rows_of(config.policy, part) for part in (split.train, split.validation, split.test))
    cut = demonstration_rows(config.policy, split.train)
    check_policy(split.train, policy, rows=cut)
    if cut is not None and isinstance(config.policy, ChunkPart):
        dense = chunk_rows(
            split.train, horizon=config.policy.chunk_size, execute=config.policy.num_action_steps, stride=1
        )
        rows = span_rows(dense)
    _try_objective(config, policy, rows)
    with seeded(stream_seed(run.seed, "densities of rows")):
        per_datum = PerDatum(policy, rows) if run.per_datum else None
    rows, validation, test = (each.to(device) for each in (rows, validation, test))
    for module in (policy, per_datum):
        if isinstance(module, nn.Module):
            module.to(device)
    cloner = Cloner(
        policy,
        rows,
        objective=config.objective,
        options=config.fit,
        seed=stream_seed(run.seed, "fit"),
        validation=validation,
        per_datum=per_datum,
    )
    return Prepared(config, where, split, normalization, rows, validation, test, policy, cloner, envs, device)


def completed(config: CloningConfig, split: Split) -> CloningConfig:
    """Settle what hangs on the data: a prior that is matched to posteriors has a component for each training episode.

    A part that is measured by episodes needs two of them at least for an interval.
    """
    part = config.policy
    for name, each in (("validation", split.validation), ("test", split.test)):
        if name == "test" and each.num_episodes < 2:
            raise OptionError(
                "--split",
                "the test part has one episode, and no interval",
                expected="two episodes or more",
                got=f"{split.sizes[2]} of {sum(split.sizes)}",
                fix="more episodes, or a larger share: --split 0.6 0.2 0.2",
            )
    if config.fit.match_prior_every is None:
        return config
    if not isinstance(part, EpisodePart) or part.latent_kind != "gaussian" or part.prior != "mixture":
        raise OptionError(
            "latentpg imitate",
            "`match_prior_every` sets a mixture prior to the posteriors of whole episodes",
            expected="--policy episode --prior mixture",
            got=f"--policy {config.selection.policy}, {part}",
            fix="leave --match-prior-every out",
        )
    return config.but(num_prior_components=split.train.num_episodes)


def demonstration_rows(part: PolicyPart, demonstrations: Demonstrations) -> DemonstrationRows | None:
    """Cut demonstrations into what one latent stands for; None where that is a step."""
    match part:
        case ChunkPart():
            return chunk_rows(demonstrations, horizon=part.chunk_size, execute=part.num_action_steps)
        case EpisodePart():
            return episode_rows(demonstrations)
        case _:
            return None


def rows_of(part: PolicyPart, demonstrations: Demonstrations) -> FitRows:
    """Return the rows on which a likelihood is measured: every executed step in exactly one of them."""
    cut = demonstration_rows(part, demonstrations)
    return step_rows(demonstrations) if cut is None else executed_rows(cut)


def _try_objective(config: CloningConfig, policy: LatentPolicy, rows: FitRows) -> None:
    """Score two rows by the objective, which says what it cannot do with this policy."""
    some = rows.take(slice(0, 2))
    with seeded(0):
        config.objective.losses(policy, some.obs, some.action)
