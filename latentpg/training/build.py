"""From a configuration to environments, policy, agent and learner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from latentpg.learners import Agent, Learner
from latentpg.learners.agent import under
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies import observation_size
from latentpg.programs import LatentPolicy
from latentpg.rollout import ObservationNormalizer, close_envs, make_envs
from latentpg.training.algorithms import ALGORITHMS, Pieces
from latentpg.training.config import TrainingConfig
from latentpg.training.facts import held_to_its_learner
from latentpg.training.place import HERE, Place, members_of
from latentpg.training.policies import ACTIVATIONS, ChunkPart, build_policy
from latentpg.training.starting import begin_with
from latentpg.values import NetworkCritic


@dataclass(frozen=True, eq=False)
class Built:
    """The environments that are learnt from, those that are evaluated in, the policy, and the learner."""

    envs: VectorEnv[Any, Any, Any]
    evaluation_envs: VectorEnv[Any, Any, Any]
    policy: LatentPolicy
    learner: Learner
    place: Place = HERE

    def restore_policy(self, state: Mapping[str, Tensor]) -> None:
        """Take the policy alone from a learner's state: environments stay at their start."""
        assert isinstance(self.policy, nn.Module)
        with held_to_its_learner():
            self.policy.load_state_dict(under("agent.policy", state))

    def close(self) -> None:
        """Close both sets of environments."""
        close_envs(self.envs)
        close_envs(self.evaluation_envs)


def build(config: TrainingConfig, *, tensors: Mapping[str, Tensor] | None = None, place: Place = HERE) -> Built:
    """Build everything that a run needs; initial parameters hang on the seed alone, or are ``tensors`` of the policy.

    What a configuration with a source normalises observations by never moves. Of several workers each has its share of
    the environments, and all of the rest.

    >>> from latentpg.training.config import resolve
    >>> built = build(resolve({"env": "CartPole-v1", "num_envs": 2, "num_steps": 4}))
    >>> built.learner.num_timesteps
    0
    >>> built.close()
    """
    run = config.run
    mode, timeout = run.vectorization_mode, run.worker_timeout
    members = members_of(place, run.num_envs)
    envs = make_envs(config.selection.env, members, vectorization_mode=mode, timeout=timeout)
    try:
        # one after the other: an evaluation is short, and every environment can be stepped so
        members = min(run.num_envs, run.eval_episodes)
        if mode == "native":
            evaluation_envs = make_envs(config.selection.env, members, vectorization_mode=mode)
        else:
            evaluation_envs = make_envs(config.selection.env, members)
        size = observation_size(envs.single_observation_space)
        normalizer = ObservationNormalizer(size) if run.normalize_observations else None
        with seeded(stream_seed(run.seed, "initial parameters")):
            policy = make_policy(config, envs, normalizer)
            if tensors is not None and config.source is not None:
                begin_with(policy, tensors, config.source)
            assert isinstance(policy, nn.Module)
            policy.to(place.device)
            estimator, objective = config.estimator, config.objective
            agent = Agent(policy, estimator=estimator, objective=objective, options=config.agent, group=place.group)

            def make_critic() -> nn.Module:
                critic = NetworkCritic(
                    size,
                    hidden=run.hidden,
                    activation=ACTIVATIONS[run.activation],
                    init="orthogonal" if run.orthogonal_init else "torch",
                )
                return (critic if normalizer is None else nn.Sequential(normalizer, critic)).to(place.device)

            moved = normalizer if config.source is None else None
            execute = config.policy.num_action_steps if isinstance(config.policy, ChunkPart) else None
            pieces = Pieces(envs, agent, make_critic, config.algorithm, run.seed, moved, execute)
            learner = ALGORITHMS[config.selection.algo].build(pieces)
    except BaseException:
        close_envs(envs)
        raise
    return Built(envs, evaluation_envs, policy, learner, place)


def make_policy(
    config: TrainingConfig, envs: VectorEnv[Any, Any, Any], normalizer: ObservationNormalizer | None
) -> LatentPolicy:
    """Build the policy from the ambient random stream."""
    spaces = envs.single_observation_space, envs.single_action_space
    return build_policy(config.policy, config.run, *spaces, encoder=normalizer)
