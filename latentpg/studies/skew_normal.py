r"""The skew-normal example of "Markovian Score Climbing" (Naesseth, Lindsten and Blei, 2020), as a policy.

The target has density :math:`\frac2\omega\,\varphi(x)\,\Phi(\alpha x)`, :math:`x = (z-\xi)/\omega`, with location
:math:`\xi = 0.5`, scale :math:`\omega = 2` and shape :math:`\alpha = 5`. It is the posterior of a policy:

.. math:: z \sim \mathcal N(\xi, \omega^2), \qquad p(a=1|z) = \Phi\big(\alpha (z-\xi)/\omega\big), \qquad \pi(1) = 1/2

given a = 1 (Azzalini, "A Class of Distributions Which Includes the Normal Ones", 1985). The guide is a Gaussian.
Minimising the inclusive divergence gives it the target's mean and variance; self-normalised importance sampling with
few particles falls short of the variance, and a Markov chain that keeps its state from step to step does not.

Every row is a replicate: it has a guide of its own, a mean and a log standard deviation, and its observation is its
number. Rows never meet, so that a batch of R rows is R independent experiments at the price of one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.estimators import Estimator, Quadrature
from latentpg.estimators.guides import GuideObjective
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import DiagNormal, Latents
from latentpg.studies.problem import Problem, Trainee
from latentpg.studies.training import Schedule, fit


@dataclass(frozen=True)
class SkewNormal:
    r"""A skew-normal law: density :math:`\frac2\omega\,\varphi(x)\,\Phi(\alpha x)` of :math:`z = \xi+\omega x`.

    >>> round(SkewNormal().variance, 3)
    1.551
    """

    loc: float | int = 0.5
    scale: float | int = 2.0
    shape: float | int = 5.0

    @property
    def delta(self) -> float:
        r"""Return :math:`\delta = \alpha/\sqrt{1+\alpha^2}`, which its moments are written in."""
        return self.shape / math.sqrt(1 + self.shape**2)

    @property
    def mean(self) -> float:
        r"""Return :math:`\xi + \omega\delta\sqrt{2/\pi}`."""
        return self.loc + self.scale * self.delta * math.sqrt(2 / math.pi)

    @property
    def variance(self) -> float:
        r"""Return :math:`\omega^2(1 - 2\delta^2/\pi)`."""
        return self.scale**2 * (1 - 2 * self.delta**2 / math.pi)

    def log_prob(self, value: Float[Tensor, "*B"]) -> Float[Tensor, "*B"]:
        """Return the log-density, with tails that do not underflow."""
        x = (value - self.loc) / self.scale
        return math.log(2 / self.scale) + dist.Normal(0.0, 1.0).log_prob(x) + torch.special.log_ndtr(self.shape * x)

    def sample(self, num_draws: int, dtype: torch.dtype | None = None) -> Float[Tensor, " N"]:
        r"""Draw :math:`\xi + \omega(\delta|u| + \sqrt{1-\delta^2}\,v)` with u and v standard normal."""
        u, v = torch.randn(2, num_draws, dtype=dtype)
        return self.loc + self.scale * (self.delta * u.abs() + math.sqrt(1 - self.delta**2) * v)


class SkewNormalModel(nn.Module):
    r"""A fixed model whose posterior given action 1 is ``target``, and R Gaussian guides; see the module's docstring.

    Observations are row numbers, int64 ``[B]``, actions zeros and ones ``[B]``, the latent ``"z"`` is ``[K, B, 1]``.
    There is no theta and no phi. ``start_loc`` and ``start_scale`` are where every guide begins.

    >>> from latentpg.programs import act
    >>> act(SkewNormalModel(3), torch.arange(3)).latents["z"].shape
    torch.Size([3, 1])
    """

    def __init__(
        self,
        num_replicates: int = 1,
        *,
        target: SkewNormal = SkewNormal(),
        start_loc: float | int = 0.0,
        start_scale: float | int = 1.0,
    ) -> None:
        """Place R guides; nothing is drawn."""
        super().__init__()
        self.target = target
        self.loc = nn.Parameter(torch.full((num_replicates, 1), float(start_loc)))
        self.log_scale = nn.Parameter(torch.full((num_replicates, 1), math.log(start_scale)))

    def model(self, obs: Int[Tensor, " B"], action: Tensor | None = None) -> Tensor:
        """Sample the latent, then which side of it an independent threshold falls."""
        target = self.target
        prior = self.loc.new_tensor([target.loc, math.log(target.scale)])
        z = pyro.sample("z", DiagNormal(prior[:1], prior[1:]))
        x = target.shape * (z.squeeze(-1) - target.loc) / target.scale
        # log-odds by two tails: a probability in float32 rounds to 0 or 1 at six standard deviations
        log_odds = torch.special.log_ndtr(x) - torch.special.log_ndtr(-x)
        return pyro.sample("action", dist.Bernoulli(logits=log_odds, validate_args=False), obs=action)

    def guide(self, obs: Int[Tensor, " B"], action: Tensor | None) -> Tensor:
        """Sample the latent from the row's own Gaussian."""
        return pyro.sample("z", DiagNormal(self.loc[obs], self.log_scale[obs]))

    def prior_parameters(self) -> list[nn.Parameter]:
        """Return none: the target stays where it is."""
        return []

    def decoder_parameters(self) -> list[nn.Parameter]:
        """Return none: the target stays where it is."""
        return []

    def guide_parameters(self) -> list[nn.Parameter]:
        """Parameters psi."""
        return [self.loc, self.log_scale]

    def rows(self) -> tuple[Tensor, Tensor]:
        """Return one row a replicate, all with action 1."""
        return torch.arange(len(self.loc)), self.loc.new_ones(len(self.loc))


