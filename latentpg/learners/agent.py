"""What every learner moves: a policy by an estimator, its guide by an objective, and a critic if there is one.

An update goes in one order: act, propose, move theta and phi, and only then psi. The proposal of a retained latent may
not depend on it, and a guide that was already trained on it would.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.estimators import Estimator, PosteriorIS
from latentpg.estimators.entropy import entropy_surrogate
from latentpg.estimators.guides import ConditionalWake, GuideObjective
from latentpg.learners.batches import Means, minibatches
from latentpg.learners.descent import Descent, named_among
from latentpg.learners.parallel import ALONE, Group, together
from latentpg.learners.scoring import Fresh, ParticleUse, Rows, Scored, Scorer, make_scorer
from latentpg.numerics.baselines import leave_one_out_baseline
from latentpg.programs import LatentPolicy, model_parameters
from latentpg.rollout.record import check_record


@dataclass(frozen=True)
class AgentOptions:
    """How policy and guide move, whatever the algorithm.

    ``anneal`` lets every learning rate fall linearly to zero over the run. ``entropy_coefficient`` weighs the bonus on
    the marginal's entropy, whose value comes from ``entropy_particles`` independent ones of the guide.
    ``guide_epochs`` passes over the rows teach the guide after each update of the model. ``gap_every`` updates the gap
    between stored and fresh particles is measured on ``gap_rows`` rows; 0 never.

    With ``hold_prior`` the prior's parameters phi stay as they are: which latents are drawn, and how often, is then not
    for the return to say, and a mode that has latents of its own is not given up for one that succeeds sooner. (What
    prior and decoder share, such as an encoder, moves on.)
    """

    learning_rate: float | int = 3e-4
    guide_learning_rate: float | int = 1e-3
    anneal: bool = False
    max_grad_norm: float | int = 0.5
    batch_size: int = 64
    particles: ParticleUse = "stored"
    entropy_coefficient: float | int = 0.0
    entropy_particles: int = 16
    guide_epochs: int = 1
    gap_every: int = 10
    gap_rows: int = 256
    hold_prior: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, most in (
            ("learning_rate", math.inf),
            ("guide_learning_rate", math.inf),
            ("max_grad_norm", None),
        ):
            if not getattr(self, name) > 0 or getattr(self, name) == most:
                raise OptionError("AgentOptions()", f"`{name}`", expected="a number > 0", got=repr(getattr(self, name)))
        for name, least in (
            ("batch_size", 1),
            ("entropy_particles", 1),
            ("guide_epochs", 0),
            ("gap_every", 0),
            ("gap_rows", 1),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError("AgentOptions()", f"`{name}`", expected=f"an integer >= {least}", got=repr(value))
        if self.particles not in get_args(ParticleUse):
            raise OptionError("AgentOptions()", "`particles`", expected="stored or fresh", got=repr(self.particles))
        if not 0 <= self.entropy_coefficient < math.inf:
            raise OptionError(
                "AgentOptions()", "`entropy_coefficient`", expected="a number >= 0", got=repr(self.entropy_coefficient)
            )


def prefixed(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put a part's state under a name.

    >>> prefixed("policy", {"weight": torch.zeros(1)})
    {'policy.weight': tensor([0.])}
    """
    return {f"{prefix}.{name}": value.detach().clone() for name, value in state.items()}


def under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take a part's state from under its name."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in state.items() if name.startswith(start)}


