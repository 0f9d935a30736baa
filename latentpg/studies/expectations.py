"""What theory says of each estimator's gradient, said before anything is measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Kind(Enum):
    """How an estimator's expected gradient relates to the exact one."""

    EXACT = "exact"
    UNBIASED = "unbiased"
    VANISHING = "bias falls as 1/K"
    CHAIN = "bias of a short chain"
    BOUND = "gradient of a bound"
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
"""One claim for every registered estimator; ``tests/studies`` holds the list complete."""


def expectation_of(estimator: str) -> Expectation:
    """Return the claim about an estimator, or say that there is none."""
    return EXPECTATIONS.get(estimator, Expectation(Kind.UNKNOWN, "no claim is recorded for it"))
