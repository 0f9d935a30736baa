r"""Expectation and maximisation for discrete latents, with a likelihood that never falls.

The E step takes the exact posterior :math:`\rho_{zb} = p(z|s_b,a_b)`. The M step raises

.. math:: Q(\theta,\phi) = \frac1B\sum_b\sum_z \rho_{zb}\,\log p_{\theta,\phi}(z, a_b|s_b) ,

in closed form where the policy has one (:class:`ClosedFormMaximizer`), and otherwise by gradient steps each of which is
taken only where Q has risen (:mod:`latentpg.imitation.ascent`): a generalised M step. Either way the mean
log-likelihood rises by at least as much as Q does, because the posterior's entropy is what the bound lacks
(A. P. Dempster, N. M. Laird and D. B. Rubin, "Maximum likelihood from incomplete data via the EM algorithm", 1977;
R. M. Neal and G. E. Hinton, "A view of the EM algorithm that justifies incremental, sparse, and other variants",
1998). All of it is up to rounding, and for all rows at once: on a minibatch only that minibatch's likelihood is safe.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from latentpg.errors import EstimatorError, OptionError
from latentpg.estimators import Exact
from latentpg.estimators.guides import Wake
from latentpg.imitation.ascent import Ascent
from latentpg.imitation.objectives import Losses, combine
from latentpg.imitation.rows import FitRows, bounded
from latentpg.learners.descent import named_among
from latentpg.programs import LatentPolicy, Latents, Observations, log_joint, model_parameters


@runtime_checkable
class ClosedFormMaximizer(Protocol):
    """A policy that can go to the maximum of Q at once."""

    def maximize(self, obs: Observations, action: Tensor, responsibilities: Float[Tensor, "C B"]) -> None:
        """Set theta and phi to the maximum, given each row's posterior over the C joint values of its latents."""
        ...


