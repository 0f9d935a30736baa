r"""Is the latent used? Measures of posterior collapse, and of a prior that misses where the posterior lies.

A decoder that ignores z can have a fine likelihood and one way of acting only. And a policy whose latent is used may
still fail when it acts, because z is then drawn from the prior, and the decoder was trained where the guide put it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from latentpg.errors import EstimatorError, OptionError, ShapeError
from latentpg.evaluation.clustered import check_clusters, clustered_interval
from latentpg.numerics.statistics import LEVEL, Interval
from latentpg.numerics.weights import log_mean_exp
from latentpg.policies.priors import NormalMixture
from latentpg.programs import (
    DiagNormal,
    LatentPolicy,
    Latents,
    Observations,
    act,
    conditionals,
    draw,
    draw_guide,
    draw_prior,
    drawing,
    num_rows,
    score_model,
    score_prior,
)
from latentpg.programs.capture import ACTION

ACTIVE = 0.01
"""Variance of a unit's posterior mean over the data above which it counts as active (Burda et al., 2016)."""

LatentSource = Callable[[LatentPolicy, Observations], Latents]
"""A way to draw one z a row when acting: latents ``[B, ...]`` by site."""


@dataclass(frozen=True)
class Units:
    """By site: KL and activity of each unit ``[Z]``, in nats and in squared standard deviations of the prior.

    Each site has its own Z. A categorical site is one unit and has no activity. ``active`` counts units above
    :data:`ACTIVE`. ``whole`` is the KL of all of a site, one number: the sum over units, except where a prior's
    coordinates hang together (a mixture's), whose units are held against marginals.
    """

    kl: Mapping[str, Tensor]
    activity: Mapping[str, Tensor]
    whole: Mapping[str, float]

    @property
    def active(self) -> int:
        """How many Gaussian units are active."""
        return sum(int((value > ACTIVE).sum()) for value in self.activity.values())


def measure_units(policy: LatentPolicy, obs: Observations, action: Tensor, *, num_particles: int = 16) -> Units:
    r"""Measure every latent unit on data: :math:`\mathrm{KL}(q_\psi(z_i|s,a)\,\|\,p_\phi(z_i|s))` and its activity.

    The KL is averaged over rows, in closed form; a site that depends on an earlier one is averaged over
    ``num_particles`` draws of it from the guide. The activity is the variance over rows of
    :math:`(\mu_q - \mu_p)/\sigma_p`, the guide's mean in the prior's units: with a standard prior this is the measure
    of Y. Burda, R. Grosse and R. Salakhutdinov ("Importance weighted autoencoders", 2016); with a learned one it does
    not count what follows from the observation alone. A guide far from the posterior makes both wrong.

    Where there is no closed form the KL is a mean over ``num_particles`` draws of the guide a row, with their noise,
    and can come out below zero. Under a :class:`~latentpg.policies.priors.NormalMixture` each unit is held against its
    own marginal, :math:`\mathrm{KL}(q(z_i)\,\|\,p(z_i))`, and
    the prior's units are the mean and deviation of the mixture as a whole.
    """
    with torch.no_grad():
        guide = draw_guide(policy, obs, action, num_particles=num_particles)
        prior = score_prior(policy, obs, guide.latents)
        if list(guide.latents) != list(prior.latents):
            raise EstimatorError(
                "measure_units()",
                "`guide` samples its sites in another order than `model`, so that no unit has a divergence of its own",
                expected=str(list(prior.latents)),
                got=str(list(guide.latents)),
                fix="measure_information() asks about all of them together",
            )
        kl, activity, whole = {}, {}, {}
        for name, q in guide.distributions.items():
            p, z = prior.distributions[name], guide.latents[name]
            rows, units = num_rows(obs), q.event_shape.numel()
            kl[name], whole[name] = _site_kl(q, p, z)
            if _is_vector(q) and _is_vector(p):
                offset = ((q.mean - p.mean) / p.variance.sqrt()).expand(z.shape)
                means = offset.reshape(-1, rows, units).mean(0)
                activity[name] = means.var(0) if rows > 1 else torch.zeros_like(means[0])
    return Units(kl, activity, whole)


@dataclass(frozen=True)
class Information:
    r"""Bounds of I(z; a | s) in nats, on the policy's own actions; ``cap`` is log K, which ``lower`` cannot exceed.

    ``saturated`` warns that the lower bound lies within half a nat of its cap: the truth may then be anything above.
    """

    lower: Interval
    upper: Interval
    cap: float

    @property
    def saturated(self) -> bool:
        """Whether the cap may be what was measured."""
        return self.lower.high > self.cap - 0.5


