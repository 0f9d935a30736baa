r"""What cloning climbs: an estimate of :math:`\log\pi(a|s)` over demonstrations, and what its guide is taught by.

An objective turns a minibatch into :class:`Losses`: rows to minimise for theta and phi, rows to minimise for psi. Each
is a frozen choice over the estimators and guide objectives that everything else here uses:

=========================  ======================================  =========================================
name                       theta, phi                              psi
=========================  ======================================  =========================================
``exact``                  enumerated :math:`\log\sum_z p(z,a|s)`  cross-entropy to the exact posterior
``elbo``                   the evidence lower bound                the same bound
``iwae``                   the K-particle bound                    doubly reparameterised, pathwise or VIMCO
``reweighted-wake-sleep``  self-normalised importance sampling     wake on the same particles
``wake-sleep``             one draw of the guide                   dreams
``score-climbing``         a retained chain for every datum        cross-entropy to the chain's particles
``em``                     expectation and maximisation in turn    cross-entropy to the exact posterior
=========================  ======================================  =========================================

Demonstrations carry no recorded latent: whatever needs one is a :class:`~latentpg.errors.RecordedLatentError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError, RecordedLatentError
from latentpg.estimators import (
    ELBO,
    ConditionalIS,
    Estimator,
    Exact,
    Guide,
    JointScore,
    MarkovianIS,
    PosteriorIS,
    Proposal,
    Reparameterized,
)
from latentpg.estimators.base import check_num_particles
from latentpg.estimators.guides import ConditionalWake, GuideObjective, Recorded, Sleep, Wake
from latentpg.programs import LatentPolicy, Latents, Observations

NO_LATENT = "demonstrations carry no recorded latent"
"""Why some estimators have no place here."""


@dataclass(frozen=True, eq=False)
class Losses:
    """Rows ``[B]`` to minimise: ``model`` for theta and phi, ``guide`` for psi (None where it is not taught).

    Where both are one tensor, one backward pass serves both. ``info`` holds ``log_prob`` (the estimate of log pi, or
    the bound, without weights or floors), ``ess``, ``kl``, as far as they are there, ``[B]`` each. ``latents [B, ...]``
    is what a chain hands on to the next visit of the same rows.
    """

    model: Float[Tensor, " B"]
    guide: Float[Tensor, " B"] | None
    info: Mapping[str, Tensor]
    latents: Latents | None = None


@runtime_checkable
class Objective(Protocol):
    """What every objective offers; see the module's docstring."""

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Score a minibatch; ``latents`` is a chain's state, ``progress`` in [0, 1] the share of the fit gone by."""
        ...


