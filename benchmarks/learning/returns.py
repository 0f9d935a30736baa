"""Returns on the field's environments: a latent policy with the option files that ship, beside Stable-Baselines3's PPO.

A cell trains one seed, every environment step counted, and then plays 100 episodes with stochastic actions by the last
parameters. Stable-Baselines3 has the options that rl-baselines3-zoo recommends for the environment (its numbers, typed
in below), but for the steps, which are ours.

Stable-Baselines3, MuJoCo and Box2D are extras of this benchmark: ``pip install -c constraints.txt -e '.[benchmark]'``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.learning.store import Results

EPISODES = 100
POINTS = 100
"""Episodes of the last evaluation, and points that are kept of a learning curve."""

SEEDS = (0, 1, 2, 3, 4)

OURS = {
    "CartPole-v1-ppo": ("CartPole-v1", "ppo"),
    "CartPole-v1-grpo": ("CartPole-v1", "grpo"),
    "Acrobot-v1-ppo": ("Acrobot-v1", "ppo"),
    "Pendulum-v1-ppo": ("Pendulum-v1", "ppo"),
    "LunarLander-v3-ppo": ("LunarLander-v3", "ppo"),
    "Hopper-v5-ppo": ("Hopper-v5", "ppo"),
    "HalfCheetah-v5-ppo": ("HalfCheetah-v5", "ppo"),
}
"""Environment and algorithm of each cell of ours; options are those of the shipped file."""

_WIDE = {"log_std_init": -2.0, "ortho_init": False, "activation_fn": "relu", "net_arch": [256, 256]}

PEER: Mapping[str, dict[str, Any]] = {
    "CartPole-v1": {
        "total_timesteps": 100_000,
        "num_envs": 8,
        "linear": ("learning_rate", "clip_range"),
        "options": {
            "n_steps": 32,
            "batch_size": 256,
            "gae_lambda": 0.8,
            "gamma": 0.98,
            "n_epochs": 20,
            "ent_coef": 0.0,
            "learning_rate": 0.001,
            "clip_range": 0.2,
        },
    },
    "Acrobot-v1": {
        "total_timesteps": 500_000,
        "num_envs": 16,
        "normalize": True,
        "options": {"n_steps": 256, "gae_lambda": 0.94, "gamma": 0.99, "n_epochs": 4, "ent_coef": 0.0},
    },
    "Pendulum-v1": {
        "total_timesteps": 200_000,
        "num_envs": 4,
        "options": {
            "n_steps": 1024,
            "gae_lambda": 0.95,
            "gamma": 0.9,
            "n_epochs": 10,
            "ent_coef": 0.0,
            "learning_rate": 0.001,
            "clip_range": 0.2,
            "use_sde": True,
            "sde_sample_freq": 4,
        },
    },
    "LunarLander-v3": {
        "total_timesteps": 1_000_000,
        "num_envs": 16,
        "options": {
            "n_steps": 1024,
            "batch_size": 64,
            "gae_lambda": 0.98,
            "gamma": 0.999,
            "n_epochs": 4,
            "ent_coef": 0.01,
        },
    },
    "Hopper-v5": {
        "total_timesteps": 1_000_000,
        "num_envs": 1,
        "normalize": True,
        "policy": _WIDE,
        "options": {
            "n_steps": 512,
            "batch_size": 32,
            "gamma": 0.999,
            "learning_rate": 9.80828e-05,
            "ent_coef": 0.00229519,
            "clip_range": 0.2,
            "n_epochs": 5,
            "gae_lambda": 0.99,
            "max_grad_norm": 0.7,
            "vf_coef": 0.835671,
        },
    },
    "HalfCheetah-v5": {
        "total_timesteps": 1_000_000,
        "num_envs": 1,
        "normalize": True,
        "policy": _WIDE,
        "options": {
            "n_steps": 512,
            "batch_size": 64,
            "gamma": 0.98,
            "learning_rate": 2.0633e-05,
            "ent_coef": 0.000401762,
            "clip_range": 0.1,
            "n_epochs": 20,
            "gae_lambda": 0.92,
            "max_grad_norm": 0.8,
            "vf_coef": 0.58096,
        },
    },
}
"""What rl-baselines3-zoo has for PPO on each environment (read in 2026); ``linear`` names what falls to zero."""

SHORT = ("Hopper-v5", "HalfCheetah-v5")
"""Environments of three seeds."""


def train_ours(env: str, algo: str, seed: int) -> dict[str, Any]:
    """Train by the shipped option file and evaluate the last parameters."""
    from latentpg.numerics.rng import stream_seed
    from latentpg.training import evaluate, prepared, resolve, tuned_options
    from latentpg.training.config import known_values

    config = resolve({**tuned_options(env, algo), "seed": seed})
    total, curve = config.run.total_timesteps, []
    with prepared(config) as built:
        learner = built.learner
        while learner.num_timesteps < total:
            told = learner.update(learner.num_timesteps / total)
            if "rollout/ep_rew_mean" in told:
                curve.append((learner.num_timesteps, told["rollout/ep_rew_mean"]))
        found = evaluate(
            built.evaluation_envs, built.policy, num_episodes=EPISODES, seed=stream_seed(seed, "last evaluation")
        )
        steps = learner.num_timesteps
    return _told("latentpg", known_values(config), steps, curve, found.returns.tolist())


def train_peer(env: str, seed: int) -> dict[str, Any]:
    """Train Stable-Baselines3's PPO by the zoo's options and evaluate the last parameters."""
    import numpy as np
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.evaluation import evaluate_policy
    from stable_baselines3.common.vec_env import VecNormalize

    setting = PEER[env]
    options = dict(setting["options"])
    for name in setting.get("linear", ()):
        options[name] = partial(_linear, options[name])
    policy = dict(setting.get("policy", {}))
    if "activation_fn" in policy:
        policy["activation_fn"] = {"relu": torch.nn.ReLU}[policy["activation_fn"]]
    envs = make_vec_env(env, n_envs=setting["num_envs"], seed=seed)
    if setting.get("normalize"):
        envs = VecNormalize(envs, gamma=options["gamma"])
    curve: list[tuple[int, float]] = []

    class Curve(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            if self.model.ep_info_buffer:
                curve.append((self.num_timesteps, float(np.mean([e["r"] for e in self.model.ep_info_buffer]))))

    model = PPO("MlpPolicy", envs, policy_kwargs=policy, device="cpu", seed=seed, **options)
    model.learn(setting["total_timesteps"], callback=Curve())
    evaluation = make_vec_env(env, n_envs=setting["num_envs"], seed=10_000 + seed)
    if setting.get("normalize"):
        evaluation = VecNormalize(evaluation, training=False, norm_reward=False)
        evaluation.obs_rms = envs.obs_rms
    returns, _ = evaluate_policy(
        model, evaluation, n_eval_episodes=EPISODES, deterministic=False, return_episode_rewards=True
    )
    told = {"policy_kwargs": setting.get("policy", {}), **{n: v for n, v in setting.items() if n != "policy"}}
    return _told("stable-baselines3", told, model.num_timesteps, curve, [float(each) for each in returns])


def _linear(start: float, remaining: float) -> float:
    return start * remaining


def _told(library: str, options: Mapping[str, Any], steps: int, curve: list, returns: list[float]) -> dict[str, Any]:
    every = max(1, len(curve) // POINTS)
    return {
        "library": library,
        "options": dict(options),
        "steps": steps,
        "returns": returns,
        "mean_return": sum(returns) / len(returns),
        "curve": [(step, round(value, 3)) for step, value in curve[::every]],
    }


CELLS: Mapping[str, Callable[[int], dict[str, Any]]] = {
    **{f"{name}-latent": partial(train_ours, *each) for name, each in OURS.items()},
    **{f"{env}-ppo-sb3": partial(train_peer, env) for env in PEER},
}

SEEDS_OF = {name: SEEDS[:3] for name in CELLS if name.startswith(SHORT)}

TARGETS = {
    "CartPole-v1-ppo-latent": 475.0,
    "CartPole-v1-grpo-latent": 475.0,
    "Acrobot-v1-ppo-latent": -90.0,
    "Pendulum-v1-ppo-latent": -200.0,
    "LunarLander-v3-ppo-latent": 200.0,
}
"""What a latent policy should reach; on MuJoCo the interval should reach Stable-Baselines3's."""


