"""What theory says of each estimator, said before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How an estimator's expectation relates to the exact answer."""

    EXACT = "exact"
    UNBIASED = "unbiased"
    VANISHING = "bias falls as 1/K"
    CHAIN = "bias of a short chain"
    BOUND = "of a bound"
    UNKNOWN = "not stated"


@dataclass(frozen=True)
class Expectation:
    """A claim about an estimator, why it holds, and whether the latent recorded while acting is part of it."""

    kind: Kind
    reason: str
    retains_recorded: bool = False


EXPECTATIONS: Mapping[str, Expectation] = {
    "exact": Expectation(Kind.EXACT, "sums over every value of the latent; the reference itself"),
    "quadrature": Expectation(
        Kind.EXACT, "discrete latents are enumerated; no Gaussian dimension is left to integrate"
    ),
    "joint-score": Expectation(
        Kind.UNBIASED, "the recorded latent is a posterior draw, which is all the posterior identity needs", True
    ),
    "conditional-is": Expectation(
        Kind.UNBIASED,
        "the recorded latent is kept among the particles: exact in expectation for every K and proposal",
        True,
    ),
    "posterior-is": Expectation(Kind.VANISHING, "self-normalised weights of fresh particles"),
    "split-is": Expectation(
        Kind.VANISHING, "the gradient of its first set is that of posterior-is; 2K particles in all"
    ),
    "wake-sleep": Expectation(Kind.VANISHING, "the same gradient as posterior-is with the guide as proposal"),
    "markovian-is": Expectation(Kind.CHAIN, "a fresh chain has not forgotten its start; exact in its limit"),
    "elbo": Expectation(Kind.BOUND, "exact for a lower bound of log pi; more particles lower its noise, not its bias"),
    "reparameterized": Expectation(Kind.VANISHING, "fresh noise, importance sampling from the prior"),
}
"""One claim for every registered estimator, of its gradient; ``tests/studies`` holds the list complete."""

_LINEAR = frozenset({"gradient", "policy-gradient", "ratio", "ratio-gradient"})
"""Targets that are linear in what a retained latent makes exact: the gradient at the old policy, and the ratio."""

_OF_ONE_BOUND = frozenset({"value", "gradient", "policy-gradient"})
"""Targets in which a mean over the guide's draws stays a mean, so that its bias does not depend on K."""

_OF_OBJECTIVES: Mapping[str, Expectation] = {
    **{
        name: Expectation(Kind.UNBIASED, "exact in expectation for the gradient of the evidence lower bound")
        for name in ("elbo", "elbo-score", "elbo-stl")
    },
    **{
        name: Expectation(Kind.UNBIASED, "exact in expectation for the gradient of the K-particle bound")
        for name in ("iwae", "iwae-dreg", "vimco")
    },
    "wake": Expectation(Kind.VANISHING, "self-normalised weights of fresh particles"),
    "sleep": Expectation(Kind.UNKNOWN, "exact on the policy's own actions, not on the rows'"),
    "recorded": Expectation(Kind.UNBIASED, "the recorded latent is a posterior draw", True),
    "conditional-wake": Expectation(Kind.UNBIASED, "the recorded latent is kept among the particles", True),
}


def expectation_of(estimator: str, target: str = "gradient", *, role: str = "estimator") -> Expectation:
    """Return the claim about an estimator's answer to a kind of target, or about a guide objective's gradient."""
    if role == "objective":
        return _OF_OBJECTIVES.get(estimator, Expectation(Kind.UNKNOWN, "no claim is recorded for it"))
    known = EXPECTATIONS.get(estimator, Expectation(Kind.UNKNOWN, "no claim is recorded for it"))
    if estimator == "elbo" and target not in _OF_ONE_BOUND:
        return Expectation(
            Kind.UNKNOWN, "a nonlinear function of bounds, or of two of them: what K does to it is not stated"
        )
    if known.kind is not Kind.UNBIASED or target in _LINEAR:
        return known
    if estimator == "joint-score":
        reason = "the joint's own answer, whatever K: for a nonlinear target not the marginal's"
        return Expectation(Kind.BOUND, reason, known.retains_recorded)
    return Expectation(Kind.VANISHING, "nonlinear in what is exact: biased again, less as K grows", True)
