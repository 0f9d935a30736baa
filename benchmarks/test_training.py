"""Claim: environment steps a second of PPO beside Stable-Baselines3's, at equal networks, minibatches, epochs, options.

At least 1.3 times as many with a plain policy, at least half as many with a latent one at K = 8. One thread, eight
environments one after the other, acting and learning together; each call is an iteration of one of the learners, and
figures are medians of ratios paired within a round. Skipped where Stable-Baselines3 (and MuJoCo, for HalfCheetah) is
not installed: ``pip install -c constraints.txt -e '.[benchmark]'``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium
import pytest

from benchmarks.measure import Row, compare
from latentpg.estimators import ClosedForm, Compiled, ConditionalIS, Estimator, Exact, Guide, Prior
from latentpg.estimators.guides import ConditionalWake
from latentpg.learners import PPO, Agent, AgentOptions, PPOOptions
from latentpg.policies import GaussianPolicy, MixturePolicy, PlainPolicy, observation_size
from latentpg.rollout import make_envs
from latentpg.values import NetworkCritic

NUM_ENVS, NUM_PARTICLES, HIDDEN = 8, 8, (64, 64)
PLAIN, LATENT = 1.3, 0.5


@dataclass(frozen=True)
class Setting:
    env: str
    num_steps: int
    num_epochs: int
    batch_size: int
    rounds: int


SETTINGS = (
    Setting("CartPole-v1", num_steps=32, num_epochs=20, batch_size=256, rounds=60),
    Setting("HalfCheetah-v5", num_steps=256, num_epochs=10, batch_size=64, rounds=12),
)
"""Those of rl-baselines3-zoo for CartPole; Stable-Baselines3's defaults, over eight environments, for HalfCheetah."""

GAMMA, LAMBDA, RATE = 0.98, 0.95, 3e-4


def peer(setting: Setting) -> Callable[[], Any]:
    sb3 = pytest.importorskip("stable_baselines3")
    envs = sb3.common.env_util.make_vec_env(setting.env, n_envs=NUM_ENVS, seed=0)
    model = sb3.PPO(
        "MlpPolicy",
        envs,
        n_steps=setting.num_steps,
        batch_size=setting.batch_size,
        n_epochs=setting.num_epochs,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        learning_rate=RATE,
        policy_kwargs={"net_arch": list(HIDDEN)},
        device="cpu",
        seed=0,
    )
    rows = setting.num_steps * NUM_ENVS
    return lambda: model.learn(rows, reset_num_timesteps=False)


def ours(setting: Setting, policy: type, estimator: Estimator, *, taught: bool = False) -> Callable[[], Any]:
    envs = make_envs(setting.env, NUM_ENVS)
    built = policy(envs.single_observation_space, envs.single_action_space, hidden=HIDDEN)
    options = AgentOptions(learning_rate=RATE, batch_size=setting.batch_size)
    agent = Agent(built, estimator=estimator, objective=ConditionalWake() if taught else None, options=options)
    numbers = PPOOptions(
        num_steps=setting.num_steps,
        num_epochs=setting.num_epochs,
        gamma=GAMMA,
        gae_lambda=LAMBDA,
        value_learning_rate=RATE,
    )
    critic = NetworkCritic(observation_size(envs.single_observation_space), hidden=HIDDEN)
    return PPO(envs, agent, critic, options=numbers, seed=0).update


@pytest.mark.parametrize("setting", SETTINGS, ids=lambda setting: setting.env)
def test_training(setting: Setting, benchmark: Any, record: Callable[[Row], None]) -> None:  # noqa: ANN401 (a fixture)
    try:
        gymnasium.make(setting.env).close()
    except gymnasium.error.DependencyNotInstalled as missing:
        pytest.skip(str(missing))
    sides = {
        "Stable-Baselines3": peer(setting),
        "plain policy": ours(setting, PlainPolicy, ClosedForm()),
        "mixture of 4, conditional-IS, K = 8, from the prior": ours(
            setting, MixturePolicy, ConditionalIS(NUM_PARTICLES, Prior())
        ),
        "the same, from a taught guide": ours(
            setting, MixturePolicy, ConditionalIS(NUM_PARTICLES, Guide()), taught=True
        ),
        "Gaussian latent, conditional-IS, K = 8, from the prior": ours(
            setting, GaussianPolicy, ConditionalIS(NUM_PARTICLES, Prior())
        ),
        "mixture of 4, exact": ours(setting, MixturePolicy, Exact()),
        "mixture of 4, conditional-IS, compiled": ours(
            setting, MixturePolicy, Compiled(ConditionalIS(NUM_PARTICLES, Prior()))
        ),
        "Gaussian latent, conditional-IS, compiled": ours(
            setting, GaussianPolicy, Compiled(ConditionalIS(NUM_PARTICLES, Prior()))
        ),
    }
    result = compare(sides, baseline="Stable-Baselines3", rounds=setting.rounds)
    for name in list(sides)[1:]:
        figure = 1 / result.ratio[name]
        target = PLAIN if name == "plain policy" else LATENT if "K = 8" in name or "taught" in name else None
        record(
            Row(
                f"{setting.env}: {name}",
                "-" if target is None else f">= {target}",
                figure,
                "x SB3",
                None if target is None else figure >= target,
                {"comparison": result, "setting": setting},
            )
        )
    benchmark.pedantic(sides["plain policy"], rounds=2, warmup_rounds=1)
