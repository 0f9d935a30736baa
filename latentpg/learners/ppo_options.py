"""PPO's own numbers, by the names the field has for them, and which of them fit together."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from latentpg.errors import OptionError
from latentpg.learners.episodic import check_choices, check_counts


@dataclass(frozen=True)
class PPOOptions:
    r"""PPO's own numbers, by the names the field has for them.

    ``num_steps`` T a member and update; ``clip_range`` is epsilon, ``clip_range_high`` another one upwards, and
    ``anneal_clip`` lets both fall linearly to zero over the run. ``clip_range_vf`` clips the value's move too, if it is
    given. ``target_kl`` ends an update's epochs once the mean k3 of the ratio exceeds 1.5 times it, None never.

    With ``num_episodes`` an update plays so many whole episodes instead of ``num_steps`` steps, as a ``latent`` that
    spans a chunk or an episode needs.

    ``kl_coefficient`` beta takes :math:`\beta` times the mean over rows of k3, :math:`e^{d}-1-d` with
    :math:`d = \log\pi_{\mathrm{ref}} - \log\pi`, off the objective; the reference is the policy that the run began
    with, and the estimates are on the update's particles. In the first ``value_warmup_updates`` updates the critic
    alone moves.
    """

    num_steps: int = 2048
    num_episodes: int | None = None
    latent: Literal["step", "chunk", "episode"] = "step"
    num_epochs: int = 10
    gamma: float | int = 0.99
    gae_lambda: float | int = 0.95
    clip_range: float | int = 0.2
    clip_range_high: float | int | None = None
    anneal_clip: bool = False
    clip_range_vf: float | int | None = None
    normalize_advantage: bool = True
    target_kl: float | int | None = None
    value_learning_rate: float | int = 3e-4
    normalize_reward: bool = False
    kl_coefficient: float | int = 0.0
    value_warmup_updates: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_steps", "num_epochs", "num_episodes"):
            value = getattr(self, name)
            if name == "num_episodes" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError("PPOOptions()", f"`{name}`", expected="an integer >= 1", got=repr(value))
        for name in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise OptionError(
                    "PPOOptions()", f"`{name}`", expected="a number in [0, 1]", got=repr(getattr(self, name))
                )
        for name in ("clip_range", "clip_range_high", "clip_range_vf", "target_kl", "value_learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise OptionError("PPOOptions()", f"`{name}`", expected="a number > 0", got=repr(value))
        check_choices("PPOOptions()", {"latent": (self.latent, ("step", "chunk", "episode"))})
        check_counts("PPOOptions()", {"value_warmup_updates": (self.value_warmup_updates, 0)})
        if not 0 <= self.kl_coefficient < math.inf:
            raise OptionError(
                "PPOOptions()", "`kl_coefficient`", expected="a number >= 0", got=repr(self.kl_coefficient)
            )
        if self.latent != "step" and self.num_episodes is None:
            raise OptionError(
                "PPOOptions()",
                f'`latent="{self.latent}"` spans steps, which the end of a rollout would cut',
                expected="num_episodes, the whole episodes of an update",
                got="None",
                fix="num_episodes=16",
            )
