r"""Objectives that are bounds of log pi: the evidence lower bound with its usual alterations, and IWAE's.

Weighted, annealed or floored, the evidence lower bound is no bound of anything any more; the metrics always report the
bound itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import PosteriorIS
from latentpg.estimators.base import check_log_weights, check_num_particles
from latentpg.estimators.guides import IWAE, VIMCO, DoublyReparameterized, GuideObjective
from latentpg.imitation.divergences import guide_terms
from latentpg.imitation.objectives import Losses, combine
from latentpg.numerics.weights import ess, leave_one_out_mean
from latentpg.programs import LatentPolicy, Latents, Observations

ANNEALINGS = ("none", "linear", "cyclical")
"""Ways for beta to come up."""

GUIDES: Mapping[str, Callable[[int], GuideObjective]] = {
    "dreg": DoublyReparameterized,
    "pathwise": IWAE,
    "vimco": VIMCO,
}
"""What may teach the guide of the K-particle bound."""


@dataclass(frozen=True)
class VariationalBound:
    r"""The evidence lower bound, for model and guide alike.

    .. math:: \mathbb E_{q_\psi}\log p_\theta(a|s,z) - \beta\,\mathrm{KL}(q_\psi(z|s,a)\,\|\,p_\phi(z|s))

    ``num_particles`` draws of the guide, pathwise where a site has ``rsample``, by score function with the
    leave-one-out baseline elsewhere (at K = 1 without one). The divergence is in closed form wherever there is one, and
    the draw's own elsewhere; ``kl="sampled"`` takes the draw's own throughout (Kingma and Welling, "Auto-encoding
    variational Bayes", 2014).

    Off by default: ``beta`` other than 1 (Higgins et al., "beta-VAE", 2017); ``anneal="linear"`` lets beta rise from 0
    over the first ``anneal_share`` of the fit (Bowman et al., "Generating sentences from a continuous space", 2016),
    ``"cyclical"`` over that share of each of ``cycles`` equal parts (Fu et al., "Cyclical annealing schedule", 2019);
    ``free_nats`` a unit whose divergence, averaged over the minibatch, counts as at least that much and has no gradient
    below (the free bits of Kingma et al., "Improved variational inference with inverse autoregressive flow", 2016, in
    nats).
    """

    num_particles: int = 1
    beta: float | int = 1.0
    anneal: str = "none"
    anneal_share: float | int = 0.5
    cycles: int = 4
    free_nats: float | int = 0.0
    kl: str = "closed-form"

    def __post_init__(self) -> None:
        """Check every choice."""
        where = "VariationalBound()"
        check_num_particles(where, self.num_particles)
        check_num_particles(f"{where} (`cycles`)", self.cycles)
        for name, value, known in (("anneal", self.anneal, ANNEALINGS), ("kl", self.kl, ("closed-form", "sampled"))):
            if value not in known:
                raise OptionError(where, f"`{name}`", expected=", ".join(known), got=repr(value))
        for name, number in (("beta", self.beta), ("free_nats", self.free_nats)):
            if not 0 <= number < float("inf"):
                raise OptionError(where, f"`{name}`", expected="a number >= 0", got=repr(number))
        if not 0 < self.anneal_share <= 1:
            raise OptionError(where, "`anneal_share`", expected="a number in (0, 1]", got=repr(self.anneal_share))

    def weight(self, progress: float) -> float:
        """Return beta at a share of the fit, in [0, 1].

        >>> [VariationalBound(anneal="linear").weight(p) for p in (0.0, 0.25, 0.5, 1.0)]
        [0.0, 0.5, 1.0, 1.0]
        """
        if self.anneal == "none":
            return float(self.beta)
        part = progress if self.anneal == "linear" else (progress * self.cycles) % 1.0
        return self.beta * min(1.0, part / self.anneal_share)

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Draw from the guide and bound."""
        terms = guide_terms(policy, obs, action, num_particles=self.num_particles, closed_form=self.kl == "closed-form")
        target = terms.log_likelihood - self.weight(progress) * floored(terms.kl, self.free_nats).sum(-1)
        check_log_weights("VariationalBound.losses()", target.mean(0, keepdim=True))
        rows, signal = target, (target - leave_one_out_mean(target)).detach()
        for name, fn in terms.drawn.distributions.items():
            if not fn.has_rsample:
                score = terms.drawn.log_prob_by_site[name]
                rows = rows + signal * (score - score.detach())  # without a value, so that the loss keeps its own
        loss, bound = -rows.mean(0), terms.log_bound.detach()
        info = {"log_prob": bound.mean(0), "kl": terms.kl.detach().sum(-1).mean(0)}
        if self.num_particles > 1:
            info["ess"] = ess(bound)
        return Losses(loss, loss, info)


@dataclass(frozen=True)
class ImportanceBound:
    r"""The K-particle bound :math:`\mathbb E\log\frac1K\sum_k w_k`, :math:`z_k \sim q_\psi`.

    Theta and phi by self-normalised weights; psi by ``guide``: ``"dreg"``, doubly reparameterised, whose signal grows
    with K, and ``"pathwise"``, whose signal falls with it, for continuous latents; ``"vimco"`` for any (Burda, Grosse
    and Salakhutdinov, "Importance weighted autoencoders", 2016; Tucker, Lawson, Gu and Maddison, "Doubly
    reparameterized gradient estimators", 2019; Mnih and Rezende, "Variational inference for Monte Carlo objectives",
    2016).
    """

    num_particles: int = 8
    guide: str = "dreg"

    def __post_init__(self) -> None:
        """Check K and the guide's objective."""
        check_num_particles("ImportanceBound()", self.num_particles)
        if self.guide not in GUIDES:
            raise OptionError("ImportanceBound()", "`guide`", expected=", ".join(GUIDES), got=repr(self.guide))
        GUIDES[self.guide](self.num_particles)

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        """Estimate on K draws of the guide, and teach it by its own objective."""
        return combine(PosteriorIS(self.num_particles), GUIDES[self.guide](self.num_particles), policy, obs, action)


def floored(kl: Float[Tensor, "K B U"], free_nats: float | int) -> Float[Tensor, "K B U"]:
    r"""Raise each unit whose mean over rows and particles is below the floor to the floor, a constant.

    The mean over rows of the result is :math:`\max(\lambda, \overline{\mathrm{KL}}_u)`.

    >>> floored(torch.tensor([[[0.1, 2.0], [0.3, 4.0]]]), 0.5)
    tensor([[[0.5000, 2.0000],
             [0.5000, 4.0000]]])
    """
    if free_nats == 0:
        return kl
    return torch.where(kl.detach().mean((0, 1)) > free_nats, kl, torch.full_like(kl, float(free_nats)))
