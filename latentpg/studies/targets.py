r"""What a study measures an estimator by: a scalar function of it, of which the value or the gradient is looked at.

A target poses a :class:`Quantity` on a problem for an estimator. Posed for the problem's exact estimator, the same
function is the reference: no target has a second formula for its truth that could differ from the first. Rewards and
drifts are drawn once from the problem's seed, so that every estimator of a study is asked the same question.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.estimators import Estimator, Exact, PosteriorIS, Quadrature, entropy_surrogate
from latentpg.numerics.divergences import k1, k2, k3
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.numerics.surrogates import ppo_clip, reinforce
from latentpg.programs import LatentPolicy, model_parameters
from latentpg.studies.problem import Problem

Part = Literal["both", "theta", "phi"]
"""Which of the model's parameters a gradient is taken in: the decoder's (theta), the prior's (phi), or both."""


@dataclass(frozen=True)
class Quantity:
    """A scalar with the policy and the parameters it is differentiated in; without parameters its value is meant.

    It is the sum of independent ``pieces``, such as groups of rows, which are run one after another for memory's sake.
    """

    policy: LatentPolicy
    parameters: Sequence[nn.Parameter]
    pieces: Sequence[Callable[[], Float[Tensor, ""]]]


@runtime_checkable
class Target(Protocol):
    """A frozen dataclass whose fields are its configuration."""

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Pose the quantity that ``estimator`` estimates on the problem's rows."""
        ...

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """Count the evaluations of log p(z, a | s) a row, from those of one of the estimator's estimates."""
        ...


@dataclass(frozen=True)
class Value:
    r"""The value itself, :math:`\frac1B\sum_b\log\pi(a_b|s_b)`, in nats."""

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Average ``log_prob`` over rows."""
        return Quantity(problem.policy, (), [lambda: average(problem, log_prob(problem, estimator))])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate."""
        return per_estimate


@dataclass(frozen=True)
class Gradient:
    r"""The gradient :math:`\nabla\frac1B\sum_b\log\pi(a_b|s_b)` in theta, phi or both."""

    parameters: Part = "both"

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Differentiate the mean ``log_prob``."""
        chosen = part_of(problem.policy, self.parameters)
        return Quantity(problem.policy, chosen, [lambda: average(problem, log_prob(problem, estimator))])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate."""
        return per_estimate


@dataclass(frozen=True)
class Ratio:
    r"""The mean ratio :math:`\frac1B\sum_b\pi_{new}(a_b|s_b)/\pi_{old}(a_b|s_b)` after a drift of the parameters."""

    drift: float = 0.1

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Average the ratio of two estimates on the same particles."""
        new = moved(problem, self.drift)
        return Quantity(new, (), [lambda: average(problem, log_ratio(problem, new, estimator).exp())])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate under the new policy and one under the old."""
        return 2 * per_estimate


@dataclass(frozen=True)
class RatioGradient:
    """The gradient of the mean ratio in the new policy's theta and phi."""

    drift: float = 0.1
    parameters: Part = "both"

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Differentiate the mean ratio at the moved parameters."""
        new = moved(problem, self.drift)
        chosen = part_of(new, self.parameters)
        return Quantity(new, chosen, [lambda: average(problem, log_ratio(problem, new, estimator).exp())])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate under the new policy and one under the old."""
        return 2 * per_estimate


@dataclass(frozen=True)
class PolicyGradient:
    r"""The gradient of :math:`\frac1B\sum_b (R_b + c)\log\pi(a_b|s_b)`: rewards ~ N(0, 1), an offset c on all."""

    reward_offset: float = 0.0
    parameters: Part = "both"

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Differentiate the REINFORCE surrogate."""
        advantage = rewards(problem) + self.reward_offset
        chosen = part_of(problem.policy, self.parameters)

        def surrogate() -> Tensor:
            return average(problem, reinforce(log_prob(problem, estimator), advantage))

        return Quantity(problem.policy, chosen, [surrogate])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate."""
        return per_estimate


@dataclass(frozen=True)
class PPOClip:
    """The gradient of PPO's clipped surrogate after a drift, with rewards ~ N(0, 1) plus an offset as advantages."""

    drift: float = 0.1
    epsilon: float = 0.2
    reward_offset: float = 0.0

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Differentiate the mean clipped surrogate at the moved parameters."""
        new, advantage = moved(problem, self.drift), rewards(problem) + self.reward_offset

        def surrogate() -> Tensor:
            ratio = log_ratio(problem, new, estimator).exp()
            return average(problem, ppo_clip(ratio, advantage, epsilon=self.epsilon))

        return Quantity(new, model_parameters(new), [surrogate])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate under the new policy and one under the old."""
        return 2 * per_estimate


@dataclass(frozen=True)
class GRPO:
    r"""The gradient of GRPO's objective after a drift.

    Rows in groups of G one after another share a start; their rewards ~ N(0, 1) are standardised within the group,
    clipped as in PPO, and :math:`\beta\,k_3` to the policy that acted is taken off (Shao et al., "DeepSeekMath", 2024).
    Rows beyond the last whole group are left out of the mean.
    """

    drift: float = 0.1
    group_size: int = 8
    epsilon: float = 0.2
    kl_coefficient: float = 0.04

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Differentiate the mean objective at the moved parameters."""
        new, reward = moved(problem, self.drift), rewards(problem)
        if problem.weights is not None:
            raise OptionError(
                "target grpo", "rows of unequal weight", expected="rows that were sampled", got="rows with weights"
            )
        whole = len(reward) // self.group_size * self.group_size
        if self.group_size < 2 or not whole:
            raise OptionError(
                "target grpo",
                "`group_size`",
                expected=f"an integer from 2 to the number of rows, {len(reward)}",
                got=repr(self.group_size),
            )
        groups = reward[:whole].reshape(-1, self.group_size)
        centred = groups - groups.mean(1, keepdim=True)
        advantage = (centred / (groups.std(1, keepdim=True) + 1e-6)).flatten()

        def objective() -> Tensor:
            moved_by = log_ratio(problem, new, estimator)[:whole]
            clipped = ppo_clip(moved_by.exp(), advantage, epsilon=self.epsilon)
            return (clipped - self.kl_coefficient * k3(moved_by)).mean()

        return Quantity(new, model_parameters(new), [objective])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate under the new policy and one under the old."""
        return 2 * per_estimate


