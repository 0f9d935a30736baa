r"""Controllers: numbers that move between updates, kept outside the losses that use them.

A loss is a function of its arguments; what changes from one rollout to the next is held by the learner and passed
through a controller, a frozen dataclass of options whose method maps the old number to the new one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from latentpg.errors import OptionError
from latentpg.numerics._checks import positive


@dataclass(frozen=True)
class AdaptiveBeta:
    r"""PPO's rule for the coefficient of its KL penalty: chase a target divergence by doubling and halving.

    .. math:: \beta \leftarrow \beta / f \text{ if } d < d_{targ}/c, \qquad \beta \leftarrow \beta f \text{ if } d >
       c\,d_{targ}

    with the tolerance c = 1.5 and the factor f = 2 of the paper, which says that neither matters much.

    Source: J. Schulman et al., "Proximal policy optimization algorithms", 2017, section 4.

    >>> controller = AdaptiveBeta(target=0.01)
    >>> controller.next(1.0, kl=0.02), controller.next(1.0, kl=0.001), controller.next(1.0, kl=0.012)
    (2.0, 0.5, 1.0)
    """

    target: float | int
    """The divergence :math:`d_{targ}` wanted of one update."""
    tolerance: float | int = 1.5
    """Deviations from the target by less than this factor leave the coefficient as it is."""
    factor: float | int = 2.0
    """What the coefficient is multiplied with, or divided by."""
    smallest: float | int = 1e-6
    """Never below this: a coefficient of 0 could not grow again."""
    largest: float | int = 1e6
    """Never above this."""

    def __post_init__(self) -> None:
        """Refuse options under which the rule would not steer."""
        for name in ("target", "smallest", "largest"):
            positive("AdaptiveBeta()", name, getattr(self, name))
        for name in ("tolerance", "factor"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 1.0):
                raise OptionError("AdaptiveBeta()", f"`{name}`", expected="a number above 1", got=repr(value))
        if self.smallest > self.largest:
            raise OptionError(
                "AdaptiveBeta()",
                "`smallest` and `largest`",
                expected="smallest <= largest",
                got=f"{self.smallest!r} and {self.largest!r}",
            )

    def next(self, beta: float | int, *, kl: float | int) -> float:
        r"""Return the coefficient for the next rollout, from the one just used and the divergence it led to.

        ``kl`` is the mean of KL(old || new) over the rollout. A noisy estimate below 0 counts as small; one that is
        not finite is an error.
        """
        positive("AdaptiveBeta.next()", "beta", beta)
        if not math.isfinite(kl):
            raise OptionError(
                "AdaptiveBeta.next()", "`kl`", expected="a finite number", got=repr(kl), likely="the update diverged"
            )
        if kl > self.tolerance * self.target:
            beta = beta * self.factor
        elif kl < self.target / self.tolerance:
            beta = beta / self.factor
        return float(min(max(beta, self.smallest), self.largest))
