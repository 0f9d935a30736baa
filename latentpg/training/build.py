"""From a configuration to environments, policy, agent and learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from gymnasium.vector import VectorEnv
from torch import Tensor, nn

from latentpg.learners import Agent, Learner
from latentpg.learners.agent import under
from latentpg.numerics.activations import Tanh
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.policies import GaussianPolicy, MixturePolicy, PlainPolicy, TwoLevelPolicy, observation_size
from latentpg.policies.heads import BoxHead
from latentpg.programs import LatentPolicy
from latentpg.rollout import ObservationNormalizer, close_envs, make_envs
from latentpg.training.algorithms import ALGORITHMS, Pieces
from latentpg.training.config import TrainingConfig
from latentpg.values import NetworkCritic
from latentpg.values.critics import orthogonal_

POLICIES: Mapping[str, Callable[..., Any]] = {
    "mixture": MixturePolicy,
    "gaussian": GaussianPolicy,
    "two-level": TwoLevelPolicy,
    "plain": PlainPolicy,
}
"""Every policy that a configuration can name."""

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {"tanh": Tanh, "relu": nn.ReLU, "silu": nn.SiLU}
"""Every activation that a configuration can name."""


@dataclass(frozen=True, eq=False)
class Built:
    """The environments that are learnt from, those that are evaluated in, the policy, and the learner."""

    envs: VectorEnv[Any, Any, Any]
    evaluation_envs: VectorEnv[Any, Any, Any]
    policy: LatentPolicy
    learner: Learner

    def restore_policy(self, state: Mapping[str, Tensor]) -> None:
        """Take the policy alone from a learner's state: environments stay at their start."""
        assert isinstance(self.policy, nn.Module)
        self.policy.load_state_dict(under("agent.policy", state))

    def close(self) -> None:
        """Close both sets of environments."""
        close_envs(self.envs)
        close_envs(self.evaluation_envs)


def build(config: TrainingConfig) -> Built:
    """Build everything that a run needs; initial parameters hang on the seed alone.

    >>> from latentpg.training.config import resolve
    >>> built = build(resolve({"env": "CartPole-v1", "num_envs": 2, "num_steps": 4}))
    >>> built.learner.num_timesteps
    0
    >>> built.close()
    """
    run = config.run
    envs = make_envs(config.selection.env, run.num_envs, vectorization_mode=run.vectorization_mode)
    try:
        # one after the other: an evaluation is short, and every environment can be stepped so
        evaluation_envs = make_envs(config.selection.env, min(run.num_envs, run.eval_episodes))
        size = observation_size(envs.single_observation_space)
        normalizer = ObservationNormalizer(size) if run.normalize_observations else None
        with seeded(stream_seed(run.seed, "initial parameters")):
            policy = make_policy(config, envs, normalizer)
            agent = Agent(policy, estimator=config.estimator, objective=config.objective, options=config.agent)

            def make_critic() -> nn.Module:
                critic = NetworkCritic(
                    size,
                    hidden=run.hidden,
                    activation=ACTIVATIONS[run.activation],
                    init="orthogonal" if run.orthogonal_init else "torch",
                )
                return critic if normalizer is None else nn.Sequential(normalizer, critic)

            pieces = Pieces(envs, agent, make_critic, config.algorithm, run.seed, normalizer)
            learner = ALGORITHMS[config.selection.algo].build(pieces)
    except BaseException:
        close_envs(envs)
        raise
    return Built(envs, evaluation_envs, policy, learner)


def make_policy(
    config: TrainingConfig, envs: VectorEnv[Any, Any, Any], normalizer: ObservationNormalizer | None
) -> LatentPolicy:
    """Build the policy from the ambient random stream."""
    policy = POLICIES[config.selection.policy](
        envs.single_observation_space,
        envs.single_action_space,
        hidden=config.run.hidden,
        activation=ACTIVATIONS[config.run.activation],
        encoder=normalizer,
        **asdict(config.policy),
    )
    for part in policy.modules():
        if isinstance(part, BoxHead):
            nn.init.constant_(part.log_std, float(config.run.initial_log_std))
    if config.run.orthogonal_init:
        for network in _networks_of(policy):
            orthogonal_(network, output_gain=config.run.output_gain)
    return policy


def _networks_of(policy: nn.Module) -> list[nn.Module]:
    """List what pi is made of: prior and decoder, or the plain policy's one network."""
    named = dict(policy.named_modules())
    return [named[name] for name in ("prior", "decoder.network", "network") if name in named]