class Agent:
    """A policy, what estimates its log pi, and what teaches its guide.

    Without an ``objective`` the guide stays as it is. The policy is an ``nn.Module``.
    """

    def __init__(
        self,
        policy: LatentPolicy,
        *,
        estimator: Estimator,
        objective: GuideObjective | None = None,
        options: AgentOptions = AgentOptions(),
        group: Group = ALONE,
    ) -> None:
        """Set up an optimiser for theta and phi, and one for psi; ``group`` are the workers that learn together."""
        if not isinstance(policy, nn.Module):
            raise OptionError("Agent()", "`policy`", expected="an nn.Module", got=type(policy).__name__)
        self.policy, self.estimator, self.objective, self.options = policy, estimator, objective, options
        self.group, limit = group, options.max_grad_norm
        held = {id(each) for each in policy.prior_parameters()} if options.hold_prior else set()
        model = named_among(policy, [each for each in model_parameters(policy) if id(each) not in held])
        taught = named_among(policy, [] if objective is None else policy.guide_parameters())
        self.model = Descent(model, learning_rate=options.learning_rate, max_grad_norm=limit, group=group)
        self.guide = Descent(taught, learning_rate=options.guide_learning_rate, max_grad_norm=limit, group=group)

    def anneal(self, progress: float) -> None:
        """Set learning rates for a share of the run that is over, in [0, 1]."""
        if not 0 <= progress <= 1:
            raise OptionError("Agent.anneal()", "`progress`", expected="a number in [0, 1]", got=repr(progress))
        share = 1.0 - progress if self.options.anneal else 1.0
        self.model.set_rate(self.options.learning_rate * share)
        self.guide.set_rate(self.options.guide_learning_rate * share)

    def state(self) -> dict[str, Tensor]:
        """Return parameters and buffers of the policy, and what both optimisers remember."""
        return {
            **prefixed("policy", self.policy.state_dict()),
            **prefixed("model", self.model.state()),
            **prefixed("guide", self.guide.state()),
        }

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where :meth:`state` was taken."""
        self.policy.load_state_dict(under("policy", state))
        self.model.restore(under("model", state))
        self.guide.restore(under("guide", state))

    def propose(self, rows: Rows, log_joint: Float[Tensor, " B"]) -> Scorer:
        """Check that rows are what the policy recorded, and propose particles for them."""
        check_record(self.policy, rows.obs, rows.action, rows.latents, log_joint)
        return make_scorer(self.policy, self.estimator, rows, use=self.options.particles)

    def entropy(self, scored: Scored) -> Float[Tensor, " B"]:
        r"""Return rows to maximise for the entropy of the present policy, from actions of the one that acted.

        Those are weighted by the ratio, a constant: :math:`-\hat\rho\,(\log\pi + b)\nabla\log\pi`, with the value from
        independent particles and minus its mean over the *other* rows as baseline b (their own among them would scale
        the gradient by (B-1)/B: to nothing for one row). A policy with an ``entropy(obs)`` of its own, in closed form,
        is asked for that instead.
        """
        rows = scored.rows
        closed = getattr(self.policy, "entropy", None)
        if closed is not None:
            return closed(rows.obs)
        value = PosteriorIS(self.options.entropy_particles)
        with torch.no_grad():
            particles = value.propose(self.policy, rows.obs, rows.action)
            independent = value.estimate(self.policy, rows.obs, rows.action, particles).log_prob
        every = together(self.group, independent)
        baseline = -every.mine(leave_one_out_baseline(every.rows)) if len(every.rows) > 1 else 0.0
        weight = scored.log_ratio.detach().exp()
        return weight * entropy_surrogate(scored.log_prob, independent, baseline=baseline)

    def teach_guide(self, scorer: Scorer, rows: Rows, index: Int[Tensor, " M"]) -> dict[str, float]:
        """Move psi by the objective over the rows, after theta and phi have moved.

        An objective that weighs retained particles gets the update's own, its rows multiplied by the ratio, which makes
        it exact for the inclusive divergence of the policy as it now is.
        """
        if self.objective is None or not self.guide.parameters:
            return {}
        means = Means()
        for _ in range(self.options.guide_epochs):
            for part in minibatches(index, self.options.batch_size, group=self.group):
                loss = self._guide_loss(self.objective, scorer, rows.take(part), part)
                norm = self.guide.step(loss, rows=len(part))
                means.add({"train/guide_grad_norm": norm, "train/guide_loss": float(loss.detach())})
        return means.values()

    def _guide_loss(self, objective: GuideObjective, scorer: Scorer, rows: Rows, part: Tensor) -> Tensor:
        if not isinstance(objective, ConditionalWake):
            return objective.loss(self.policy, rows.obs, rows.action, latents=rows.latents).mean()
        with torch.no_grad():
            scored = scorer.score(self.policy, part)
        loss = objective.loss(self.policy, rows.obs, rows.action, particles=scored.particles)
        return (scored.log_ratio.exp() * loss).mean()

    def gap(
        self,
        rows: Rows,
        behaviour: LatentPolicy,
        scorer: Scorer,
        index: Int[Tensor, " M"],
        surrogate: Callable[[Tensor, Tensor], Tensor],
    ) -> dict[str, float]:
        r"""Measure what an update gained on its own particles beyond what it gains on fresh ones.

        ``surrogate(ratio, index)`` gives rows to maximise; ``behaviour`` is a copy of the policy as it acted. The gap
        is the mean surrogate on the update's particles less that on fresh ones of the same rows: what was fitted to the
        particles and not to the policy. Rows are taken evenly over the rollout.
        """
        part = index[:: -(-len(index) // self.options.gap_rows)]
        with torch.no_grad():
            stored = scorer.score(self.policy, part).log_ratio.exp()
            fresh = Fresh(self.estimator, rows, behaviour).score(self.policy, part).log_ratio.exp()
            gap = float((surrogate(stored, part) - surrogate(fresh, part)).mean())
        return {"train/ratio_mean_fresh": float(fresh.mean()), "train/surrogate_gap": gap}
