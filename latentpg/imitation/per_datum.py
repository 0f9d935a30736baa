r"""Variational inference without amortisation: a density :math:`q_i(z)` of its own for every row.

A guide network is asked to find every row's best density at once, and falls short of it. With one :math:`q_i` a row
nothing is shared, and the difference of the two bounds,

.. math:: \mathbb E_i\Big[\max_{q_i}\mathcal L(q_i) - \mathcal L\big(q_\psi(\cdot|s_i,a_i)\big)\Big] ,

is the amortisation gap (C. Cremer, X. Li and D. Duvenaud, "Inference suboptimality in variational autoencoders", 2018).
:math:`q_i` has a Gaussian with independent coordinates at each Gaussian site and a table at each categorical one, and
its sites are independent of each other: where the guide's own sites hang on each other, the gap can come out negative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from jaxtyping import Int
from pyro.distributions.torch_distribution import TorchDistributionMixin
from torch import Tensor, nn
from torch.distributions import Independent

from latentpg.errors import OptionError, ShapeError, SiteError
from latentpg.estimators.guides import ELBOGuide, GuideObjective, StickingTheLanding
from latentpg.evaluation import clustered_interval
from latentpg.imitation.divergences import gaussian_parameters, guide_terms
from latentpg.imitation.rows import FitRows
from latentpg.learners import Descent
from latentpg.numerics.statistics import LEVEL, Interval
from latentpg.programs import Categorical, DiagNormal, LatentPolicy, draw_guide, num_rows


class PerDatum(nn.Module):
    """The parameters of one density a row, for N rows; :meth:`at` makes a policy of some rows with theirs as its guide.

    >>> from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
    >>> from latentpg.programs import act
    >>> policy = LinearGaussianPolicy.random(num_states=2, latent_size=3, action_size=1)
    >>> obs = torch.tensor([0, 1, 1, 0])
    >>> rows = FitRows(obs, act(policy, obs).action, torch.arange(4))
    >>> {name: list(p.shape) for name, p in PerDatum(policy, rows).named_parameters()}
    {'first.z': [4, 3], 'second.z': [4, 3]}
    """

    def __init__(self, policy: LatentPolicy, rows: FitRows) -> None:
        """Start where the policy's own guide is, at one draw of what its later sites hang on."""
        super().__init__()
        self.num_rows = rows.size
        self.first, self.second = nn.ParameterDict(), nn.ParameterDict()
        with torch.no_grad():
            drawn = draw_guide(policy, rows.obs, rows.action, num_particles=1)
        for name, fn in drawn.distributions.items():
            shape = (rows.size, *fn.event_shape)
            gaussian = gaussian_parameters(fn)
            if gaussian is not None:
                loc, log_scale = (_without_particles(value, shape) for value in gaussian)
                self.first[name], self.second[name] = nn.Parameter(loc), nn.Parameter(log_scale)
            elif isinstance(fn, dist.Categorical) and not isinstance(fn, Independent):
                self.first[name] = nn.Parameter(_without_particles(fn.logits, (rows.size, fn.logits.shape[-1])))
            else:
                raise SiteError(
                    "PerDatum()",
                    f"latent `{name}` has no density of its own here",
                    expected="Normal, DiagNormal or Categorical in the guide",
                    got=type(fn).__name__,
                )
        self.event_dims = {name: len(fn.event_shape) for name, fn in drawn.distributions.items()}

    def at(self, policy: LatentPolicy, index: Int[Tensor, " B"]) -> LocalPolicy:
        """Return the policy with these rows' own densities as its guide; rows are the ones of ``index``, in order."""
        return LocalPolicy(policy, self, index)

    def distribution(self, name: str, index: Tensor) -> TorchDistributionMixin:
        """Return a site's distribution at some rows."""
        first = self.first[name][index]
        if name not in self.second:
            return Categorical(first)
        second, event = self.second[name][index], self.event_dims[name]
        if event == 1:
            return DiagNormal(first, second)
        return dist.Normal(first, second.exp(), validate_args=False).to_event(event)