def table(found: Results) -> list[str]:
    """Give a line a cell: interquartile mean over seeds of each seed's mean return, its interval, and every seed."""
    lines = [
        "| environment | learner | steps | return | interval | target | | every seed |",
        "|---|---|--:|--:|--:|--:|---|---|",
    ]
    told = {name: _over_seeds(seeds) for name, seeds in found.items()}
    for name in sorted(told, key=lambda name: (list(PEER).index(_env(name)), _LEARNERS.index(_learner(name)))):
        value, low, high, every = told[name]
        target, verdict = _judge(name, told)
        steps = max(each["steps"] for each in found[name].values())
        seeds = ", ".join(f"{each:.0f}" for each in every)
        interval = f"{low:.1f} to {high:.1f}" if len(every) > 1 else "none: one seed"
        lines.append(
            f"| {_env(name)} | {_NAMES[_learner(name)]} | {steps:,} | {value:.1f} | {interval} | {target} "
            f"| {verdict} | {seeds} |"
        )
    return lines


def draw(found: Results, folder: Path) -> list[Path]:
    """Draw learning curves, an environment a panel: mean over seeds of returns while acting, and every seed."""
    import matplotlib.pyplot as plt
    import numpy as np

    environments = [env for env in PEER if any(_env(name) == env for name in found)]
    with plt.rc_context(
        {"font.size": 8, "svg.hashsalt": "latentpg", "axes.spines.top": False, "axes.spines.right": False}
    ):
        columns = 2 if len(environments) == 4 else min(3, len(environments))
        rows = -(-len(environments) // columns)
        figure, axes = plt.subplots(
            rows, columns, figsize=(2.5 * columns, 2.0 * rows), squeeze=False, layout="constrained"
        )
        for axis in axes.flat[len(environments) :]:
            axis.remove()
        for axis, env in zip(axes.flat, environments, strict=False):
            for learner in _LEARNERS:
                seeds = next((found[n] for n in found if _env(n) == env and _learner(n) == learner), {})
                colour = _COLOURS[learner]
                curves = [np.array(each["curve"], dtype=float).T for each in seeds.values()]
                for steps, values in curves:
                    axis.plot(steps / 1000, values, color=colour, alpha=0.25, linewidth=0.6)
                if curves:
                    grid = np.linspace(max(c[0][0] for c in curves), min(c[0][-1] for c in curves), 200)
                    mean = np.mean([np.interp(grid, *curve) for curve in curves], 0)
                    axis.plot(grid / 1000, mean, color=colour, linewidth=1.4, label=_NAMES[learner])
            axis.set_title(env, fontsize=8)
            axis.set_xlabel("environment steps / 1000")
        for axis in axes[:, 0]:
            axis.set_ylabel("return while acting")
        handles = {
            text: line for axis in figure.axes for line, text in zip(*axis.get_legend_handles_labels(), strict=True)
        }
        figure.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=len(handles), frameon=False)
        paths = [folder / f"learning-returns.{kind}" for kind in ("svg", "png")]
        for path in paths:
            figure.savefig(path, dpi=160, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)
    return paths


