r"""Divergences between two latent policies at given states: exact where enumerable, bounded by the joint elsewhere.

From sampled actions, KL(pi || ref) is estimated by k1, k2 and k3 of :mod:`latentpg.numerics.divergences` applied to a
difference of ``log_prob``. The log-ratios of a *retained* set are those of the augmented law over actions and
particles, so their KL lies between the marginal one and the joint one and falls to the marginal as K grows.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import kl_divergence

from latentpg.errors import EstimatorError, SiteError
from latentpg.estimators.base import check_num_particles
from latentpg.estimators.exact import Exact
from latentpg.programs import (
    LatentPolicy,
    Latents,
    Observations,
    conditionals,
    draw_prior,
    num_rows,
    parameter_dtype,
    score_prior,
    support,
)
from latentpg.programs.capture import ACTION


def joint_kl(
    policy: LatentPolicy, reference: LatentPolicy, obs: Observations, *, num_particles: int | None = None
) -> Float[Tensor, " B"]:
    r"""Compute :math:`\mathrm{KL}(p(z, a|s)\,\|\,p_{ref}(z, a|s))`, a bound of :math:`\mathrm{KL}(\pi\,\|\,\pi_{ref})`.

    By the chain rule it is the sum over sites of :math:`\mathbb E_{z\sim p}\,\mathrm{KL}` between the conditionals,
    each in closed form; the data-processing inequality makes it a bound, tight when the posteriors agree. The
    expectation over latents is an exact sum when ``num_particles`` is None (all latents discrete), and otherwise a mean
    over that many draws of the prior, unbiased for the bound.

    Differentiable in both policies: with enumeration exactly so, with draws by the score function of the draws beside
    the explicit dependence, which together are unbiased. Raises :class:`~latentpg.errors.EstimatorError` where two
    conditionals have no closed form.
    """
    if num_particles is None:
        latents = _require_support(policy, obs)
        share = score_prior(policy, obs, latents).log_prob.exp()
        return (share * _conditional_kl(policy, reference, obs, latents)).sum(0)
    check_num_particles("joint_kl()", num_particles)
    with torch.no_grad():
        latents = draw_prior(policy, obs, num_particles=num_particles).latents
    divergence = _conditional_kl(policy, reference, obs, latents)
    score = score_prior(policy, obs, latents).log_prob
    return (divergence + divergence.detach() * (score - score.detach())).mean(0)


def exact_kl(policy: LatentPolicy, reference: LatentPolicy, obs: Observations) -> Float[Tensor, " B"]:
    r"""Compute the divergence of the marginals by enumerating actions and latents.

    .. math:: \mathrm{KL}(\pi\,\|\,\pi_{ref}) = \sum_a \pi(a|s)\log\frac{\pi(a|s)}{\pi_{ref}(a|s)}

    For discrete latents and a finite action space; differentiable in both policies.
    """
    ours, theirs = marginal_table(policy, obs), marginal_table(reference, obs)
    return (ours.exp() * (ours - theirs)).sum(0)


def exact_entropy(policy: LatentPolicy, obs: Observations) -> Float[Tensor, " B"]:
    r"""Compute :math:`-\sum_a \pi(a|s)\log\pi(a|s)` in nats by enumerating actions and latents; differentiable."""
    table = marginal_table(policy, obs)
    return -(table.exp() * table).sum(0)


def marginal_table(policy: LatentPolicy, obs: Observations) -> Float[Tensor, "A B"]:
    """Compute log pi(a | s) of every action of a finite space, ``[A, B]``, in the order of the head's enumeration."""
    with torch.no_grad():
        head = conditionals(policy, obs, draw_prior(policy, obs, num_particles=1).latents)[ACTION]
    if not head.has_enumerate_support:
        raise SiteError(
            "exact_kl() or exact_entropy()",
            "the action space cannot be enumerated",
            expected="a discrete action of finite support",
            got=type(head).__name__,
            fix="joint_kl() for a bound, k1 to k3 of sampled actions, or Entropy for its estimate",
        )
    rows, exact = num_rows(obs), Exact()
    columns = []
    for value in head.enumerate_support(expand=False):
        action = value.reshape(1, *head.event_shape).expand(rows, *head.event_shape)
        particles = exact.propose(policy, obs, action)
        columns.append(exact.estimate(policy, obs, action, particles).log_prob)
    return torch.stack(columns)


def _conditional_kl(
    policy: LatentPolicy, reference: LatentPolicy, obs: Observations, latents: Latents
) -> Float[Tensor, "K B"]:
    ours, theirs = conditionals(policy, obs, latents), conditionals(reference, obs, latents)
    shape = (len(next(iter(latents.values()))) if latents else 1, num_rows(obs))
    total = torch.zeros((), dtype=parameter_dtype(policy))
    for name, fn in ours.items():
        try:
            total = total + kl_divergence(fn, theirs[name])
        except NotImplementedError as error:
            raise EstimatorError(
                "joint_kl()",
                f"no closed form at site `{name}`",
                expected="two distributions known to torch.distributions.kl",
                got=f"{type(fn).__name__} and {type(theirs[name]).__name__}",
                fix="k1 to k3 of sampled actions, or torch.distributions.kl.register_kl",
            ) from error
    return total.expand(shape)


def _require_support(policy: LatentPolicy, obs: Observations) -> Latents:
    with torch.no_grad():
        return support(policy, obs)
