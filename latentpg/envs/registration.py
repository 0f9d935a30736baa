"""Names of the environments. Registering imports none of them: Gymnasium is told where each one is to be found."""

from __future__ import annotations

from gymnasium.envs.registration import register, registry

_HOMES = {
    "latentpg/MultiGoal-v0": ("multi_goal", 20),
    "latentpg/MixingGoals-v0": ("mixing_goals", 32),
    "latentpg/Corridor-v0": ("corridor", 30),
    "latentpg/PeaksBandit-v0": ("peaks_bandit", 1),
    "latentpg/ArmsBandit-v0": ("arms_bandit", 1),
    "latentpg/Avoiding-v0": ("avoiding", 250),
    "latentpg/Routes-v0": ("routes", 60),
}

ENV_IDS: tuple[str, ...] = tuple(_HOMES)
"""What :func:`gymnasium.make` knows after ``import latentpg.envs``."""


def register_envs() -> None:
    """Register every environment of this package with Gymnasium; those it knows already are left as they are."""
    for env_id, (module, limit) in _HOMES.items():
        if env_id not in registry:
            register(
                env_id,
                entry_point=f"latentpg.envs.{module}:make_env",
                vector_entry_point=f"latentpg.envs.{module}:make_vector_env",
                max_episode_steps=limit,
            )
