r"""What is known exactly about a policy's rows: an estimator without error, and draws from the posterior.

Both exist where every latent can be enumerated. Up to three Gaussian dimensions leave quadrature, which is used only if
it settles on the very rows it is to serve; draws it cannot give. Elsewhere there is no reference, and none is guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.distributions import Distribution

from latentpg.errors import EstimatorError, LatentPGError, QuadratureError, SiteError
from latentpg.estimators import Estimator, Exact, Quadrature
from latentpg.programs import (
    Categorical,
    LatentPolicy,
    Latents,
    MultiBernoulli,
    MultiCategorical,
    Observations,
    draw,
    draw_guide,
    draw_prior,
    log_joint,
    num_rows,
    score_guide,
    score_prior,
    support,
)
from latentpg.studies.problem import Redraw

MAX_POINTS = 2**24
"""Points times rows that a reference may hold at once: about half a gigabyte for a latent of three coordinates."""

NODES = (16, 32, 64)
"""Nodes a dimension that are tried in turn; the first that settle are taken."""


@dataclass(frozen=True, eq=False)
class EnumeratedPosterior:
    r"""The posterior p(z | s, a) over the C joint values of discrete latents, for B rows, as it was when enumerated.

    Calling it draws one joint latent ``[B, ...]`` a row from the ambient stream: the same law as acting again until the
    same (s, a) comes out.
    """

    points: Latents
    log_posterior: Float[Tensor, "C B"]

    @classmethod
    def of(cls, policy: LatentPolicy, obs: Observations, action: Tensor) -> EnumeratedPosterior:
        """Enumerate it at the policy's present parameters; later ones do not change it."""
        with torch.no_grad():
            points = support(policy, obs)
            return cls(points, log_joint(policy, obs, action, points).log_softmax(0))

    def __call__(self) -> Latents:
        """Draw."""
        chosen = draw("recorded latent", Categorical(self.log_posterior.T))
        rows = torch.arange(self.log_posterior.shape[1], device=chosen.device)
        return {name: value[chosen, rows] for name, value in self.points.items()}


@dataclass(frozen=True, eq=False)
class Reference:
    """What was found: the two parts of a :class:`~latentpg.studies.problem.Problem`, and in words what they are."""

    exact: Estimator | None
    redraw: Redraw | None
    reason: str


def reference_of(policy: LatentPolicy, obs: Observations, action: Tensor) -> tuple[Estimator | None, Redraw | None]:
    """Choose the estimator without error and the posterior's draws for these rows, each None where there is none.

    As :func:`find_reference`, without the words.

    >>> from latentpg.oracles import TabularLatentPolicy
    >>> policy = TabularLatentPolicy.random(num_states=3, num_latents=2, num_actions=2)
    >>> rows = torch.tensor([0, 1, 1])
    >>> reference_of(policy, rows, rows)[0]
    Exact()
    """
    found = find_reference(policy, obs, action)
    return found.exact, found.redraw


def find_reference(policy: LatentPolicy, obs: Observations, action: Tensor) -> Reference:
    """Choose the reference and say why it is what it is. It runs the programs, and so draws from the ambient stream.

    Enumeration if all latents of the *model* have a finite support; else quadrature if those of the *guide* are at most
    three Gaussian dimensions, with any discrete ones beside them, and doubling the nodes leaves log pi of every row
    where it was; else none. Neither holds more than :data:`MAX_POINTS` points times rows.
    """
    rows = num_rows(obs)
    with torch.no_grad():
        model = draw_prior(policy, obs, num_particles=1).distributions
        sizes = [support_size(fn) for fn in model.values()]
        points = math.prod(size for size in sizes if size is not None)
        if None not in sizes:
            if points * rows > MAX_POINTS:
                return Reference(None, None, f"none: {points} joint latents of {rows} rows are too many to enumerate")
            return Reference(
                Exact(), EnumeratedPosterior.of(policy, obs, action), f"enumeration of {points} joint latents"
            )
        if set(draw_guide(policy, obs, action, num_particles=1).latents) != set(model):
            return Reference(None, None, "none: model and guide sample different latents")
        return _by_quadrature(policy, obs, action, model)


def support_size(fn: Distribution) -> int | None:
    """Count the values of one site without listing those of a vector, or return None where they cannot be listed.

    >>> support_size(MultiBernoulli(torch.zeros(1, 60))) == 2**60
    True
    """
    match fn:
        case MultiBernoulli():
            return 2 ** fn.event_shape[0]
        case MultiCategorical():
            return math.prod(fn.sizes)
        case _:
            return len(fn.enumerate_support(expand=False)) if fn.has_enumerate_support else None


def enumerated_facts(policy: LatentPolicy, obs: Observations, action: Tensor) -> Mapping[str, float]:
    """Measure how far apart prior, posterior and guide are, averaged over rows, in nats; latents must be discrete."""
    with torch.no_grad():
        points = support(policy, obs)
        posterior = log_joint(policy, obs, action, points).log_softmax(0)
        prior = score_prior(policy, obs, points).log_prob.log_softmax(0)
        guide = score_guide(policy, obs, action, points).log_prob.log_softmax(0)
    return {
        "entropy of the prior (nats)": _mean_under(prior, -prior),
        "entropy of the posterior (nats)": _mean_under(posterior, -posterior),
        "KL(posterior || prior) (nats)": _mean_under(posterior, posterior - prior),
        "KL(posterior || guide) (nats)": _mean_under(posterior, posterior - guide),
    }


def _by_quadrature(
    policy: LatentPolicy, obs: Observations, action: Tensor, model: Mapping[str, Distribution]
) -> Reference:
    failure: LatentPGError | None = None
    dimensions = sum(math.prod(fn.event_shape) for fn in model.values() if support_size(fn) is None)
    discrete = math.prod(size for size in map(support_size, model.values()) if size is not None)
    for nodes in NODES:
        # settling is judged with twice the nodes; a small part of the rows would not tell of the others
        if (2 * nodes) ** dimensions * discrete * num_rows(obs) > MAX_POINTS:
            break
        estimator = Quadrature(num_nodes=nodes)
        try:
            estimator.propose(policy, obs, action)
        except QuadratureError as error:
            failure = error
        except (EstimatorError, SiteError) as error:  # too many dimensions, or a site that is not Gaussian
            failure = error
            break
        else:
            return Reference(estimator, None, f"quadrature, {nodes} nodes in each of {dimensions} dimensions")
    if failure is None:
        return Reference(
            None, None, f"none: quadrature in {dimensions} dimensions needs too many points for these rows"
        )
    return Reference(None, None, f"none: {str(failure).splitlines()[0].partition(': ')[2]}")


def _mean_under(log_prob: Tensor, value: Tensor) -> float:
    """Average ``value`` under a discrete law, then over rows; what has no mass counts as nothing."""
    weighted = torch.where(log_prob.isneginf(), torch.zeros_like(value), log_prob.exp() * value)
    return float(weighted.sum(0).mean())