def measure_information(
    policy: LatentPolicy,
    obs: Observations,
    cluster: Int[Tensor, " B"],
    *,
    num_particles: int = 256,
    level: float = LEVEL,
) -> Information:
    r"""Bound the mutual information of latent and action given the observation, from below and from above.

    Rows dream :math:`z_0, a \sim p(z, a|s)`; with :math:`z_1, \dots, z_{K-1} \sim p(z|s)`

    .. math:: \mathbb E\log\frac{p(a|z_0)}{\frac1K\sum_{k=0}^{K-1} p(a|z_k)} \;\le\; I(z; a|s) \;\le\;
       \mathbb E\log\frac{p(a|z_0)}{\frac1{K-1}\sum_{k=1}^{K-1} p(a|z_k)}.

    The lower one is at most log K, however much there is to know; the upper one has no such cap and a heavy tail where
    K is small (B. Poole, S. Ozair, A. van den Oord, A. A. Alemi and G. Tucker, "On variational bounds of mutual
    information", 2019, with the decoder in the critic's place). Near zero the latent is ignored.
    """
    where = "measure_information()"
    if num_particles < 2:
        raise OptionError(where, "`num_particles`", expected="2 or more", got=repr(num_particles), fix="256")
    cluster = check_clusters(where, cluster, num_rows(obs))
    with torch.no_grad():
        dreamed = act(policy, obs)
        others = draw_prior(policy, obs, num_particles=num_particles - 1).latents
        latents = {name: torch.cat([value.unsqueeze(0), others[name]]) for name, value in dreamed.latents.items()}
        log_likelihood = score_model(policy, obs, dreamed.action, latents).log_likelihood.double()
    lower = log_likelihood[0] - log_mean_exp(log_likelihood)
    upper = log_likelihood[0] - log_mean_exp(log_likelihood[1:])
    return Information(
        clustered_interval(lower, cluster, level=level),
        clustered_interval(upper, cluster, level=level),
        math.log(num_particles),
    )


@dataclass(frozen=True)
class Mismatch:
    """How far the aggregate posterior lies from the prior: squared MMD, and what it would be if they were one.

    ``null`` is the 95 % quantile of the same statistic with labels exchanged by episode, ``p_value`` the share of such
    exchanges that reach it.
    """

    mmd: float
    null: float
    p_value: float


def measure_mismatch(
    policy: LatentPolicy,
    obs: Observations,
    action: Tensor,
    cluster: Int[Tensor, " B"],
    *,
    num_exchanges: int = 200,
) -> Mismatch:
    r"""Compare z from the guide, averaged over the data, with z from the prior at the same observations.

    A prior can only be right if :math:`\mathbb E_{data}\,q(z|s,a) = \mathbb E_{data}\,p(z|s)`. The statistic is the
    unbiased squared maximum mean discrepancy with one draw of each a row,

    .. math:: \frac1{|P|}\sum_{(i,j)\in P} k(x_i,x_j) + k(y_i,y_j) - k(x_i,y_j) - k(x_j,y_i),

    P the pairs of rows from different episodes, which are independent, and k the mean of Gaussian kernels of .5, 1 and
    2 times the median distance; discrete sites are written as indicators (A. Gretton, K. M. Borgwardt, M. J. Rasch,
    B. Schölkopf and A. Smola, "A kernel two-sample test", 2012). It is zero in expectation if the two are one, and so
    can be negative. Only the averages over s are compared, not row by row. The exchange is exact where the two draws of
    a row could be exchanged, and otherwise only nearly right.
    """
    where, rows = "measure_mismatch()", num_rows(obs)
    index = check_clusters(where, cluster, rows).unique(return_inverse=True)[1]
    episodes = int(index.max()) + 1
    if episodes < 4 or num_exchanges < 20:
        raise OptionError(
            where,
            "`cluster` and `num_exchanges`",
            expected="4 episodes and 20 exchanges or more",
            got=f"{episodes} and {num_exchanges}",
        )
    with torch.no_grad():
        guide = draw_guide(policy, obs, action, num_particles=1).latents
        prior = draw_prior(policy, obs, num_particles=1).latents
        x, y = _flat(guide, prior), _flat(prior, guide)
        kernel = _kernel(torch.cat([x, y]))
    # +1 marks a draw of the guide, -1 one of the prior: the statistic is a quadratic form in these signs
    same, cross = kernel[:rows, :rows] + kernel[rows:, rows:], kernel[:rows, rows:] + kernel[rows:, :rows]
    apart = index.unsqueeze(1) != index
    form = (same - cross) * apart / apart.sum()
    flips = 2.0 * torch.randint(2, (num_exchanges, episodes)).to(form) - 1
    signs = flips[:, index]
    # exchanging the labels of rows i and j turns the sign of their term only if one of them was exchanged
    exchanged = ((signs @ form) * signs).sum(-1)
    found = float(form.sum())
    p_value = (1 + int((exchanged >= found - 1e-15).sum())) / (1 + num_exchanges)
    return Mismatch(found, float(exchanged.quantile(0.95)), p_value)


