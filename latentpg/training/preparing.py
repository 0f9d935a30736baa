"""What a run needs, built and checked before anything is written, and closed when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from latentpg.errors import OptionError
from latentpg.rollout.environments import resets_are_ours
from latentpg.studies.workers import one_thread
from latentpg.training.build import Built, build
from latentpg.training.config import TrainingConfig
from latentpg.training.place import HERE, Place
from latentpg.training.policies import ChunkPart
from latentpg.training.spans import span_in
from latentpg.training.starting import tensors_of
from latentpg.training.video import check_films


@contextmanager
def prepared(config: TrainingConfig, *, begins: bool = False, place: Place = HERE) -> Iterator[Built]:
    """Build what a run needs, compute on one thread inside the scope, and close the environments at its end.

    A run that ``begins`` takes its policy from where it is to come from; one that goes on has it in its checkpoint.
    Whatever is wrong with a configuration shows here, before anything is written.
    """
    _check_latent(config)
    with one_thread():
        built = build(config, tensors=tensors_of(config.source) if begins else None, place=place)
        try:
            _check_resets(built)
            if config.run.video_every is not None:
                check_films(config.selection.env)
            yield built
        finally:
            built.close()


def latent_of(config: TrainingConfig) -> str:
    """Tell whether the algorithm has latents drawn per step or held for an episode, which evaluations then do too."""
    return span_in(config.algorithm)


def execute_of(config: TrainingConfig) -> int | None:
    """Return how many actions of a chunk are carried out; None where there are no chunks."""
    return config.policy.num_action_steps if isinstance(config.policy, ChunkPart) else None


def _check_resets(built: Built) -> None:
    if resets_are_ours(built.envs):
        return
    raise OptionError(
        "training",
        "the environment's vectorised class resets its members itself, so no checkpoint could say where they stand",
        expected='--vectorization-mode "sync" or "async"',
        got=f'"native", with autoreset_mode={built.envs.metadata.get("autoreset_mode")}',
        fix="--vectorization-mode sync; a loop of your own may step them (StepCollector)",
    )


def _check_latent(config: TrainingConfig) -> None:
    latent = latent_of(config)
    if latent != "step" and config.run.eval_acting != "stochastic":
        raise OptionError(
            "training",
            f"a latent that is held for {'an episode' if latent == 'episode' else 'a chunk'} is evaluated as it acts",
            expected='eval_acting "stochastic"',
            got=f'"{config.run.eval_acting}" with latent "{latent}"',
        )