@dataclass(frozen=True)
class KL:
    r"""The mean of k1, k2 or k3 over the rows, which estimates KL(old || new) from the old policy's actions, in nats.

    The rows' actions are given; what is measured is the error that an estimated log-ratio brings into the formula.
    """

    formula: Literal["k1", "k2", "k3"] = "k3"
    drift: float = 0.1

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Average the chosen function of log pi_old - log pi_new."""
        new, function = moved(problem, self.drift), {"k1": k1, "k2": k2, "k3": k3}[self.formula]
        return Quantity(new, (), [lambda: average(problem, function(-log_ratio(problem, new, estimator)))])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate under the new policy and one under the old."""
        return 2 * per_estimate


@dataclass(frozen=True)
class EntropyGradient:
    r"""The gradient :math:`-\frac1B\sum_b\log\pi(a_b|s_b)\nabla\log\pi(a_b|s_b)` of an entropy bonus on the rows.

    The estimator brings the gradient; the value comes from ``value_particles`` independent ones of the guide, or from
    the same particles if that is 0, which is the common mistake: value and gradient are then no longer independent.
    """

    value_particles: int = 32

    def pose(self, problem: Problem, estimator: Estimator) -> Quantity:
        """Differentiate the mean entropy surrogate."""
        independent = self._draws_value(problem, estimator)

        def bonus() -> Tensor:
            slope = log_prob(problem, estimator)
            if not independent:
                return average(problem, entropy_surrogate(slope, slope.detach()))
            with torch.no_grad():
                value = log_prob(problem, PosteriorIS(self.value_particles))
            return average(problem, entropy_surrogate(slope, value))

        return Quantity(problem.policy, model_parameters(problem.policy), [bonus])

    def evaluations(self, problem: Problem, estimator: Estimator, per_estimate: int) -> int:
        """One estimate, and the independent particles of the value where any are drawn."""
        return per_estimate + self.value_particles * self._draws_value(problem, estimator)

    def _draws_value(self, problem: Problem, estimator: Estimator) -> bool:
        # without chance there is nothing to be independent of, and noise of the guide's would not be the estimator's
        is_exact = isinstance(estimator, Exact | Quadrature) or estimator == problem.exact
        return self.value_particles > 0 and not is_exact


MODEL_TARGETS: Mapping[str, Callable[..., Target]] = {
    "value": Value,
    "gradient": Gradient,
    "ratio": Ratio,
    "ratio-gradient": RatioGradient,
    "policy-gradient": PolicyGradient,
    "ppo-clip": PPOClip,
    "grpo": GRPO,
    "kl": KL,
    "entropy-gradient": EntropyGradient,
}
"""Every target of an estimator of log pi, by name; :data:`latentpg.studies.spec.TARGETS` has the guide's too."""


def average(problem: Problem, rows: Float[Tensor, " B"]) -> Float[Tensor, ""]:
    """Average over rows, by the problem's weights if it has any."""
    return rows.mean() if problem.weights is None else (problem.weights * rows).sum()


def log_prob(problem: Problem, estimator: Estimator) -> Float[Tensor, " B"]:
    """Propose and estimate on the problem's rows."""
    particles = estimator.propose(problem.policy, problem.obs, problem.action, problem.latents)
    return estimator.estimate(problem.policy, problem.obs, problem.action, particles).log_prob


def log_ratio(problem: Problem, new: LatentPolicy, estimator: Estimator) -> Float[Tensor, " B"]:
    """Estimate log pi_new - log pi_old on the same particles, proposed under the old policy."""
    obs, action = problem.obs, problem.action
    particles = estimator.propose(problem.policy, obs, action, problem.latents)
    with torch.no_grad():
        old = estimator.estimate(problem.policy, obs, action, particles).log_prob
    return estimator.estimate(new, obs, action, particles).log_prob - old


def moved(problem: Problem, drift: float) -> LatentPolicy:
    """Copy the policy and add N(0, drift²) to every entry of theta and phi."""
    new = copy.deepcopy(problem.policy)
    with seeded(stream_seed(problem.seed, "drift")), torch.no_grad():
        for parameter in model_parameters(new):
            parameter.add_(drift * torch.randn_like(parameter))
    return new


def rewards(problem: Problem) -> Float[Tensor, " B"]:
    """Draw one reward ~ N(0, 1) a row, the same for every estimator."""
    dtype = next(iter(model_parameters(problem.policy))).dtype
    with seeded(stream_seed(problem.seed, "rewards")):
        return torch.randn(problem.action.shape[0], dtype=dtype)


def part_of(policy: LatentPolicy, part: Part) -> Sequence[nn.Parameter]:
    """Return theta, phi, or phi followed by theta."""
    match part:
        case "theta":
            chosen: Sequence[nn.Parameter] = policy.decoder_parameters()
        case "phi":
            chosen = policy.prior_parameters()
        case "both":
            chosen = model_parameters(policy)
        case other:
            raise OptionError("target", "`parameters`", expected="both, theta or phi", got=repr(other))
    if not chosen:
        raise OptionError("target", f"the policy has no {part}", expected="parameters to differentiate in", got="none")
    return chosen
