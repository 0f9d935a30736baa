"""GRPO's own numbers, by the names the field has for them, and which of them fit together."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from latentpg.errors import OptionError
from latentpg.learners.episodic import Aggregation, check_choices, check_counts, check_fraction, check_positive
from latentpg.numerics.divergences import k1, k2, k3
from latentpg.numerics.group_advantages import (
    batch_std_advantage,
    group_mean_advantage,
    group_std_advantage,
    rloo_advantage,
)

ADVANTAGES = {
    "group-std": group_std_advantage,
    "group-mean": group_mean_advantage,
    "rloo": rloo_advantage,
    "batch-std": batch_std_advantage,
}
"""Advantages within a group by name; each takes credits with the group's members first."""

KL_ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}
"""Estimators of the divergence to the reference by name."""

SMALLEST_CLIP = 1e-3
"""The share of its clip range that an annealed run keeps at its end."""


@dataclass(frozen=True)
class GRPOOptions:
    r"""GRPO's own numbers, by the names the field has for them.

    **Rollout.** ``num_groups`` initial states with ``group_size`` G episodes each; ``latent``, ``noise``,
    ``max_steps`` and ``on_max_steps`` as :func:`~latentpg.rollout.groups.collect_groups` has them.

    **Credit.** ``"episode"`` gives :math:`R = \sum_t\gamma^t r_t` to every step. ``"reward-to-go"`` gives
    :math:`\sum_{k\ge t}\gamma^k r_k` to step t, compared with what the others of the group have to go at *their* step
    t, 0 for those that have ended. ``"pooled-to-go"`` gives :math:`\sum_{k\ge t}\gamma^{k-t} r_k`, compared with all
    steps of the group's episodes: with :math:`\gamma<1` it tells the steps before a fall from all others, where an
    episode's return blames every step alike. It is no multiple of the gradient (the factor :math:`\gamma^t` is missing,
    and groups of equal returns are made 0), and the one that learns fastest where rewards come all along. Both need a
    latent a step or a chunk, whose rows have the credit of their first step: a latent held for an episode leaves one
    row, and one credit.

    **Surrogate.** ``ratio="sequence"`` is GSPO's, one ratio an episode, the geometric mean of its steps'. Its episode
    weighs as much as all its steps together, so that ``aggregation`` means the same for both ratios: a step weighs
    :math:`1/\sum L` ("token"), :math:`1/(E L_e)` ("sequence") or :math:`1/(EC)` ("constant", C = ``horizon``).
    ``clip_range`` is epsilon, ``clip_range_high`` another one upwards; "cispo" clips from above only. ``anneal_clip``
    lets both fall linearly to zero over the run.

    **Penalty.** ``kl_coefficient`` beta holds the policy near a reference: the initial policy, or the one of every
    ``reference_every`` updates. ``kl_placement`` is ``"loss"``, descending KL(pi || ref) with k2 and KL(ref || pi) with
    k3; ``"ratio"``, the same times the ratio, descending KL(pi || ref) with k1 and k3; or ``"reward"``, which is that
    of whole episodes with k1. Log-ratios to the reference are on the update's particles; with retained ones they are
    those of the augmented law.

    ``target_kl`` ends an update's epochs once the mean k3 of the ratio exceeds 1.5 times it, None never.
    """

    num_groups: int = 4
    group_size: int = 8
    num_epochs: int = 10
    clip_range: float | int = 0.2
    clip_range_high: float | int | None = None
    anneal_clip: bool = False
    advantage: Literal["group-std", "group-mean", "rloo", "batch-std"] = "group-std"
    ratio: Literal["token", "sequence"] = "token"
    surrogate: Literal["ppo-clip", "cispo"] = "ppo-clip"
    aggregation: Aggregation = "token"
    horizon: float | int = 1
    credit: Literal["episode", "reward-to-go", "pooled-to-go"] = "episode"
    latent: Literal["step", "chunk", "episode"] = "step"
    noise: Literal["shared", "independent"] = "shared"
    gamma: float | int = 1.0
    kl_coefficient: float | int = 0.0
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    kl_placement: Literal["loss", "ratio", "reward"] = "loss"
    reference_every: int | None = None
    max_steps: int = 100_000
    on_max_steps: Literal["error", "truncate"] = "error"
    target_kl: float | int | None = None

    def __post_init__(self) -> None:
        """Check the numbers, and that they fit together."""
        where = "GRPOOptions()"
        check_counts(
            where,
            {
                "num_groups": (self.num_groups, 1),
                "group_size": (self.group_size, 2),
                "num_epochs": (self.num_epochs, 1),
                "max_steps": (self.max_steps, 1),
                "reference_every": (1 if self.reference_every is None else self.reference_every, 1),
            },
            {"group_size": "a group of one has nothing to be compared with"},
        )
        check_positive(
            where,
            {
                "clip_range": self.clip_range,
                "clip_range_high": self.clip_range_high,
                "horizon": self.horizon,
                "target_kl": self.target_kl,
            },
        )
        check_fraction(where, "gamma", self.gamma)
        check_choices(
            where,
            {
                "advantage": (self.advantage, tuple(ADVANTAGES)),
                "ratio": (self.ratio, ("token", "sequence")),
                "surrogate": (self.surrogate, ("ppo-clip", "cispo")),
                "aggregation": (self.aggregation, ("token", "sequence", "constant")),
                "credit": (self.credit, ("episode", "reward-to-go", "pooled-to-go")),
                "latent": (self.latent, ("step", "chunk", "episode")),
                "noise": (self.noise, ("shared", "independent")),
                "kl_estimator": (self.kl_estimator, tuple(KL_ESTIMATORS)),
                "kl_placement": (self.kl_placement, ("loss", "ratio", "reward")),
                "on_max_steps": (self.on_max_steps, ("error", "truncate")),
            },
        )
        if not 0 <= self.kl_coefficient < float("inf"):
            raise OptionError(where, "`kl_coefficient`", expected="a number >= 0", got=repr(self.kl_coefficient))
        self._check_together(where)

    def _check_together(self, where: str) -> None:
        if self.credit != "episode" and (self.latent == "episode" or self.ratio == "sequence"):
            raise OptionError(
                where,
                f'`credit="{self.credit}"` gives steps of one row different credits',
                expected='latent="step" or "chunk", and ratio="token"',
                got=f'latent="{self.latent}", ratio="{self.ratio}"',
                fix='credit="episode"',
            )
        if self.kl_coefficient and self.kl_estimator == "k1" and self.kl_placement == "loss":
            raise OptionError(
                where,
                "k1 in the loss has an expected gradient of zero: it would hold nothing near the reference",
                expected='k2 or k3, or k1 with kl_placement="ratio" or "reward"',
                got='kl_estimator="k1", kl_placement="loss"',
                fix='kl_placement="ratio", which descends KL(pi || ref)',
            )


def annealed(options: GRPOOptions, progress: float | int) -> GRPOOptions:
    """Return the options of an update with the share ``progress`` of the run over: clip ranges fall if they are to.

    They end at a thousandth of what they were, since none may be zero.

    >>> later = annealed(GRPOOptions(clip_range=0.2, clip_range_high=0.4, anneal_clip=True), 0.75)
    >>> round(later.clip_range, 6), round(later.clip_range_high, 6)
    (0.05, 0.1)
    """
    if not options.anneal_clip:
        return options
    share, high = max(1.0 - progress, SMALLEST_CLIP), options.clip_range_high
    return replace(options, clip_range=options.clip_range * share, clip_range_high=high and high * share)