@dataclass(frozen=True)
class ExpectationMaximization:
    """How to take an EM step: ``num_gradient_steps`` of the M step where it has no closed form.

    ``initial_rate`` is the first step that is tried, in units of a parameter; it finds its own size from there on.
    As an objective of :func:`~latentpg.imitation.fit` an epoch is one EM step on all rows, whatever the size of a
    minibatch; the guide is then taught the exact posterior, minibatch by minibatch.
    """

    num_gradient_steps: int = 10
    initial_rate: float | int = 0.01
    max_halvings: int = 40

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("num_gradient_steps", 1), ("max_halvings", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(
                    "ExpectationMaximization()", f"`{name}`", expected=f"an integer >= {least}", got=repr(value)
                )
        if not 0 < self.initial_rate < math.inf:
            raise OptionError(
                "ExpectationMaximization()", "`initial_rate`", expected="a number > 0", got=repr(self.initial_rate)
            )

    def ascent(self, policy: LatentPolicy) -> Ascent:
        """Set up the gradient M step of a policy's theta and phi."""
        return Ascent(
            named_among(_module(policy), model_parameters(policy)),
            rate=self.initial_rate,
            max_halvings=self.max_halvings,
        )

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Teach the guide the exact posterior; the model's rows are its log-likelihood, by enumeration."""
        return combine(Exact(), Wake(), policy, obs, action)


@dataclass(frozen=True)
class EMStep:
    """One step: the mean log-likelihood before it, and Q before and after its M step, in nats a row.

    ``num_moves`` counts gradient steps that were accepted, ``num_halvings`` how often one was halved; both are 0 for a
    closed form.
    """

    log_prob: float
    expected_before: float
    expected_after: float
    closed_form: bool
    num_moves: int = 0
    num_halvings: int = 0

    @property
    def gain(self) -> float:
        """What the likelihood has gained at least."""
        return self.expected_after - self.expected_before


def em_step(
    policy: LatentPolicy,
    rows: FitRows,
    *,
    options: ExpectationMaximization = ExpectationMaximization(),
    ascent: Ascent | None = None,
) -> EMStep:
    """Take one EM step on all rows, in place; ``ascent`` carries the gradient M step's size from step to step.

    A continuous latent is a :class:`~latentpg.errors.SiteError`. A closed form that lowers Q is refused, with the
    parameters as they were.
    """
    with bounded(rows):
        return _step(policy, rows, options, ascent)


def _step(policy: LatentPolicy, rows: FitRows, options: ExpectationMaximization, ascent: Ascent | None) -> EMStep:
    particles = Exact().propose(policy, rows.obs, rows.action)
    with torch.no_grad():
        joint = log_joint(policy, rows.obs, rows.action, particles.latents)
        if not bool(joint.amax(0).isfinite().all()):
            raise EstimatorError(
                "em_step()",
                "a row that no latent can produce",
                expected="a finite log p(z, a | s) for some z in every row",
                got=str(joint[:, ~joint.amax(0).isfinite()][:, 0].tolist()[:8]),
            )
        share = joint.softmax(0)
        log_prob = float(joint.double().logsumexp(0).mean())

    def expected() -> Tensor:
        scored = log_joint(policy, rows.obs, rows.action, particles.latents)
        # what is impossible has no share, and 0 * -inf would be NaN
        return torch.where(share > 0, share * scored, torch.zeros_like(share)).sum(0).double().mean()

    if isinstance(policy, ClosedFormMaximizer):
        return _closed(policy, rows, share, expected, log_prob)
    climber = options.ascent(policy) if ascent is None else ascent
    steps = [climber.climb(expected)]
    while len(steps) < options.num_gradient_steps and steps[-1].moved:
        steps.append(climber.climb(expected))
    return EMStep(
        log_prob,
        steps[0].before,
        steps[-1].after,
        False,
        sum(step.moved for step in steps),
        sum(step.halvings for step in steps),
    )


@dataclass(frozen=True)
class EMFit:
    """A fit by EM: every step, the mean log-likelihood after the last, and whether it had settled by then."""

    steps: tuple[EMStep, ...]
    log_prob: float
    converged: bool

    @property
    def trace(self) -> tuple[float, ...]:
        """Mean log-likelihood before each step and after the last, in nats a row: it never falls."""
        return (*(step.log_prob for step in self.steps), self.log_prob)


def fit_em(
    policy: LatentPolicy,
    rows: FitRows,
    *,
    options: ExpectationMaximization = ExpectationMaximization(),
    num_steps: int = 100,
    tolerance: float | int = 1e-6,
) -> EMFit:
    """Take EM steps, in place, until one gains at most ``tolerance`` nats a row, or ``num_steps`` of them.

    From where it starts EM goes to a stationary point, often a poor one: several starts are worth their while.
    """
    if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
        raise OptionError("fit_em()", "`num_steps`", expected="an integer >= 1", got=repr(num_steps))
    closed = isinstance(policy, ClosedFormMaximizer)
    ascent = None if closed else options.ascent(policy)
    steps: list[EMStep] = []
    settled = False
    while len(steps) < num_steps and not settled:
        steps.append(em_step(policy, rows, options=options, ascent=ascent))
        settled = len(steps) > 1 and steps[-1].log_prob - steps[-2].log_prob <= tolerance
    particles = Exact().propose(policy, rows.obs, rows.action)
    with torch.no_grad(), bounded(rows):
        last = Exact().estimate(policy, rows.obs, rows.action, particles).log_prob.double().mean()
    return EMFit(tuple(steps), float(last), settled)


def _closed(
    policy: ClosedFormMaximizer, rows: FitRows, share: Tensor, expected: Callable[[], Tensor], log_prob: float
) -> EMStep:
    module = _module(policy)
    with torch.no_grad():
        before = float(expected())
        held = {name: value.clone() for name, value in module.state_dict().items()}
        policy.maximize(rows.obs, rows.action, share)
        after = float(expected())
        if not after >= before - _rounding(share) * max(1.0, abs(before)):
            module.load_state_dict(held)
            raise EstimatorError(
                f"{type(policy).__name__}.maximize()",
                "the closed form of the M step lowered the expected complete log-likelihood",
                expected=f"at least {before:.9g} nats a row, as before it",
                got=f"{after:.9g}; the parameters are as they were",
                likely="a formula of another model, or responsibilities taken as [B, C]",
            )
    return EMStep(log_prob, before, after, True)


def _rounding(values: Tensor) -> float:
    return 1e3 * torch.finfo(values.dtype).eps


def _module(policy: object) -> nn.Module:
    if isinstance(policy, nn.Module):
        return policy
    raise OptionError("EM", "`policy`", expected="an nn.Module", got=type(policy).__name__)
