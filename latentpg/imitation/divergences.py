r"""How far the guide lies from the prior on given rows, unit by unit, in closed form wherever there is one.

By the chain rule, with sites in the order in which both programs sample them,

.. math:: \mathrm{KL}(q_\psi(z|s,a)\,\|\,p_\phi(z|s)) = \sum_i \mathbb E_{z_{<i}\sim q}\,
   \mathrm{KL}\big(q(z_i|z_{<i},s,a)\,\|\,p(z_i|z_{<i},s)\big) .

A Gaussian site has a unit a coordinate; any other site is one unit. Where two distributions have no closed form, and
where guide and model sample in different orders, the term is the draw's own :math:`\log q - \log p`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution, Independent, Normal, kl_divergence

from latentpg.programs import DiagNormal, Drawn, LatentPolicy, Observations, draw_guide, score_model
from latentpg.programs.capture import ACTION


@dataclass(frozen=True, eq=False)
class GuideTerms:
    r"""What a bound is made of: K draws of the guide, :math:`\log p_\theta(a|s,z_k)`, and the divergence by unit.

    The U units of all sites follow each other in the order of ``drawn.latents``. Differentiable in all parameters.
    """

    drawn: Drawn
    log_likelihood: Float[Tensor, "K B"]
    kl: Float[Tensor, "K B U"]

    @property
    def log_bound(self) -> Float[Tensor, "K B"]:
        """The evidence lower bound, a draw at a time: its mean over draws is unbiased for the bound."""
        return self.log_likelihood - self.kl.sum(-1)


def guide_terms(
    policy: LatentPolicy, obs: Observations, action: Tensor, *, num_particles: int, closed_form: bool = True
) -> GuideTerms:
    """Draw from the guide, pathwise where that is possible, and score what was drawn.

    A closed form is one of the sites' distributions themselves: a program that scales or masks its latent sites needs
    ``closed_form=False``.
    """
    drawn = draw_guide(policy, obs, action, num_particles=num_particles, pathwise=True)
    scores = score_model(policy, obs, action, drawn.latents)
    prior = {name: fn for name, fn in scores.distributions.items() if name != ACTION}
    shape = scores.log_likelihood.shape
    if not closed_form or list(prior) != list(drawn.latents):
        total = (drawn.log_prob - scores.log_prior).unsqueeze(-1)
        return GuideTerms(drawn, scores.log_likelihood, total)
    units = []
    for name, q in drawn.distributions.items():
        each = unit_kl(q, prior[name])
        if each is None:
            each = (drawn.log_prob_by_site[name] - prior[name].log_prob(drawn.latents[name])).unsqueeze(-1)
        units.append(each.expand(*shape, each.shape[-1]))
    kl = torch.cat(units, -1) if units else scores.log_likelihood.new_zeros(*shape, 0)
    return GuideTerms(drawn, scores.log_likelihood, kl)


def unit_kl(q: Distribution, p: Distribution) -> Tensor | None:
    r"""Return KL(q || p) with its units last, or None where it has no closed form.

    For Gaussians, a coordinate at a time, :math:`\tfrac12(e^{2d} + (\mu_q-\mu_p)^2/\sigma_p^2 - 1) - d` with
    :math:`d = \log\sigma_q - \log\sigma_p`.

    >>> unit_kl(DiagNormal(torch.ones(3, 2), torch.zeros(2)), DiagNormal(torch.zeros(2), torch.zeros(2))).tolist()
    [[0.5, 0.5], [0.5, 0.5], [0.5, 0.5]]
    """
    one, other = gaussian_parameters(q), gaussian_parameters(p)
    if one is not None and other is not None:
        log_ratio = one[1] - other[1]
        distance = ((one[0] - other[0]) * (-other[1]).exp()).square()
        each = 0.5 * ((2 * log_ratio).exp() + distance - 1) - log_ratio
        return each.flatten(-len(q.event_shape)) if q.event_shape else each.unsqueeze(-1)
    try:
        return kl_divergence(q, p).unsqueeze(-1)
    except NotImplementedError:
        return None


def gaussian_parameters(fn: Distribution) -> tuple[Tensor, Tensor] | None:
    """Return mean and log standard deviation of independent Gaussian coordinates, or None."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    if isinstance(fn, DiagNormal):
        return fn.loc, fn.log_scale
    return (fn.loc, fn.scale.log()) if isinstance(fn, Normal) else None
