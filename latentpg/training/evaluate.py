"""How good a policy is: the mean return over whole episodes, and how surely it is known.

A latent policy has no mode, so there are two ways to act, by name: ``"stochastic"`` is the policy itself, and
``"decoder-mean"`` draws z from the prior and then takes the decoder's mean (the likeliest value of what is discrete) at
that z. Seeds are the evaluation's own; what is learnt from is never what is measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from gymnasium.vector import VectorEnv
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution

from latentpg.envs.known_modes import KnownModes
from latentpg.errors import OptionError, SpaceError, did_you_mean
from latentpg.evaluation import mode_entropy, wilson_interval
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.statistics import Interval, mean_interval
from latentpg.programs import Acted, LatentPolicy, act, conditionals, log_joint
from latentpg.programs.capture import ACTION
from latentpg.programs.distributions import DiagNormal, MultiBernoulli, MultiCategorical
from latentpg.rollout import Acting, collect_episodes


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Undiscounted returns and lengths of E whole episodes, and how they were acted.

    Where the environment has known modes (:data:`~latentpg.envs.known_modes.KNOWN_MODES`), ``success`` is the share of
    episodes with a return above zero, and ``mode_entropy`` that of the modes among those, as a share of log M.
    """

    returns: Float[Tensor, " E"]
    lengths: Int[Tensor, " E"]
    acting: str
    success: Interval | None = None
    mode_entropy: Interval | None = None

    @property
    def mean(self) -> Interval:
        """The mean return, with Student's interval."""
        return mean_interval(self.returns)

    def metrics(self) -> dict[str, float]:
        """Return the numbers by the names that a log has for them."""
        mean = self.mean
        found = {"success": self.success, "mode_entropy": self.mode_entropy}
        modes = {
            f"eval/{name}{end}": getattr(each, part)
            for name, each in found.items()
            if each is not None and not math.isnan(each.value)
            for end, part in (("", "value"), ("_low", "low"), ("_high", "high"))
        }
        return {
            **modes,
            "eval/mean_reward": mean.value,
            "eval/mean_reward_low": mean.low,
            "eval/mean_reward_high": mean.high,
            "eval/mean_ep_length": float(self.lengths.double().mean()),
            "eval/episodes": float(len(self.returns)),
        }


def act_by_decoder_mean(policy: LatentPolicy, obs: Tensor) -> Acted:
    """Draw z from the prior and take the decoder's mean at it; ``log_joint`` is that of the action taken."""
    drawn = act(policy, obs)
    latents = {name: value.unsqueeze(0) for name, value in drawn.latents.items()}
    with torch.no_grad():
        if latents:
            action = center_of(conditionals(policy, obs, latents)[ACTION])[0]
            return Acted(action, drawn.latents, log_joint(policy, obs, action, latents)[0])
        distribution = getattr(policy, "distribution", None)
        if distribution is None:
            raise OptionError(
                "act_by_decoder_mean()",
                "the policy has no latent, and no distribution of its own to take the mean of",
                expected="a latent site, or a method distribution(obs)",
                got=type(policy).__name__,
                fix='acting "stochastic"',
            )
        met = distribution(obs)
        action = center_of(met)
        return Acted(action, {}, met.log_prob(action))


ACTING: Mapping[str, Acting] = {"stochastic": act, "decoder-mean": act_by_decoder_mean}
"""How episodes can be acted, by name."""


def center_of(distribution: Distribution) -> Tensor:
    """Return the mean of a Gaussian, the likeliest value of what is discrete.

    >>> from latentpg.programs.distributions import Categorical
    >>> center_of(Categorical(torch.tensor([[0.0, 2.0, 1.0]]))).tolist()
    [1]
    """
    match distribution:
        case DiagNormal():
            return distribution.mean
        case torch.distributions.Categorical():
            return distribution.logits.argmax(-1)
        case MultiCategorical():
            parts = distribution.logits.split(list(distribution.sizes), -1)
            return torch.stack([part.argmax(-1) for part in parts], -1)
        case MultiBernoulli():
            return (distribution.logits > 0).to(distribution.logits.dtype)
        case _:
            raise SpaceError(
                "act_by_decoder_mean()",
                "no mean is known of the action's distribution",
                expected="DiagNormal, Categorical, MultiCategorical or MultiBernoulli",
                got=type(distribution).__name__,
                fix='acting "stochastic"',
            )


def evaluate(
    envs: VectorEnv[Any, Any, Any],
    policy: LatentPolicy,
    *,
    num_episodes: int,
    seed: int,
    acting: str = "stochastic",
    latent: str = "step",
    execute: int | None = None,
    modes: KnownModes | None = None,
) -> Evaluation:
    """Play whole episodes, each with a seed of its own, and return what they gave.

    ``seed`` fixes environments and policy alike; the ambient random stream is left as it was. With
    ``latent="episode"`` the latent is held for an episode, with ``latent="chunk"`` for a chunk of actions, of which
    ``execute`` are carried out. With ``modes`` it is counted how many ways of succeeding were taken.

    >>> from latentpg.policies import PlainPolicy
    >>> from latentpg.rollout import make_envs
    >>> envs = make_envs("CartPole-v1", 2)
    >>> policy = PlainPolicy(envs.single_observation_space, envs.single_action_space)
    >>> evaluate(envs, policy, num_episodes=5, seed=0).returns.shape
    torch.Size([5])
    """
    if acting not in ACTING:
        raise OptionError(
            "evaluate()",
            "`acting`",
            expected=" or ".join(ACTING),
            got=repr(acting),
            fix=did_you_mean(acting, ACTING),
        )
    if latent != "step" and acting != "stochastic":
        raise OptionError(
            "evaluate()",
            f"a latent that is held for {'an episode' if latent == 'episode' else 'a chunk'} is evaluated as it acts",
            expected='acting "stochastic"',
            got=f'"{acting}" with latent "{latent}"',
        )
    with seeded(stream_seed(seed, "actions")):
        episodes = collect_episodes(
            envs,
            policy,
            num_episodes=num_episodes,
            seed=stream_seed(seed, "episodes"),
            latent=latent,
            execute=execute,
            acting=ACTING[acting],
        )
        if modes is None:
            return Evaluation(episodes.returns, episodes.lengths, acting)
        succeeded = episodes.returns > 0
        seen = episodes.transitions.obs.cpu().numpy()
        mode = torch.from_numpy(modes.of_episodes(seen, episodes.lengths.cpu().numpy()))
        entropy = mode_entropy(mode, succeeded, num_modes=modes.num_modes)
    success = wilson_interval(int(succeeded.sum()), len(succeeded))
    return Evaluation(episodes.returns, episodes.lengths, acting, success, entropy)