class LocalPolicy:
    """A policy whose guide looks its rows up in a :class:`PerDatum`; it runs on exactly the rows it was made for."""

    def __init__(self, policy: LatentPolicy, local: PerDatum, index: Tensor) -> None:
        """Take the policy, the table, and the rows' places in it."""
        self.policy, self.local, self.index = policy, local, index

    @property
    def flatten_particles(self) -> bool:
        """As the policy itself."""
        return bool(getattr(self.policy, "flatten_particles", False))

    def model(self, obs: Any, action: Tensor | None = None) -> Any:  # noqa: ANN401 (as the policy's)
        """Run the policy's model."""
        return self.policy.model(obs, action)

    def guide(self, obs: Any, action: Tensor | None) -> None:  # noqa: ANN401 (as the policy's)
        """Sample every site from its row's own density."""
        copies, rest = divmod(num_rows(obs), len(self.index))
        if rest:
            raise ShapeError(
                "LocalPolicy.guide()",
                "`obs`",
                expected=f"the B={len(self.index)} rows that this guide was made for",
                got=f"{num_rows(obs)} rows",
                fix="per_datum.at(policy, index) for those rows",
            )
        index = self.index.repeat(copies)  # K copies, particles outermost, where a program cannot broadcast
        for name in self.local.event_dims:
            pyro.sample(name, self.local.distribution(name, index))

    def prior_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters phi."""
        return self.policy.prior_parameters()

    def decoder_parameters(self) -> Sequence[nn.Parameter]:
        """Parameters theta."""
        return self.policy.decoder_parameters()

    def guide_parameters(self) -> Sequence[nn.Parameter]:
        """Return the densities' parameters, those of all N rows."""
        return list(self.local.parameters())


@dataclass(frozen=True)
class AmortisationGap:
    """Bounds in nats a row with intervals between episodes: the guide's, that of each row's own density, and the gap.

    ``gap`` is the mean of the rows' differences. Both bounds are means over as many draws, and what the optimiser did
    not find is missing from the gap.
    """

    amortised: Interval
    optimised: Interval
    gap: Interval

    def lines(self) -> list[str]:
        """Say it in words."""
        numbers = [f"{x.value:.3f} [{x.low:.3f}, {x.high:.3f}]" for x in (self.amortised, self.optimised, self.gap)]
        return [
            f"bound with the guide {numbers[0]}, with a density of each row's own {numbers[1]} nats a row",
            f"  amortisation gap {numbers[2]} nats a row",
        ]


def fit_per_datum(
    policy: LatentPolicy,
    rows: FitRows,
    *,
    num_steps: int = 500,
    learning_rate: float | int = 0.05,
    num_particles: int = 8,
) -> PerDatum:
    """Climb each row's own bound with the model held fixed, all rows at once, at a rate that falls linearly to zero.

    Gaussian sites alone are climbed along the path only, whose noise vanishes where the density is the posterior;
    categorical ones by score function.
    """
    for name, value in (("num_steps", num_steps), ("num_particles", num_particles)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError("fit_per_datum()", f"`{name}`", expected="an integer >= 1", got=repr(value))
    if not 0 < learning_rate < math.inf:
        raise OptionError("fit_per_datum()", "`learning_rate`", expected="a number > 0", got=repr(learning_rate))
    local = PerDatum(policy, rows)
    view = local.at(policy, torch.arange(rows.size, device=rows.device))
    pathwise = all(name in local.second for name in local.event_dims)
    objective: GuideObjective = StickingTheLanding(num_particles) if pathwise else ELBOGuide(num_particles)
    descent = Descent(dict(local.named_parameters()), learning_rate=learning_rate, epsilon=1e-8)
    for step in range(num_steps):
        descent.set_rate(learning_rate * (1 - step / num_steps))
        # a sum, and no clipping, so that a row's way does not hang on how many others there are
        descent.step(objective.loss(view, rows.obs, rows.action).sum())
    return local


def amortisation_gap(
    policy: LatentPolicy,
    rows: FitRows,
    *,
    num_steps: int = 500,
    learning_rate: float | int = 0.05,
    num_particles: int = 8,
    num_draws: int = 256,
    level: float = LEVEL,
) -> AmortisationGap:
    """Measure what the guide loses by being one network for all rows; see the module's docstring.

    ``num_draws`` of each density a row make the bounds. Draws come from the ambient stream.
    """
    local = fit_per_datum(policy, rows, num_steps=num_steps, learning_rate=learning_rate, num_particles=num_particles)
    with torch.no_grad():
        views = (policy, local.at(policy, torch.arange(rows.size, device=rows.device)))
        amortised, optimised = [_bound(view, rows, num_draws) for view in views]
    return AmortisationGap(
        clustered_interval(amortised, rows.episode, level=level),
        clustered_interval(optimised, rows.episode, level=level),
        clustered_interval(optimised - amortised, rows.episode, level=level),
    )


def _bound(policy: LatentPolicy, rows: FitRows, num_draws: int) -> Tensor:
    """Return the mean of log w over draws: unlike the closed form's, its noise vanishes at the posterior."""
    terms = guide_terms(policy, rows.obs, rows.action, num_particles=num_draws, closed_form=False)
    return terms.log_bound.double().mean(0)


def _without_particles(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return parameters ``[B, ...]`` of what may be ``[...]``, ``[B, ...]`` or ``[1, B, ...]``, as their own copy."""
    return value.expand(1, *shape)[0].clone()
