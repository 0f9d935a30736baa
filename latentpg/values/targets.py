r"""What a critic is fitted to: targets ``[T, N]`` computed from recorded steps and, mostly, from the critic itself.

Each target is a choice, a frozen dataclass that is called with a critic and an :class:`Experience`; the formulas are
those of :mod:`latentpg.numerics.targets`. Values that the critic gives for a target are constants: no gradient runs
through them.

The two ways in which an episode ends are told apart. A ``terminated`` step has no future, and its target is the reward
alone. A ``truncated`` one, and the last of the recorded steps, has a future that was not recorded: there the sum of
rewards is cut, and the critic's value of the *true* next observation stands for the rest.

====================  =======================================================  =======================================
target                formula                                                  wrong while the critic is wrong
====================  =======================================================  =======================================
:class:`MonteCarlo`   all rewards up to the episode's end                      only where the sum is cut
:class:`TD0`          :math:`r_t + \gamma V(s_{t+1})`                           by γ times the critic's error
:class:`NStep`        n rewards, then :math:`\gamma^n V(s_{t+n})`               by :math:`\gamma^n` times it
:class:`TDLambda`     n-step ones, weights :math:`(1-\lambda)\lambda^{n-1}`     less as λ grows
====================  =======================================================  =======================================

Source: R. S. Sutton and A. G. Barto, "Reinforcement learning: an introduction", 2nd edition 2018, chapters 6, 7 and 12;
on truncation, F. Pardo et al., "Time limits in reinforcement learning", 2018.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.numerics._checks import fraction
from latentpg.numerics.targets import monte_carlo_target, n_step_target, td0_target, td_lambda_target
from latentpg.policies.common import check_sizes
from latentpg.values.critics import Critic


@dataclass(frozen=True)
class Experience:
    """T recorded steps of N environments: what a critic learns from.

    ``next_obs`` is the true next observation of every step, at the end of an episode too; several episodes may follow
    each other in a column.
    """

    obs: Float[Tensor, "T N S"]
    reward: Float[Tensor, "T N"]
    next_obs: Float[Tensor, "T N S"]
    terminated: Bool[Tensor, "T N"]
    truncated: Bool[Tensor, "T N"]

    def __post_init__(self) -> None:
        """Refuse parts of different steps, and rewards that are not finite."""
        if self.obs.ndim != 3 or 0 in self.obs.shape:
            raise ShapeError("Experience()", "`obs`", expected="[T, N, S]", got=str(list(self.obs.shape)))
        for name in ("reward", "next_obs", "terminated", "truncated"):
            part = getattr(self, name)
            expected = self.obs.shape if name == "next_obs" else self.obs.shape[:2]
            if part.shape != expected:
                raise ShapeError(
                    "Experience()",
                    f"`{name}`",
                    expected=f"{list(expected)}, the steps of `obs`",
                    got=str(list(part.shape)),
                )
            if name in ("terminated", "truncated") and part.dtype != torch.bool:
                raise ShapeError("Experience()", f"`{name}` is not a mask", expected="torch.bool", got=str(part.dtype))
        if not self.reward.isfinite().all():
            step, member = (~self.reward.isfinite()).nonzero()[0].tolist()
            raise OptionError(
                "Experience()",
                "`reward` holds NaN or infinity",
                expected="finite rewards",
                got=f"{self.reward[step, member].item()} at step {step} of environment {member}",
            )

    @property
    def done(self) -> Bool[Tensor, "T N"]:
        """Whether the episode ended with this step, for either reason."""
        return self.terminated | self.truncated


@runtime_checkable
class Target(Protocol):
    """What a critic is to say of each recorded step; a constant, without a gradient."""

    def __call__(self, critic: Critic, experience: Experience) -> Float[Tensor, "T N"]:
        """Compute the targets."""


@dataclass(frozen=True)
class MonteCarlo:
    """All discounted rewards up to the episode's end; where it was only cut, the critic stands for the rest.

    For the returns of the *time-limited* task pass the time limit as ``terminated``; the critic is then never asked.

    >>> from latentpg.values import Identity, LinearCritic
    >>> one = torch.ones(3, 1)
    >>> end = torch.tensor([[False], [False], [True]])
    >>> episode = Experience(one[..., None], one, one[..., None], terminated=end, truncated=torch.zeros_like(end))
    >>> MonteCarlo(discount=0.5)(LinearCritic(Identity(1)), episode).flatten().tolist()
    [1.75, 1.5, 1.0]
    """

    discount: float | int

    def __post_init__(self) -> None:
        """Refuse a discount outside [0, 1]."""
        fraction("MonteCarlo()", "discount", self.discount)

    def __call__(self, critic: Critic, experience: Experience) -> Float[Tensor, "T N"]:
        """Compute the returns."""
        return monte_carlo_target(
            experience.reward,
            state_values(critic, experience.next_obs),
            experience.terminated,
            experience.truncated,
            discount=self.discount,
        )


@dataclass(frozen=True)
class TD0:
    """One reward, then the critic.

    >>> TD0(discount=0.9)
    TD0(discount=0.9)
    """

    discount: float | int

    def __post_init__(self) -> None:
        """Refuse a discount outside [0, 1]."""
        fraction("TD0()", "discount", self.discount)

    def __call__(self, critic: Critic, experience: Experience) -> Float[Tensor, "T N"]:
        """Compute the targets."""
        following = state_values(critic, experience.next_obs)
        return td0_target(experience.reward, following, experience.terminated, discount=self.discount)


@dataclass(frozen=True)
class NStep:
    """``num_steps`` rewards, fewer where the episode or the record ends first, then the critic.

    >>> NStep(discount=0.9, num_steps=5)
    NStep(discount=0.9, num_steps=5)
    """

    discount: float | int
    num_steps: int

    def __post_init__(self) -> None:
        """Refuse a discount outside [0, 1] and less than one step."""
        fraction("NStep()", "discount", self.discount)
        check_sizes("NStep()", num_steps=self.num_steps)

    def __call__(self, critic: Critic, experience: Experience) -> Float[Tensor, "T N"]:
        """Compute the targets."""
        return n_step_target(
            experience.reward,
            state_values(critic, experience.next_obs),
            experience.terminated,
            experience.truncated,
            discount=self.discount,
            num_steps=self.num_steps,
        )


@dataclass(frozen=True)
class TDLambda:
    r"""The mixture of all n-step targets with weights :math:`(1-\lambda)\lambda^{n-1}`; ``trace_decay`` is λ.

    0 is :class:`TD0`, 1 is :class:`MonteCarlo`.

    >>> TDLambda(discount=0.99, trace_decay=0.95)
    TDLambda(discount=0.99, trace_decay=0.95)
    """

    discount: float | int
    trace_decay: float | int

    def __post_init__(self) -> None:
        """Refuse numbers outside [0, 1]."""
        fraction("TDLambda()", "discount", self.discount)
        fraction("TDLambda()", "trace_decay", self.trace_decay)

    def __call__(self, critic: Critic, experience: Experience) -> Float[Tensor, "T N"]:
        """Compute the λ-returns."""
        return td_lambda_target(
            experience.reward,
            state_values(critic, experience.next_obs),
            experience.terminated,
            experience.truncated,
            discount=self.discount,
            trace_decay=self.trace_decay,
        )


def state_values(critic: Critic, obs: Float[Tensor, "T N S"]) -> Float[Tensor, "T N"]:
    """Value every step, without a gradient."""
    with torch.no_grad():
        return critic(obs.flatten(0, 1)).reshape(obs.shape[:2])