_LEARNERS = ("ppo-latent", "grpo-latent", "ppo-sb3")
_NAMES = {
    "ppo-latent": "PPO, latent, K = 8",
    "grpo-latent": "GRPO, latent, K = 8",
    "ppo-sb3": "PPO of Stable-Baselines3",
}
_COLOURS = {"ppo-latent": "#0072B2", "grpo-latent": "#009E73", "ppo-sb3": "#D55E00"}


def _env(name: str) -> str:
    return next(env for env in PEER if name.startswith(env))


def _learner(name: str) -> str:
    return name.removeprefix(f"{_env(name)}-")


def _over_seeds(seeds: Mapping[int, dict[str, Any]]) -> tuple[float, float, float, list[float]]:
    import numpy as np

    from latentpg.training.curves import bootstrap_interval, interquartile_mean

    every = [each["mean_return"] for _, each in sorted(seeds.items())]
    low, high = bootstrap_interval(np.array(every))
    return float(interquartile_mean(np.array(every))), float(low), float(high), every


def _judge(name: str, told: Mapping[str, tuple[float, float, float, list[float]]]) -> tuple[str, str]:
    """Say what was aimed at, and whether it came."""
    value, _, high, _ = told[name]
    if name in TARGETS:
        return f"≥ {TARGETS[name]:.0f}", "met" if value >= TARGETS[name] else "MISSED"
    peer = told.get(f"{_env(name)}-ppo-sb3")
    if _learner(name) == "ppo-sb3" or peer is None:
        return "", ""
    if math.isnan(high):
        return f"interval reaches {peer[0]:.0f}", "one seed: open"
    return f"interval reaches {peer[0]:.0f}", "met" if high >= peer[0] else "MISSED"
