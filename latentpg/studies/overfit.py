r"""Several epochs on stored particles: how much of what the surrogate gains is real.

The ratio of an estimator that keeps the recorded latent is exact in expectation while the new parameters know nothing
of the particles. From the second step on the same particles they do: the update raises :math:`\hat r_b` where
:math:`A_b > 0` by way of the particles that happen to lie there. Here the advantages are pure noise, so that there is
nothing to learn, and what the surrogate gains on stored particles is held against the same surrogate with the exact
ratio, and against particles that the update has not seen.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError, did_you_mean
from latentpg.estimators import Estimator, Particles
from latentpg.numerics.statistics import Interval, mean_interval, positive_mean_interval
from latentpg.numerics.surrogates import importance_weighted, ppo_clip
from latentpg.programs import LatentPolicy, model_parameters, num_rows, parameter_dtype
from latentpg.studies.problem import Problem
from latentpg.studies.procedures import Chosen, Traced, check_step
from latentpg.studies.ratio_law import over_every_action
from latentpg.studies.retained import redrawn

Surrogate = Literal["importance-weighted", "ppo-clip"]
"""What is raised: the mean of ratio times advantage, or PPO's clipped form of it."""

_WHERE = "target overfit"


@dataclass(frozen=True)
class Overfit:
    r"""Take ``step`` full-batch steps of Adam in theta and phi on the surrogate of particles that stay the same.

    Each repetition draws the recorded latents anew from the exact posterior, proposes particles once, draws advantages
    :math:`A_b \sim N(0,1)`, and raises :math:`\frac1B\sum_b \hat r_b A_b` (``importance-weighted``) or its clipped form
    (``ppo-clip``, at ``epsilon``, which the other has no use for). The source's observations and actions stay. Measured
    after a step, from :math:`\hat r = 1`, are the gain on the stored particles, on the exact ratio, the difference of
    the two, the gain on particles drawn anew as the stored ones were, and KL(old || new) where actions can be listed.

    Adam's first steps move every parameter by about ``learning_rate``, whatever the gradient's length (Kingma and Ba,
    "Adam: A Method for Stochastic Optimization", 2015); so few and many particles go equally far.
    """

    step: int = 10
    learning_rate: float | int = 0.05
    surrogate: Surrogate = "importance-weighted"
    epsilon: float | int = 0.2

    def __post_init__(self) -> None:
        """Check numbers and names."""
        check_step(_WHERE, self.step)
        for name in ("learning_rate", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(_WHERE, f"`{name}`", expected="a number > 0", got=repr(getattr(self, name)))
        known = get_args(Surrogate)
        if self.surrogate not in known:
            raise OptionError(
                _WHERE,
                "unknown surrogate",
                expected=f"one of {', '.join(known)}",
                got=repr(self.surrogate),
                fix=did_you_mean(str(self.surrogate), known),
            )

    @property
    def pairs(self) -> bool:
        """An estimator is wanted, and no guide objective."""
        return False

    def carry_out(
        self, problem: Problem, chosen: Chosen, *, steps: Sequence[int], num_replicates: int
    ) -> Sequence[Traced]:
        """Take the steps ``num_replicates`` times, with latents, particles and advantages of their own."""
        problem, estimator = _posed(problem, chosen)
        found: dict[tuple[int, str], list[float]] = defaultdict(list)
        for _ in range(num_replicates):
            for step, values in self.repetition(problem, estimator, steps).items():
                for name, value in values.items():
                    found[step, name].append(value)
        return [Traced(name, _interval(name, x), step, len(x)) for (step, name), x in found.items()]

    def repetition(
        self, problem: Problem, estimator: Estimator, steps: Sequence[int]
    ) -> Mapping[int, Mapping[str, float]]:
        """Take the steps once, from the ambient stream, and measure after each of ``steps``."""
        assert problem.exact is not None
        new = copy.deepcopy(problem.policy)
        parameters = list(model_parameters(new))
        optimizer = torch.optim.Adam(parameters, lr=float(self.learning_rate), maximize=True)
        advantage = torch.randn(num_rows(problem.obs), dtype=parameter_dtype(new))
        stored, fresh, exact = (Held.of(problem, each) for each in (estimator, estimator, problem.exact))
        everywhere = None if problem.every_action is None else _over_every_action(problem)
        found = {}
        for step in range(max(steps) + 1):
            if step:
                gain = self.gain(stored.ratio(new), advantage)
                gradients = torch.autograd.grad(gain, parameters, allow_unused=True, materialize_grads=True)
                for parameter, gradient in zip(parameters, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
            if step in steps:
                with torch.no_grad():
                    gains = [float(self.gain(held.ratio(new), advantage)) for held in (stored, exact, fresh)]
                    moved = {} if everywhere is None else {"exact_kl": float(divergence(everywhere, new, problem))}
                found[step] = {
                    "stored_gain": gains[0],
                    "exact_gain": gains[1],
                    "overfit_gap": gains[0] - gains[1],
                    "fresh_gain": gains[2],
                    **moved,
                }
        return found

    def gain(self, ratio: Float[Tensor, " B"], advantage: Float[Tensor, " B"]) -> Float[Tensor, ""]:
        """Return the mean surrogate less what it is where new = old, which is the mean advantage."""
        if self.surrogate == "ppo-clip":
            rows = ppo_clip(ratio, advantage, epsilon=self.epsilon)
        else:
            rows = importance_weighted(ratio, advantage)
        return (rows - advantage).mean()


@dataclass(frozen=True, eq=False)
class Held:
    """Particles of a problem's rows, kept with the estimate that they gave of the policy that acted."""

    problem: Problem
    estimator: Estimator
    particles: Particles
    old: Float[Tensor, " B"]

    @classmethod
    def of(cls, problem: Problem, estimator: Estimator) -> Held:
        """Propose under the policy that acted."""
        rows = problem.policy, problem.obs, problem.action
        particles = estimator.propose(*rows, problem.latents)
        with torch.no_grad():
            return cls(problem, estimator, particles, estimator.estimate(*rows, particles).log_prob)

    def ratio(self, new: LatentPolicy) -> Float[Tensor, " B"]:
        """Estimate new over old, differentiably in the new policy's parameters."""
        estimate = self.estimator.estimate(new, self.problem.obs, self.problem.action, self.particles)
        return (estimate.log_prob - self.old).exp()


def divergence(everywhere: Held, new: LatentPolicy, problem: Problem) -> Float[Tensor, ""]:
    """Return KL(old || new), summed over every action and averaged over rows; nothing is drawn."""
    rows = everywhere.old.exp() * -everywhere.ratio(new).log()
    return rows.reshape(-1, num_rows(problem.obs)).sum(0).mean()


def _over_every_action(problem: Problem) -> Held:
    assert problem.exact is not None
    obs, action = over_every_action(problem)
    return Held.of(replace(problem, obs=obs, action=action, latents=None), problem.exact)


def _posed(problem: Problem, chosen: Chosen) -> tuple[Problem, Estimator]:
    """Give the estimator fresh recorded latents if it keeps them, and none if it does not."""
    if problem.exact is None:
        raise EstimatorError(
            _WHERE,
            "nothing exact is known of this source, so that no gain can be told to be real",
            expected="a source whose log pi can be computed",
            got="a source without a reference",
        )
    if not chosen.keeps_recorded:
        return replace(problem, latents=None), chosen.estimator
    if problem.redraw is None:
        raise EstimatorError(
            _WHERE,
            "the posterior of this source cannot be drawn from, so that all repetitions would keep the same latents",
            expected="a source with discrete latents",
            got="a source without posterior draws",
            fix="an estimator that keeps no recorded latent, or another source",
        )
    return problem, redrawn(chosen.estimator, problem)


def _interval(name: str, values: Sequence[float]) -> Interval:
    found = torch.tensor(values, dtype=torch.float64)
    return positive_mean_interval(found) if name == "exact_kl" and bool((found > 0).all()) else mean_interval(found)
