"""How a fit goes: epochs, minibatches, rates, and when it stops."""

from __future__ import annotations

import math
from dataclasses import dataclass

from latentpg.errors import OptionError

SCHEDULES = ("constant", "linear", "cosine")
"""What becomes of the learning rate over a fit."""


@dataclass(frozen=True)
class FitOptions:
    """Numbers of a fit, whatever the objective.

    ``guide_learning_rate`` is psi's, and that of densities of each row's own; None takes ``learning_rate``. Rates rise
    linearly over the first ``warmup`` share of the fit, and then stay, or fall to ``final_rate`` of themselves in a
    straight line or along half a cosine. Losses are divided by the numbers that a row has on average, so that
    ``max_grad_norm`` means the same for steps and for whole episodes.

    The model is measured every ``evaluate_every`` epochs on what is held out (on ``valid_particles`` draws of the guide
    where it cannot be enumerated), and the best is kept. ``patience`` measurements in a row without a gain of
    ``min_gain`` nats a row end the fit; 0 never.

    ``match_prior_every`` takes the prior from the optimiser: before the first epoch, after every so many, and before
    every measurement, phi is set by the policy's own ``match_prior(obs, action)`` on all rows instead
    (:meth:`~latentpg.policies.episode.EpisodePolicy.match_prior`); None leaves phi to the gradient.

    ``observation_noise`` is the standard deviation of Gaussian noise, in the units of the observations as they are
    handed in, that minibatches see on every entry. It is training's alone: measurements and the matching of a prior
    see observations as they are.
    """

    num_epochs: int = 100
    batch_size: int = 256
    learning_rate: float | int = 1e-3
    guide_learning_rate: float | int | None = None
    schedule: str = "cosine"
    warmup: float | int = 0.0
    final_rate: float | int = 0.0
    max_grad_norm: float | int = 10.0
    evaluate_every: int = 1
    valid_particles: int = 64
    patience: int = 0
    min_gain: float | int = 0.0
    match_prior_every: int | None = None
    observation_noise: float | int = 0.0

    def __post_init__(self) -> None:
        """Check the numbers."""
        where = "FitOptions()"
        for name, least in (
            ("num_epochs", 1),
            ("batch_size", 1),
            ("evaluate_every", 1),
            ("valid_particles", 1),
            ("patience", 0),
        ):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise OptionError(where, f"`{name}`", expected=f"an integer >= {least}", got=repr(value))
        rates = {"learning_rate": self.learning_rate, "max_grad_norm": self.max_grad_norm}
        if self.guide_learning_rate is not None:
            rates["guide_learning_rate"] = self.guide_learning_rate
        for name, rate in rates.items():
            if not rate > 0 or (rate == math.inf and name != "max_grad_norm"):
                raise OptionError(where, f"`{name}`", expected="a number > 0", got=repr(rate))
        for name, share in (("warmup", self.warmup), ("final_rate", self.final_rate)):
            if not 0 <= share <= 1:
                raise OptionError(where, f"`{name}`", expected="a number in [0, 1]", got=repr(share))
        if self.schedule not in SCHEDULES:
            raise OptionError(where, "`schedule`", expected=", ".join(SCHEDULES), got=repr(self.schedule))
        if not 0 <= self.min_gain < math.inf:
            raise OptionError(where, "`min_gain`", expected="a number >= 0", got=repr(self.min_gain))
        every = self.match_prior_every
        if every is not None and (isinstance(every, bool) or not isinstance(every, int) or every < 1):
            raise OptionError(
                where, "`match_prior_every`", expected="a number of epochs, an integer >= 1, or None", got=repr(every)
            )
        if not 0 <= self.observation_noise < math.inf:
            raise OptionError(where, "`observation_noise`", expected="a number >= 0", got=repr(self.observation_noise))

    def rate(self, progress: float) -> float:
        """Return what learning rates are multiplied by at a share of the fit, in [0, 1].

        >>> options = FitOptions(schedule="linear", warmup=0.5)
        >>> [options.rate(p) for p in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
        """
        if progress < self.warmup:
            return progress / self.warmup
        left = 1.0 if self.warmup == 1 else (progress - self.warmup) / (1 - self.warmup)
        fall = {"constant": 0.0, "linear": left, "cosine": 0.5 * (1 - math.cos(math.pi * left))}[self.schedule]
        return 1.0 - (1.0 - self.final_rate) * fall