@dataclass(frozen=True)
class Estimated:
    """Any estimator that needs no recorded latent, with any guide objective that needs none.

    >>> Estimated(ConditionalIS(8))
    Traceback (most recent call last):
        ...
    latentpg.errors.RecordedLatentError: RecordedLatentError in Estimated(): demonstrations carry no recorded latent
      expected: an estimator that needs none
      got:      ConditionalIS(num_particles=8, proposal=Prior())
      fix:      MarkovianIS(), which keeps a chain for every datum instead, or PosteriorIS()
    """

    estimator: Estimator
    guide: GuideObjective | None = None

    def __post_init__(self) -> None:
        """Refuse what needs a recorded latent."""
        if isinstance(self.estimator, ConditionalIS | JointScore) or (
            isinstance(self.estimator, Reparameterized) and self.estimator.retain
        ):
            raise RecordedLatentError(
                "Estimated()",
                NO_LATENT,
                expected="an estimator that needs none",
                got=repr(self.estimator),
                fix="MarkovianIS(), which keeps a chain for every datum instead, or PosteriorIS()",
            )
        chained = isinstance(self.estimator, MarkovianIS)
        if isinstance(self.guide, Recorded | ConditionalWake) and not chained:
            raise RecordedLatentError(
                "Estimated()",
                NO_LATENT,
                expected="a guide objective that needs none",
                got=repr(self.guide),
                fix="Wake(), or MarkovianIS() as the estimator, whose chain stands in for it",
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
        """Propose, estimate, and teach the guide on the same particles."""
        return combine(self.estimator, self.guide, policy, obs, action, latents=latents)


@dataclass(frozen=True)
class MaximumLikelihood:
    r"""Exact maximum likelihood of discrete latents: :math:`\log\sum_z p(z,a|s)` by enumeration, with its gradient.

    The guide is taught the exact posterior, :math:`-\sum_z p(z|s,a)\log q_\psi(z|s,a)`. A policy without a latent is
    its own sum. A continuous latent is a :class:`~latentpg.errors.SiteError`.
    """

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Enumerate."""
        return combine(Exact(), Wake(), policy, obs, action)


@dataclass(frozen=True)
class ReweightedWakeSleep:
    r"""Reweighted wake-sleep: theta and phi by self-normalised weights, psi by wake, by sleep, or by half of each.

    Biased by O(1/K) in theta and phi, and in psi's wake phase (Bornschein and Bengio, "Reweighted Wake-Sleep", 2015;
    Le, Kosiorek, Siddharth, Teh and Wood, "Revisiting Reweighted Wake-Sleep", 2019). Any latents.
    """

    num_particles: int = 8
    guide: str = "wake"
    proposal: Proposal = field(default_factory=Guide)

    def __post_init__(self) -> None:
        """Check K and the guide's phase."""
        check_num_particles("ReweightedWakeSleep()", self.num_particles, minimum=2, why="one weight is always 1")
        if self.guide not in ("wake", "sleep", "both"):
            raise OptionError("ReweightedWakeSleep()", "`guide`", expected="wake, sleep or both", got=repr(self.guide))

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Weigh K particles for the model, and teach the guide by them, by dreams, or by both."""
        phase: GuideObjective = Sleep() if self.guide == "sleep" else Wake()
        found = combine(PosteriorIS(self.num_particles, self.proposal), phase, policy, obs, action)
        if self.guide != "both" or found.guide is None:
            return found
        dreamed = Sleep().loss(policy, obs, action)
        return Losses(found.model, (found.guide + dreamed) / 2, found.info)


@dataclass(frozen=True)
class ClassicWakeSleep:
    r"""Wake-sleep: theta and phi by :math:`\nabla\log p(z,a|s)` at draws of the guide, psi by dreams of the model.

    The wake phase climbs the evidence lower bound in theta and phi; the sleep phase minimises the inclusive divergence
    over the model's own actions. No one function is climbed by both (Hinton, Dayan, Frey and Neal, "The Wake-Sleep
    Algorithm", 1995). Any latents.
    """

    num_particles: int = 1
    num_dreams: int = 1

    def __post_init__(self) -> None:
        """Check both numbers."""
        check_num_particles("ClassicWakeSleep()", self.num_particles)
        check_num_particles("ClassicWakeSleep() (`num_dreams`)", self.num_dreams)

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Wake with the guide's draws, sleep with the model's."""
        return combine(ELBO(self.num_particles), Sleep(self.num_dreams), policy, obs, action)


@dataclass(frozen=True)
class ScoreClimbing:
    r"""Markovian score climbing: a chain for every datum stands in for the latent that nobody recorded.

    Each visit of a row moves its chain by ``num_sweeps`` i-SIR transitions and retains its state among K particles. The
    bias is what the chain has not yet forgotten of its start, not a matter of K; the guide is taught by the weights of
    the retained set (Naesseth, Lindsten and Blei, "Markovian Score Climbing", 2020). Any latents.
    """

    num_particles: int = 8
    num_sweeps: int = 1
    proposal: Proposal = field(default_factory=Guide)

    def __post_init__(self) -> None:
        """Check K and the number of sweeps."""
        _ = self.estimator

    @property
    def estimator(self) -> MarkovianIS:
        """The chain's transition and what is estimated with its state."""
        return MarkovianIS(self.num_particles, self.num_sweeps, self.proposal)

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Move the chains from ``latents``, or from a draw of the proposal where there is no state yet."""
        return combine(self.estimator, ConditionalWake(), policy, obs, action, latents=latents)


def combine(
    estimator: Estimator,
    guide: GuideObjective | None,
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    *,
    latents: Latents | None = None,
) -> Losses:
    """Propose once; estimate log pi and teach the guide on those particles, which neither has moved yet.

    A policy without psi, or without a latent, is taught none.
    """
    particles = estimator.propose(policy, obs, action, latents)
    estimate = estimator.estimate(policy, obs, action, particles)
    kept = {name: value[0] for name, value in particles.latents.items()} if particles.retained else None
    taught = None
    if guide is not None and policy.guide_parameters() and particles.latents:
        taught = guide.loss(policy, obs, action, particles=particles, latents=kept)
    info = {"log_prob": estimate.log_prob.detach()}
    if "ess" in estimate.info:
        info["ess"] = estimate.info["ess"]
    return Losses(-estimate.log_prob, taught, info, kept)
