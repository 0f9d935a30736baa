r"""Training as a target: where model and guide have come to after so many steps, over independent repetitions."""

from __future__ import annotations

import copy
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError
from latentpg.numerics.statistics import Interval, mean_interval, median_interval, positive_mean_interval
from latentpg.programs import log_joint, score_guide, support
from latentpg.studies.problem import Problem, Trainee
from latentpg.studies.procedures import Chosen, Traced, check_step
from latentpg.studies.targets import log_prob
from latentpg.studies.training import fit


@dataclass(frozen=True)
class Training:
    """Train theta and phi by the estimator and psi by the objective of a line, and measure what comes of it.

    Each repetition starts afresh: with a policy, batches and draws of its own. Measured is what the source says is
    worth measuring; without a word from it the exact mean log pi of the rows, and the divergence of the guide from the
    exact posterior. Adam moves both (Kingma and Ba, "Adam: A Method for Stochastic Optimization", 2015), at
    ``learning_rate / (1 + step / decay_steps)``, constant if ``decay_steps`` is 0.
    """

    step: int = 1000
    learning_rate: float | int = 0.001
    decay_steps: int = 0

    def __post_init__(self) -> None:
        """Check the numbers."""
        check_step("target training", self.step)
        check_step("target training", self.decay_steps)
        if not self.learning_rate > 0:
            raise OptionError(
                "target training", "`learning_rate`", expected="a number > 0", got=repr(self.learning_rate)
            )

    @property
    def pairs(self) -> bool:
        """Both an estimator and a guide objective are wanted."""
        return True

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from zero."""
        return self.learning_rate / (1 + step / self.decay_steps) if self.decay_steps else float(self.learning_rate)

    def carry_out(
        self, problem: Problem, chosen: Chosen, *, steps: Sequence[int], num_replicates: int
    ) -> Sequence[Traced]:
        """Train ``num_replicates`` times to the last of ``steps``."""
        found: dict[tuple[int, str], list[Tensor]] = defaultdict(list)
        truths: Mapping[str, float] = {}
        for _ in range(num_replicates):
            trainee = _trainee(problem)
            for step, values in self._train(trainee, chosen, set(steps)).items():
                for name, value in values.items():
                    found[step, name].append(value.double().reshape(-1))
            truths = trainee.truths
        known = [Traced(name, Interval(value, value, value), step) for step in steps for name, value in truths.items()]
        whole = {place: torch.cat(parts) for place, parts in found.items()}
        return known + [Traced(name, _interval(name, x), step, len(x)) for (step, name), x in whole.items()]

    def _train(self, trainee: Trainee, chosen: Chosen, steps: set[int]) -> Mapping[int, Mapping[str, Tensor]]:
        assert chosen.objective is not None
        found: dict[int, Mapping[str, Tensor]] = {}
        spent, start, done = 0.0, time.perf_counter(), -1

        def record() -> dict[str, float]:
            nonlocal spent, start, done
            done += 1
            if done:
                trainee.observe()
            if done in steps:  # the clock stands still while a result is looked at
                spent += time.perf_counter() - start
                found[done] = {**trainee.measure(), "seconds": torch.tensor(spent)}
                start = time.perf_counter()
            return {}

        if last := max(steps):
            fit(
                trainee.policy,
                trainee.batches,
                estimator=chosen.estimator,
                objective=chosen.objective,
                num_steps=last,
                learning_rate=self.rate,
                record_every=1,
                record=record,
            )
        else:
            record()
        return found


def _interval(name: str, values: Tensor) -> Interval:
    if name == "seconds":
        return median_interval(values)
    # a distance shrinks by factors, so its spread is judged on a log scale
    return positive_mean_interval(values) if bool((values > 0).all()) else mean_interval(values)


def _trainee(problem: Problem) -> Trainee:
    return _copy_of(problem) if problem.trainee is None else problem.trainee()


def _copy_of(problem: Problem) -> Trainee:
    """Train a copy of the policy on the problem's own rows, measured by what is exact."""
    policy, exact, rows = copy.deepcopy(problem.policy), problem.exact, (problem.obs, problem.action)
    if exact is None:
        raise EstimatorError(
            "target training",
            "nothing exact is known of this source, so that nothing says how well it was learned",
            expected="a source whose log pi can be computed, or one that brings measures of its own",
            got="a source without a reference",
        )
    mine = Problem(policy, problem.obs, problem.action, exact=exact)

    def measure() -> Mapping[str, Tensor]:
        with torch.no_grad():
            found = {"log_likelihood": log_prob(mine, exact).mean()}
            if problem.redraw is not None:  # the posterior can be listed
                points = support(policy, problem.obs)
                posterior = log_joint(policy, problem.obs, problem.action, points).log_softmax(0)
                guide = score_guide(policy, problem.obs, problem.action, points).log_prob
                found["guide_divergence"] = (posterior.exp() * (posterior - guide)).sum(0).mean()
        return found

    return Trainee(policy, rows, measure)
