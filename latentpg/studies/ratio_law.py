r"""The law of the estimated ratio, without noise: every action, every recorded latent and every set of particles.

After a drift of the parameters, :math:`\hat r = \hat\pi_{new}(a|s)/\hat\pi_{old}(a|s)` on the same K particles. Where
latents have C values and actions can be listed, its whole law under acting is a finite sum: over actions by
:math:`\pi_{old}(a|s)`, over the counts :math:`n_c` of the particles' values, of which there are
:math:`\binom{K+C-1}{K}`, since no estimate looks at their order. Fresh particles have the multinomial law of K iid
draws from r; with the recorded latent among them it is

.. math:: P(n|a) = \mathrm{Mult}_K(n; r)\ \frac{1}{\pi_{old}(a|s)}\,\frac1K\sum_c n_c\,\frac{p_{old}(c,a|s)}{r_c} ,

so that :math:`\mathbb E[\hat r] = 1` over actions, and :math:`\hat r` is the likelihood ratio of the augmented law of
action and particles. One with K + 1 particles is a conditional expectation of one with K: the variance, :math:`\mathbb
E[-\log\hat r]` and the loss by clipping fall with K, from those of the joint to those of the marginal.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError, SiteError
from latentpg.estimators import (
    ELBO,
    ConditionalIS,
    Estimator,
    Exact,
    Guide,
    JointScore,
    PosteriorIS,
    Proposal,
    SplitIS,
    WakeSleep,
)
from latentpg.numerics.divergences import k3
from latentpg.numerics.statistics import Interval
from latentpg.numerics.surrogates import ppo_clip
from latentpg.oracles import multisets
from latentpg.oracles.enumeration import rounding
from latentpg.programs import LatentPolicy, log_joint, num_rows, repeat_rows, support
from latentpg.studies.problem import Problem, Rows
from latentpg.studies.procedures import Chosen, Traced
from latentpg.studies.targets import moved

MAX_SETS = 2**18
"""Sets of particles beyond which a law is not enumerated; C = 4 values and K = 64 have 47,905."""

AT_ONCE = 2**21
"""Numbers that are held at once: sets times values times rows, a row being a state with one of its actions."""

_WHERE = "target ratio-law"


@dataclass(frozen=True)
class RatioLaw:
    r"""Moments of the ratio after a drift of the parameters by N(0, drift²), before and after clipping at epsilon.

    All are means over actions of the old policy and over particles, averaged over the source's rows:
    :math:`\mathbb E\hat r`; the variance of :math:`\hat r` within a state; :math:`\mathbb E[-\log\hat r]`, which is the
    divergence of the old augmented law from the new where the mean is 1; :math:`\mathbb E[\hat r-1-\log\hat r]` (k3);
    and PPO's clipped surrogate at the advantages +1 and -1.
    """

    drift: float | int = 0.1
    epsilon: float | int = 0.2

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("drift", "epsilon"):
            if not 0 < getattr(self, name) < math.inf:
                raise OptionError(_WHERE, f"`{name}`", expected="a number > 0", got=repr(getattr(self, name)))

    @property
    def pairs(self) -> bool:
        """An estimator is wanted, and no guide objective."""
        return False

    def carry_out(
        self, problem: Problem, chosen: Chosen, *, steps: Sequence[int], num_replicates: int
    ) -> Sequence[Traced]:
        """Sum over everything that can happen; nothing is drawn and nothing repeated."""
        new = moved(problem, self.drift)
        with torch.no_grad():
            found = self.moments(tables_of(problem, new, chosen.estimator), chosen.estimator)
        return [Traced(name, Interval(value, value, value)) for name, value in found.items()]

    def moments(self, tables: Tables, estimator: Estimator) -> Mapping[str, float]:
        """Return every moment by the name of its measure."""
        parts: dict[str, list[Tensor]] = defaultdict(list)
        for law in laws(tables, estimator):
            for name, values in self._outcomes(law.log_ratio).items():
                parts[name].append((law.log_prob.exp() * values).sum(0))
        by_state = {name: tables.mean_over_actions(torch.cat(part)) for name, part in parts.items()}
        excess, square = by_state.pop("excess"), by_state.pop("square")
        return {
            "ratio_mean": 1 + float(excess.mean()),
            "ratio_variance": float((square - excess.square()).mean()),
            **{name: float(values.mean()) for name, values in by_state.items()},
        }

    def _outcomes(self, log_ratio: Float[Tensor, "N B"]) -> Mapping[str, Float[Tensor, "N B"]]:
        ratio, one = log_ratio.exp(), torch.ones_like(log_ratio)
        return {
            "excess": log_ratio.expm1(),  # about 1, so that a small variance is not lost in rounding
            "square": log_ratio.expm1().square(),
            "ratio_kl": -log_ratio,
            "ratio_k3": k3(-log_ratio),
            "clip_plus": ppo_clip(ratio, one, epsilon=self.epsilon),
            "clip_minus": ppo_clip(ratio, -one, epsilon=self.epsilon),
        }


@dataclass(frozen=True, eq=False)
class Tables:
    r"""Log-probabilities of C latents for every state with every action: ``[C, A * B]``, states innermost.

    ``old`` and ``new`` are :math:`\log p(z,a|s)`; ``proposal`` is what fresh particles are drawn from, or None.
    """

    old: Float[Tensor, "C AB"]
    new: Float[Tensor, "C AB"]
    proposal: Float[Tensor, "C AB"] | None
    num_states: int

    def mean_over_actions(self, values: Float[Tensor, " AB"]) -> Float[Tensor, " B"]:
        """Average over each state's actions, by the policy that acted."""
        chance = self.old.logsumexp(0).exp()
        return (chance * values).reshape(-1, self.num_states).sum(0)

    def rows(self, index: slice) -> Tables:
        """Take some states with some actions."""
        proposal = None if self.proposal is None else self.proposal[:, index]
        return Tables(self.old[:, index], self.new[:, index], proposal, self.num_states)


