r"""How likely held-out actions are: in nats, summed over dimensions, in the units of the data.

:math:`\log\pi(a|s)` of a row is the log-likelihood of all that its latent stands for: a step, a chunk, an
episode. Three ways to it, and what each is worth:

===============================  ===========  =====================================================================
:func:`exact_likelihood`         exact        discrete latents, by enumeration
:func:`quadrature_likelihood`    exact        up to three Gaussian dimensions, to the tolerance that it checks
:func:`iwae_curve`               lower bound  any latent; too small by about Var(w̃)/2K (with :mod:`.ais` for less)
===============================  ===========  =====================================================================

Rows come in episodes, and every interval is between episodes (:mod:`latentpg.evaluation.clustered`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.estimators import Estimator, Exact, Guide, Proposal, Quadrature
from latentpg.estimators.base import check_log_weights
from latentpg.evaluation.clustered import student_quantile
from latentpg.evaluation.report import EXACT, LOWER_BOUND, Likelihood, as_text, report_likelihood
from latentpg.numerics.statistics import LEVEL, Interval
from latentpg.numerics.weights import log_mean_exp
from latentpg.programs import LatentPolicy, Observations, Span, log_joint, num_rows, take_rows
from latentpg.programs.run import check_rows

BLOCK = 2**16
"""Values (latents times rows) that are held at a time."""

PIECE = 2**18
"""Steps (latents times rows times steps of a row) that are scored in one piece."""


@dataclass(frozen=True)
class IWAEPoint:
    r"""The K-particle bound of the same rows at one K.

    ``bound`` is the mean over rows of :math:`\mathbb E\log\frac1K\sum_k w_k` with its interval between episodes, and
    ``noise`` the same value with the interval of the *particles* alone, which says how well the bound of these very
    rows is known. ``bias`` is :math:`-\operatorname{Var}(\tilde w)/2K` averaged over rows: what the bound lacks of the
    likelihood, to first order.
    """

    num_particles: int
    bound: Interval
    noise: Interval
    bias: float


@dataclass(frozen=True)
class IWAECurve:
    """The bound against K, and the likelihood of the largest K as a report; see :func:`iwae_curve`."""

    points: tuple[IWAEPoint, ...]
    likelihood: Likelihood

    def lines(self) -> list[str]:
        """Say it in words, one line a K."""
        rows = [
            f"  K = {point.num_particles:<6} {as_text(point.bound)} nats a row, bias {point.bias:.3f}"
            for point in self.points
        ]
        return [*self.likelihood.lines(), *rows]


def exact_likelihood(
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    cluster: Int[Tensor, " B"],
    *,
    action_scale: Float[Tensor, "*A"] | None = None,
    level: float = LEVEL,
) -> Likelihood:
    r"""Enumerate discrete latents, :math:`\log\sum_z p(z, a|s)`, in blocks of rows.

    A continuous latent is a :class:`~latentpg.errors.SiteError`.
    """
    with torch.no_grad():
        values = in_blocks(_estimating(Exact(), policy), obs, action, _support_size(policy, obs, action))
    return report_likelihood(
        values, obs, action, cluster, kind=EXACT, method="enumerated", action_scale=action_scale, level=level
    )


def quadrature_likelihood(
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    cluster: Int[Tensor, " B"],
    *,
    num_nodes: int = 32,
    tolerance: float = 1e-5,
    action_scale: Float[Tensor, "*A"] | None = None,
    level: float = LEVEL,
) -> Likelihood:
    """Integrate up to three Gaussian dimensions on a grid centred on the guide, discrete latents summed beside them.

    Exact to ``tolerance`` nats a row, as far as doubling the nodes can tell; where that moves a value by more it is a
    :class:`~latentpg.errors.QuadratureError`.
    """
    rule = Quadrature(num_nodes, tolerance)
    method = f"Gauss-Hermite quadrature, {num_nodes} nodes a dimension, settled to {tolerance:g} nats"
    with torch.no_grad():
        values = in_blocks(_estimating(rule, policy), obs, action, (2 * num_nodes) ** 2)
    return report_likelihood(
        values, obs, action, cluster, kind=EXACT, method=method, action_scale=action_scale, level=level
    )


def iwae_curve(
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    cluster: Int[Tensor, " B"],
    *,
    num_particles: tuple[int, ...] = (1, 4, 16, 64, 256),
    num_replicates: int = 4,
    proposal: Proposal = Guide(),  # noqa: B008 (a frozen choice without state)
    action_scale: Float[Tensor, "*A"] | None = None,
    level: float = LEVEL,
) -> IWAECurve:
    r"""Bound the likelihood by importance sampling with K particles, for each K asked for.

    With :math:`\tilde w = p(z|s,a)/r(z)`, of mean one under the proposal r,

    .. math:: \mathbb E\log\frac1K\sum_k w_k = \log\pi(a|s) - \frac{\operatorname{Var}(\tilde w)}{2K} + O(K^{-2})

    (Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders", 2016; the expansion: S. Nowozin, "Debiasing
    evidence approximations", 2018). R replicates of the largest K are drawn and shared out among the smaller ones, so
    that a bound at K rests on R * max(K) / K estimates a row. The variance comes from all R * max(K) weights and is
    itself found too small where they have a heavy tail: then the curve still rises at its end, and more particles, a
    better guide or annealing (:func:`~latentpg.evaluation.ais.annealed_likelihood`) are called for.
    """
    where = "iwae_curve()"
    ladder = _check_ladder(where, num_particles)
    if num_replicates < 2:
        raise OptionError(
            where, "`num_replicates`", expected="2 or more, to tell their spread", got=repr(num_replicates), fix="4"
        )

    def weigh(some: Observations, taken: Tensor) -> Tensor:
        drawn = [proposal.draw(policy, some, taken, ladder[-1]) for _ in range(num_replicates)]
        each = [log_joint(policy, some, taken, one.latents) - one.log_prob for one in drawn]
        log_weight = torch.cat(each)
        check_log_weights(where, log_weight)
        return torch.stack(_summarize(log_weight.double(), ladder), 1)

    with torch.no_grad():
        table = in_blocks(weigh, obs, action, num_replicates * ladder[-1])
    mean, spread, variance = table[:, : len(ladder)], table[:, len(ladder) : -1], table[:, -1]
    points, reports = [], []
    for column, size in enumerate(ladder):
        report = report_likelihood(
            mean[:, column],
            obs,
            action,
            cluster,
            kind=LOWER_BOUND,
            method=f"importance sampling, K = {size}",
            action_scale=action_scale,
            level=level,
        )
        # of each of the B rows this many estimates are independent, and their spreads are pooled
        degrees = len(mean) * (num_replicates * ladder[-1] // size - 1)
        reach = student_quantile(degrees, level=level) * float(spread[:, column].sum().sqrt()) / len(mean)
        value = report.per_row.value
        noise = Interval(value, value - reach, value + reach)
        points.append(IWAEPoint(size, report.per_row, noise, -float(variance.mean()) / (2 * size)))
        reports.append(report)
    return IWAECurve(tuple(points), reports[-1])


def _summarize(log_weight: Float[Tensor, "M B"], ladder: tuple[int, ...]) -> list[Tensor]:
    r"""Return each K's mean bound, the squared standard error of that mean, and at the end :math:`Var(\tilde w)`."""
    means, errors = [], []
    for size in ladder:
        bounds = log_mean_exp(log_weight.unflatten(0, (-1, size)).transpose(0, 1))
        means.append(bounds.mean(0))
        errors.append(bounds.var(0) / len(bounds))
    relative = (log_weight - log_mean_exp(log_weight)).exp()
    return [*means, *errors, relative.var(0)]


def _estimating(estimator: Estimator, policy: LatentPolicy) -> Callable[[Observations, Tensor], Tensor]:
    def run(obs: Observations, action: Tensor) -> Tensor:
        particles = estimator.propose(policy, obs, action)
        return estimator.estimate(policy, obs, action, particles).log_prob.double()

    return run


def _support_size(policy: LatentPolicy, obs: Observations, action: Tensor) -> int:
    one = slice(0, 1)
    return Exact().propose(policy, take_rows(obs, one), action[one]).num_particles


def in_blocks(
    run: Callable[[Observations, Tensor], Tensor], obs: Observations, action: Tensor, size: int, *, block: int = BLOCK
) -> Tensor:
    """Run on as many rows at a time as keep ``size`` values each within a block, and join what comes back.

    Rows of many steps are fewer at a time: no more than :data:`PIECE` steps are scored at once, or those of one row.
    """
    longest = obs.mask.shape[1] if isinstance(obs, Span) else 1
    rows, step = num_rows(obs), max(1, min(block // size, PIECE // (size * max(1, longest))))
    if rows == 0:
        raise ShapeError(
            "held-out likelihood", "`obs`", expected="at least one row", got="none", likely="an empty split"
        )
    check_rows(action, rows)
    parts = [slice(start, start + step) for start in range(0, rows, step)]
    return torch.cat([run(take_rows(obs, part), action[part]) for part in parts])


def _check_ladder(where: str, num_particles: tuple[int, ...]) -> tuple[int, ...]:
    ladder = tuple(sorted(set(num_particles)))
    if not ladder or ladder[0] < 1 or any(ladder[-1] % size for size in ladder):
        raise OptionError(
            where,
            "`num_particles`",
            expected="integers >= 1 that divide the largest",
            got=repr(num_particles),
            fix="num_particles=(1, 4, 16, 64)",
        )
    return ladder