@dataclass(frozen=True)
class Approximations:
    """What R replicates found: mean and variance ``[R]`` of each one's Gaussian, of parameters averaged over steps."""

    mean: Float[Tensor, " R"]
    variance: Float[Tensor, " R"]


def climb(
    estimator: Estimator,
    objective: GuideObjective,
    *,
    num_steps: int = 20_000,
    num_replicates: int = 1,
    learning_rate: float | int | Schedule = 0.001,
    average_over: float | int = 0.5,
    target: SkewNormal = SkewNormal(),
    start_loc: float | int = 0.0,
    start_scale: float | int = 1.0,
) -> Approximations:
    r"""Fit a Gaussian to the skew-normal in R independent replicates, and average the last iterates of its parameters.

    The average is over the last share ``average_over`` of the steps, of mean and log standard deviation (Polyak and
    Juditsky, 1992). The score climbing of the paper with S = 2 is ``climb(MarkovianIS(2), Recorded())``; the
    self-normalised importance sampling that it is compared with is ``climb(WakeSleep(2), Wake(2))``.

    The chain is right in the limit of small steps and many. Of the default target's variance, 1.551, it found 1.48 in
    20,000 steps at 0.001 and 1.51 in 100,000 at a rate of 0.003 / (1 + step / 3000); the other 1.11 in 20,000.
    """
    if not 0.0 < average_over <= 1.0:
        raise OptionError("climb()", "`average_over`", expected="a number in (0, 1]", got=repr(average_over))
    policy = SkewNormalModel(num_replicates, target=target, start_loc=start_loc, start_scale=start_scale)
    burn_in = num_steps - max(1, round(average_over * num_steps))
    total, seen = torch.zeros(2, num_replicates, dtype=torch.float64), 0

    def add() -> dict[str, float]:
        nonlocal seen
        if seen > burn_in:
            total.add_(torch.stack([policy.loc, policy.log_scale]).detach().squeeze(-1))
        seen += 1
        return {}

    fit(
        policy,
        policy.rows(),
        estimator=estimator,
        objective=objective,
        num_steps=num_steps,
        learning_rate=learning_rate,
        record_every=1,
        record=add,
    )
    loc, log_scale = total / (num_steps - burn_in)
    return Approximations(loc, (2 * log_scale).exp())


@dataclass(frozen=True)
class SkewNormalData:
    """Rows of a :class:`SkewNormalModel`, all with action 1, whose guides have a given mean and standard deviation.

    The defaults give every guide the target's own two moments, which is where the inclusive divergence is least. What
    a study trains starts at the standard normal, and is measured by the parameters' averages over the last half of the
    steps so far; its rows are independent repetitions.
    """

    num_rows: int = 64
    guide_loc: float | int = SkewNormal().mean
    guide_scale: float | int = math.sqrt(SkewNormal().variance)

    def __post_init__(self) -> None:
        """Check the number of rows and the guide's scale."""
        if isinstance(self.num_rows, bool) or not isinstance(self.num_rows, int) or self.num_rows < 1:
            raise OptionError("SkewNormalData()", "`num_rows`", expected="an integer >= 1", got=repr(self.num_rows))
        if not self.guide_scale > 0:
            raise OptionError(
                "SkewNormalData()", "`guide_scale`", expected="a positive number", got=repr(self.guide_scale)
            )

    def describe(self) -> str:
        """Say what the rows are."""
        return f"{self.num_rows} rows of one skew-normal posterior, Gaussian guide"

    def build(self, seed: int) -> Problem:
        """Place the guides and draw the latents that were recorded, from the posterior itself."""
        policy = SkewNormalModel(self.num_rows, start_loc=self.guide_loc, start_scale=self.guide_scale)
        obs, action = policy.rows()

        def redraw() -> Latents:
            return {"z": policy.target.sample(self.num_rows, policy.loc.dtype).unsqueeze(-1)}

        with seeded(stream_seed(seed, "latents")):
            latents = redraw()
        return Problem(
            policy,
            obs,
            action,
            latents,
            {"variance of the posterior": policy.target.variance, "variance of the guide": self.guide_scale**2},
            exact=Quadrature(num_nodes=128),
            redraw=redraw,
            trainee=lambda: averaged_trainee(self.num_rows),
        )


def averaged_trainee(num_rows: int) -> Trainee:
    """Make guides to be trained, and measure their parameters averaged over the last half of the steps so far."""
    policy = SkewNormalModel(num_rows)
    path: list[Tensor] = []

    def observe() -> None:
        path.append(torch.cat([policy.loc, policy.log_scale], 1).detach().clone())

    def measure() -> Mapping[str, Tensor]:
        loc, log_scale = torch.stack(path[len(path) // 2 :] or [torch.zeros(num_rows, 2)]).double().mean(0).T
        return {"fitted_mean": loc, "fitted_variance": (2 * log_scale).exp()}

    truths = {"true_mean": policy.target.mean, "true_variance": policy.target.variance}
    return Trainee(policy, policy.rows(), measure, truths, observe)