def draw_from_prior(policy: LatentPolicy, obs: Observations) -> Latents:
    """Draw z as the policy itself does."""
    return {name: value[0] for name, value in draw_prior(policy, obs, num_particles=1).latents.items()}


def prior_mean(policy: LatentPolicy, obs: Observations) -> Latents:
    """Take the prior's mean at every Gaussian site, and the likeliest value at every discrete one.

    A site that depends on an earlier one is taken at the value that was chosen there.
    """
    with drawing(_Likeliest()):
        return draw_from_prior(policy, obs)


def from_bank(bank: Latents) -> LatentSource:
    """Draw z from stored ones ``[N, ...]``, such as the guide's on the training data: the aggregate posterior."""
    if not bank or len({len(value) for value in bank.values()}) != 1:
        raise ShapeError(
            "from_bank()",
            "`bank`",
            expected="latents [N, ...] of every site, the same N each",
            got=str({name: list(value.shape) for name, value in bank.items()}),
        )

    def source(policy: LatentPolicy, obs: Observations) -> Latents:
        size = len(next(iter(bank.values())))
        here = next(iter(bank.values())).device
        index = torch.randint(size, (num_rows(obs),), device=here)
        return {name: value[index] for name, value in bank.items()}

    return source


def act_with(policy: LatentPolicy, obs: Observations, source: LatentSource) -> Tensor:
    """Draw an action ``[B, ...]`` from the decoder at the z of a source: the hook for roll-outs with another z."""
    with torch.no_grad():
        latents = {name: value.unsqueeze(0) for name, value in source(policy, obs).items()}
        return draw(ACTION, conditionals(policy, obs, latents)[ACTION])[0]


def measure_sensitivity(
    sources: Mapping[str, LatentSource], measure: Callable[[LatentSource], Interval]
) -> dict[str, Interval]:
    """Measure the same thing, such as success in roll-outs by :func:`act_with`, for each way to draw z.

    A success rate that falls from the training posterior's z to the prior's says that the prior fails, not the decoder.
    """
    if not sources:
        raise OptionError(
            "measure_sensitivity()", "`sources`", expected="at least one", got="none", fix="draw_from_prior"
        )
    return {name: measure(source) for name, source in sources.items()}


class _Likeliest:
    """A source of draws that answers with the middle of each distribution."""

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        shape = sample_shape + fn.batch_shape + fn.event_shape
        if not fn.has_enumerate_support:
            return fn.mean.expand(shape)
        values = fn.enumerate_support(expand=False)
        best = fn.log_prob(values).argmax(0)
        return values.reshape(len(values), *fn.event_shape)[best].expand(shape)


def _gaussian(fn: Distribution) -> Normal | None:
    """Return independent coordinates as such, or None."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if isinstance(fn, DiagNormal):
        return Normal(fn.mean, fn.variance.sqrt(), validate_args=False)
    return fn if isinstance(fn, Normal) else None


def _is_vector(fn: Distribution) -> bool:
    return _gaussian(fn) is not None or isinstance(fn, NormalMixture)


def _site_kl(q: Distribution, p: Distribution, z: Tensor) -> tuple[Tensor, float]:
    """Return KL(q || p) averaged over rows, by unit ``[Z]`` and of the whole site; ``z [K, B, ...]`` drawn from q."""
    one, other, units = _gaussian(q), _gaussian(p), q.event_shape.numel()
    if one is not None and other is not None:
        each = kl_divergence(one, other).reshape(-1, units).mean(0)
        return each, float(each.sum())
    drawn = float((q.log_prob(z) - p.log_prob(z)).mean())
    if one is not None and isinstance(p, NormalMixture):
        return (one.log_prob(z) - p.coordinate_log_prob(z)).reshape(-1, units).mean(0), drawn
    try:
        total = kl_divergence(q, p).mean()
    except NotImplementedError:
        total = torch.tensor(drawn, dtype=z.dtype if z.is_floating_point() else None)
    return total.reshape(1), float(total)


def _flat(latents: Latents, other: Latents) -> Float[Tensor, "B D"]:
    """Write each row's latents as one vector, discrete ones as indicators of the values met on either side."""
    parts = []
    for name in sorted(latents):
        value = latents[name][0].flatten(1) if latents[name].ndim > 2 else latents[name][0].unsqueeze(-1)
        if not value.is_floating_point():
            size = int(max(latents[name].max(), other[name].max())) + 1
            value = torch.nn.functional.one_hot(value, size).flatten(1)
        parts.append(value.double())
    return torch.cat(parts, -1)


def _kernel(points: Float[Tensor, "M D"]) -> Float[Tensor, "M M"]:
    distance = torch.cdist(points, points).square()
    apart = distance[distance > 0]
    median = float(apart.median()) if len(apart) else 1.0
    return torch.stack([(-distance / (2 * median * width**2)).exp() for width in (0.5, 1.0, 2.0)]).mean(0)