@dataclass(frozen=True, eq=False)
class Law:
    """N outcomes a row: their log-probabilities given the action, and the logarithm of the ratio each comes to."""

    log_prob: Float[Tensor, "N AB"]
    log_ratio: Float[Tensor, "N AB"]


def laws(tables: Tables, estimator: Estimator) -> Iterator[Law]:
    """Yield the law of the ratio for a few rows after the other; an estimator without one is refused."""
    values, rows = tables.old.shape
    match estimator:
        case Exact():
            yield Law(tables.old.new_zeros(1, rows), (tables.new.logsumexp(0) - tables.old.logsumexp(0)).unsqueeze(0))
        case JointScore():
            yield Law(tables.old.log_softmax(0), tables.new - tables.old)
        case ConditionalIS() | PosteriorIS() | WakeSleep() | SplitIS() | ELBO():
            # of two sets, only the one for the value makes the ratio
            size = estimator.num_value_particles if isinstance(estimator, SplitIS) else estimator.num_particles
            count = math.comb(size + values - 1, size)
            if count > MAX_SETS:
                raise EstimatorError(
                    _WHERE,
                    "too many sets of particles to enumerate",
                    expected=f"at most {MAX_SETS} sets",
                    got=f"{count}, of K={size} particles with {values} values each",
                    fix="fewer particles, or a source with fewer latents",
                )
            every = multisets(values, size).to(tables.old.device)
            width = max(1, AT_ONCE // (count * values))
            for start in range(0, rows, width):
                part = tables.rows(slice(start, start + width))
                yield _law_of_particles(estimator, part, every.counts.double(), every.log_prob(_proposal(part)))
        case _:
            raise _without_law(estimator)


def _law_of_particles(
    estimator: Estimator, tables: Tables, counts: Float[Tensor, "N C"], log_prob: Float[Tensor, "N AB"]
) -> Law:
    size, proposal = counts[0].sum(), _proposal(tables)
    if isinstance(estimator, ELBO):
        return Law(log_prob, counts @ (tables.new - tables.old) / size)

    def log_mean(joint: Tensor) -> Tensor:
        return (counts.log().unsqueeze(-1) + (joint - proposal)).logsumexp(1) - size.log()

    old = log_mean(tables.old)
    if isinstance(estimator, ConditionalIS):
        log_prob = log_prob + old - tables.old.logsumexp(0)
    return Law(log_prob, log_mean(tables.new) - old)


def tables_of(problem: Problem, new: LatentPolicy, estimator: Estimator) -> Tables:
    """Enumerate latents and actions of a problem; one that cannot be enumerated is refused."""
    obs, action = over_every_action(problem)
    try:
        points = support(problem.policy, obs)
    except SiteError as error:
        raise EstimatorError(
            _WHERE,
            "the latents of this source cannot be enumerated",
            expected="discrete latents of finite support",
            got=str(error).splitlines()[0].partition(": ")[2],
            fix="a source with discrete latents, such as toys",
        ) from error
    old, later = (log_joint(policy, obs, action, points) for policy in (problem.policy, new))
    proposal, fresh = _proposal_of(estimator), None
    if proposal is not None:
        fresh = proposal.log_prob(problem.policy, obs, action, points).double()
    tables = Tables(old.double(), later.double(), fresh, num_rows(problem.obs))
    _check(tables, rounding(old.dtype))
    return tables


def over_every_action(problem: Problem) -> Rows:
    """Put every action into every state: rows ``[A * B]``, states innermost."""
    if problem.every_action is None:
        raise EstimatorError(
            _WHERE,
            "the actions of this source cannot be enumerated",
            expected="a source that lists every action of a row",
            got="a source without such a list",
            fix="a source with few discrete actions, such as toys of one step",
        )
    size = num_rows(problem.obs)
    obs = repeat_rows(problem.obs, len(problem.every_action))
    return obs, problem.every_action.repeat_interleave(size, 0)


def _check(tables: Tables, tolerance: float) -> None:
    total = tables.mean_over_actions(torch.ones_like(tables.old[0]))
    if not bool(((total - 1).abs() < tolerance).all()):
        raise EstimatorError(
            _WHERE,
            "the actions listed by this source are not all there are, or some are listed twice",
            expected="probabilities that sum to 1 in every state",
            got=f"a sum of {float(total[(total - 1).abs().argmax()]):.6g}",
        )
    every = [table for table in (tables.old, tables.new, tables.proposal) if table is not None]
    if not all(bool(table.isfinite().all()) for table in every):
        raise EstimatorError(
            _WHERE,
            "a latent has probability zero, so that a ratio is 0 / 0",
            expected="positive probability of every latent, under the proposal too",
            got="zero somewhere",
            fix="propose from the prior or a mixture, or take a policy without hard masks",
        )


def _proposal_of(estimator: Estimator) -> Proposal | None:
    match estimator:
        case ConditionalIS() | PosteriorIS() | SplitIS():
            return estimator.proposal
        case WakeSleep() | ELBO():
            return Guide()
        case Exact() | JointScore():
            return None
        case _:
            raise _without_law(estimator)


def _proposal(tables: Tables) -> Float[Tensor, "C AB"]:
    assert tables.proposal is not None
    return tables.proposal


def _without_law(estimator: Estimator) -> EstimatorError:
    return EstimatorError(
        _WHERE,
        f"no law of the ratio is known for {type(estimator).__name__}",
        expected="exact, joint-score, conditional-is, posterior-is, split-is, wake-sleep or elbo",
        got=repr(estimator),
    )
