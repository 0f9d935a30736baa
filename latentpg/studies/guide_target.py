r"""The gradient of a guide objective in psi, against the exact gradient of what that objective aims at.

Objectives aim at three things: the inclusive divergence (wake, conditional wake, recorded), the evidence lower bound
(elbo and its variants) and the K-particle bound (iwae, its doubly reparameterised form, VIMCO). Each has its own
reference, where it can be had: for discrete latents by sums over their values.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError, did_you_mean
from latentpg.estimators import ConditionalIS, Exact
from latentpg.estimators.guides import ConditionalWake, GuideObjective, Recorded, Sleep, Wake
from latentpg.oracles.enumeration import tuples
from latentpg.programs import log_joint, num_rows, score_guide, support, take_rows
from latentpg.studies.problem import Problem
from latentpg.studies.targets import Quantity

INCLUSIVE = frozenset({"wake", "conditional-wake", "recorded"})
"""Objectives that aim at the inclusive divergence."""

BOUND = frozenset({"elbo", "elbo-score", "elbo-stl"})
"""Objectives that aim at the evidence lower bound."""

MULTI_SAMPLE = frozenset({"iwae", "iwae-dreg", "vimco"})
"""Objectives that aim at the K-particle bound."""

GROUP = 10_000
"""Particles of rows that are run at once: at K = 316 a third of the time, and of the memory, of all rows at once."""

MAX_TUPLES = 50_000
"""More tuples of particles than this are not summed for the reference of a K-particle bound."""


@dataclass(frozen=True)
class GuideGradient:
    """The gradient of the mean loss of a guide objective over rows, in psi.

    ``only`` names some of the guide's parameters, as in ``policy.named_parameters()``; without it all are meant.
    """

    only: tuple[str, ...] = ()

    def pose(self, problem: Problem, objective: GuideObjective, stored: ConditionalIS | None = None) -> Quantity:
        """Pose the loss; recorded latents are drawn anew where the problem can, and ``stored`` proposes from them."""
        policy, obs, action = problem.policy, problem.obs, problem.action
        wants, rows = isinstance(objective, Recorded | ConditionalWake), num_rows(obs)
        size = max(1, GROUP // max(1, self.evaluations(objective, stored)))

        def loss(index: slice) -> Tensor:
            latents = problem.redraw() if wants and problem.redraw is not None else problem.latents
            mine = None if latents is None else take_rows(dict(latents), index)
            here, taken = take_rows(obs, index), action[index]
            particles = None if stored is None else stored.propose(policy, here, taken, mine)
            return objective.loss(policy, here, taken, particles=particles, latents=mine).sum() / rows

        groups = [partial(loss, slice(start, start + size)) for start in range(0, rows, size)]
        return Quantity(policy, self._chosen(problem), groups)

    def evaluations(self, objective: GuideObjective, stored: ConditionalIS | None = None) -> int:
        """Count the evaluations of log p(z, a | s) a row: one a particle or dream, none on a recorded latent."""
        match objective:
            case Recorded():  # which scores it under the guide alone
                return 0
            case Sleep():  # dreaming is acting, and acting scores what it draws
                return objective.num_dreams
            case _:
                return int(getattr(stored or objective, "num_particles", 1))

    def reference(self, problem: Problem, name: str, num_particles: int | None) -> Quantity | None:
        """Pose what the objective of this name aims at, or None where it cannot be summed."""
        function = _aim(problem, name, num_particles)
        return None if function is None else Quantity(problem.policy, self._chosen(problem), [function])

    def _chosen(self, problem: Problem) -> Sequence[nn.Parameter]:
        every = list(problem.policy.guide_parameters())
        if not self.only:
            return every
        assert isinstance(problem.policy, nn.Module)
        mine = {id(parameter) for parameter in every}
        names = {name: parameter for name, parameter in problem.policy.named_parameters() if id(parameter) in mine}
        for name in self.only:
            if name not in names:
                raise OptionError(
                    "target guide-gradient",
                    "`only` names no parameter of the guide",
                    expected=f"some of {', '.join(names)}",
                    got=repr(name),
                    fix=did_you_mean(name, names),
                )
        return [names[name] for name in self.only]


def _aim(problem: Problem, name: str, num_particles: int | None) -> Callable[[], Float[Tensor, ""]] | None:
    if name in problem.guide_losses:
        return problem.guide_losses[name]
    if not isinstance(problem.exact, Exact):
        return None
    policy, obs, action = problem.policy, problem.obs, problem.action
    if name in INCLUSIVE:
        every = Exact().propose(policy, obs, action)
        return lambda: Wake().loss(policy, obs, action, particles=every).mean()
    points = support(policy, obs)

    def log_weights() -> tuple[Tensor, Tensor]:
        log_q = score_guide(policy, obs, action, points).log_prob
        with torch.no_grad():
            joint = log_joint(policy, obs, action, points)
        return log_q, joint - log_q

    def bound() -> Tensor:
        log_q, log_weight = log_weights()
        return -(log_q.exp() * log_weight).sum(0).mean()

    def multi_sample() -> Tensor:
        log_q, log_weight = log_weights()
        every = tuples([log_q] * (num_particles or 1))
        value = log_weight.exp()[every.index].mean(0).log()
        return -(every.log_prob.exp() * value).sum(0).mean()

    size = len(next(iter(points.values())))
    if name in BOUND:
        return bound
    return multi_sample if name in MULTI_SAMPLE and size ** (num_particles or 1) <= MAX_TUPLES else None
