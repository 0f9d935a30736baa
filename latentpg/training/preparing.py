"""What a run needs, built and checked before anything is written, and closed when it is over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from latentpg.errors import OptionError
from latentpg.rollout.environments import resets_are_ours
from latentpg.studies.workers import one_thread
from latentpg.training.build import Built, build
from latentpg.training.config import TrainingConfig
from latentpg.training.video import check_films


@contextmanager
def prepared(config: TrainingConfig) -> Iterator[Built]:
    """Build what a run needs, compute on one thread inside the scope, and close the environments at its end.

    Whatever is wrong with a configuration shows here, before anything is written.
    """
    _check_latent(config)
    with one_thread():
        built = build(config)
        try:
            _check_resets(built)
            if config.run.video_every is not None:
                check_films(config.selection.env)
            yield built
        finally:
            built.close()


def latent_of(config: TrainingConfig) -> str:
    """Tell whether the algorithm has latents drawn per step or held for an episode, which evaluations then do too."""
    return str(getattr(config.algorithm, "latent", "step"))


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
    if latent_of(config) == "episode" and config.run.eval_acting != "stochastic":
        raise OptionError(
            "training",
            "a latent that is held for an episode is evaluated as it acts",
            expected='eval_acting "stochastic"',
            got=f'"{config.run.eval_acting}" with latent "episode"',
        )
