"""REINFORCE's own numbers, by the names the field has for them, and which of them fit together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from latentpg.errors import OptionError
from latentpg.learners.episodic import Aggregation, check_choices, check_counts, check_fraction, check_positive

COMPARES = ("batch-mean", "leave-one-out", "variance-optimal")
"""Baselines that compare an update's episodes with each other."""


@dataclass(frozen=True)
class ReinforceOptions:
    r"""REINFORCE's own numbers.

    **Credit.** ``"total"`` gives :math:`\sum_t\gamma^t r_t` of the episode to every step. ``"reward-to-go"`` gives step
    t what followed it, discounted ``"from-step"``, :math:`\sum_{k\ge t}\gamma^{k-t}r_k`, as most code does, or
    ``"from-start"``, which is the same times :math:`\gamma^t`, as the theorem says. A latent that is held for an
    episode makes it one row, and wants ``"total"``.

    **Baseline.** ``"batch-mean"`` and ``"leave-one-out"`` are means over the update's episodes, of what each has at
    step t (0 if it has ended). ``"variance-optimal"`` is the mean of the *other* episodes' weighted with the squared
    length of their scores :math:`\nabla\log\pi`, each taken by itself, which can cost more than the rest of the update
    (:mod:`latentpg.learners.scores`). ``"state-value"`` is a critic, fitted to what followed by ``value_epochs``
    passes *after* it has served, times :math:`\gamma^t` where the credit has it.

    **Step.** ``ratio="none"`` is REINFORCE itself: one step on all rows, valid on-policy only, and so
    ``num_epochs=1``. The others go over minibatches, several times if asked to, with ratios to the policy that acted:

    * ``"trajectory"``, :math:`\rho_{0:T-1}A` with the ratio of the whole episode and its first step's advantage; wants
      ``credit="total"``;
    * ``"per-decision"``, :math:`\sum_t\rho_{0:t}(A_t - A_{t+1})`, where without a baseline :math:`A_t - A_{t+1} =
      \gamma^t r_t`: each reward has the ratio up to its own step; wants ``credit="reward-to-go"`` and
      ``discounting="from-start"``;
    * ``"step"``, :math:`\rho_t A_t`, whose gradient is right at the first step and something else afterwards.

    The first two stay right as the policy moves, for parameters that do not hang on these episodes, and their variance
    grows with the length. Minibatches are whole episodes of about ``batch_size`` steps there. ``normalize_advantage``
    standardises advantages over all rows, which is no honest baseline.
    """

    num_episodes: int = 16
    baseline: Literal["none", "batch-mean", "leave-one-out", "variance-optimal", "state-value"] = "leave-one-out"
    credit: Literal["total", "reward-to-go"] = "reward-to-go"
    discounting: Literal["from-step", "from-start"] = "from-step"
    gamma: float | int = 0.99
    ratio: Literal["none", "step", "per-decision", "trajectory"] = "none"
    num_epochs: int = 1
    normalize_advantage: bool = False
    aggregation: Aggregation = "constant"
    horizon: float | int = 1
    latent: Literal["step", "episode"] = "step"
    max_steps: int = 100_000
    on_max_steps: Literal["error", "truncate"] = "error"
    value_learning_rate: float | int = 1e-3
    value_epochs: int = 5

    def __post_init__(self) -> None:
        """Check the numbers, and that they fit together."""
        where = "ReinforceOptions()"
        check_counts(
            where,
            {
                "num_episodes": (self.num_episodes, 2 if self.baseline in COMPARES else 1),
                "num_epochs": (self.num_epochs, 1),
                "max_steps": (self.max_steps, 1),
                "value_epochs": (self.value_epochs, 1),
            },
            {"num_episodes": "a mean over episodes is taken off, and one has nothing to be compared with"}
            if self.baseline in COMPARES
            else None,
        )
        check_positive(where, {"horizon": self.horizon, "value_learning_rate": self.value_learning_rate})
        check_fraction(where, "gamma", self.gamma)
        check_choices(
            where,
            {
                "baseline": (self.baseline, ("none", *COMPARES, "state-value")),
                "credit": (self.credit, ("total", "reward-to-go")),
                "discounting": (self.discounting, ("from-step", "from-start")),
                "ratio": (self.ratio, ("none", "step", "per-decision", "trajectory")),
                "aggregation": (self.aggregation, ("token", "sequence", "constant")),
                "latent": (self.latent, ("step", "episode")),
                "on_max_steps": (self.on_max_steps, ("error", "truncate")),
            },
        )
        if self.latent == "episode" and self.credit == "reward-to-go":
            raise OptionError(
                where,
                '`credit="reward-to-go"` gives steps of one row different credits',
                expected='latent="step"',
                got='latent="episode"',
                fix='credit="total"',
            )
        if self.ratio == "none" and self.num_epochs > 1:
            raise OptionError(
                where,
                "after the first step the episodes are another policy's",
                expected='num_epochs=1, or a ratio: "trajectory", "per-decision" or "step"',
                got=f'num_epochs={self.num_epochs}, ratio="none"',
                fix='ratio="step"',
            )
        self._check_ratio(where)

    def _check_ratio(self, where: str) -> None:
        if self.ratio == "trajectory" and self.credit != "total":
            raise OptionError(
                where,
                '`ratio="trajectory"` weighs an episode as a whole',
                expected='credit="total"',
                got=f'credit="{self.credit}"',
                fix='credit="total", or ratio="per-decision" for what follows each step',
            )
        if self.ratio == "per-decision" and (self.credit, self.discounting) != ("reward-to-go", "from-start"):
            raise OptionError(
                where,
                '`ratio="per-decision"` weighs each discounted reward with the ratio up to its own step',
                expected='credit="reward-to-go" and discounting="from-start"',
                got=f'credit="{self.credit}", discounting="{self.discounting}"',
                fix='discounting="from-start"' if self.credit == "reward-to-go" else 'ratio="trajectory"',
            )
