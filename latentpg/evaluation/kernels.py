r"""Markov kernels on the latents, each reversible with respect to a tempered joint.

Between a start density r(z) and the joint p(z, a | s) lie

.. math:: \gamma_\beta(z) = r(z)^{1-\beta}\,p(z, a|s)^{\beta}, \qquad 0 \le \beta \le 1,

as functions of z for each row's own s and a. A kernel moves K chains of B rows at once and leaves :math:`\gamma_\beta`
as it is. What it is tuned by (``step``, ``spread``) must be fixed before the chains that are counted are run: a step
that follows its own chain is no kernel of :math:`\gamma_\beta` any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from pyro.distributions import Bernoulli, Normal
from torch import Tensor

from latentpg.errors import OptionError, SiteError
from latentpg.estimators import Proposal
from latentpg.programs import LatentPolicy, Latents, Observations, draw, draw_prior, log_joint
from latentpg.programs.capture import is_real


@dataclass(frozen=True)
class State:
    """Where the chains are, ``[K, B, ...]`` a site, with log r(z) and log p(z, a | s) there, ``[K, B]``."""

    latents: Latents
    log_start: Float[Tensor, "K B"]
    log_joint: Float[Tensor, "K B"]

    @property
    def log_ratio(self) -> Float[Tensor, "K B"]:
        """Log p(z, a | s) - log r(z): the log-weight of importance sampling."""
        return self.log_joint - self.log_start

    def log_density(self, beta: float | int) -> Float[Tensor, "K B"]:
        r"""Compute :math:`\log\gamma_\beta`, up to nothing: it is not normalised."""
        return self.log_start + beta * self.log_ratio


@dataclass(frozen=True)
class Bridge:
    """A policy's joint at given rows, and the start density that the chains come from.

    ``real`` names the sites that take any real value; ``sites`` names all.
    """

    policy: LatentPolicy
    obs: Observations
    action: Tensor
    start: Proposal
    sites: frozenset[str]
    real: frozenset[str]

    @classmethod
    def between(cls, start: Proposal, policy: LatentPolicy, obs: Observations, action: Tensor) -> Bridge:
        """Look at the policy's sites, and build the bridge."""
        met = draw_prior(policy, obs, num_particles=1).distributions
        real = frozenset(name for name, fn in met.items() if is_real(getattr(fn, "support", None)))
        return cls(policy, obs, action, start, frozenset(met), real)

    def begin(self, num_chains: int) -> State:
        """Draw K chains from r."""
        drawn = self.start.draw(self.policy, self.obs, self.action, num_chains)
        return State(drawn.latents, drawn.log_prob, log_joint(self.policy, self.obs, self.action, drawn.latents))

    def at(self, latents: Latents) -> State:
        """Score latents ``[K, B, ...]``, differentiably."""
        start = self.start.log_prob(self.policy, self.obs, self.action, latents)
        return State(latents, start, log_joint(self.policy, self.obs, self.action, latents))


@dataclass(frozen=True)
class Moved:
    """The chains after a move, and the chance that each had of being moved, ``[K, B]``."""

    state: State
    acceptance: Float[Tensor, "K B"]


@runtime_checkable
class Kernel(Protocol):
    r"""A kernel that is reversible with respect to :math:`\gamma_\beta`, for any step and spread fixed beforehand."""

    def sites(self, bridge: Bridge) -> frozenset[str]:
        """Name the sites it moves."""
        ...

    def move(
        self, bridge: Bridge, state: State, beta: float | int, *, step: Float[Tensor, " B"], spread: Latents
    ) -> Moved:
        """Move every chain once; ``step`` and ``spread`` multiply its step sizes by row, and by row and coordinate."""
        ...

    @property
    def target_acceptance(self) -> float | None:
        """The acceptance that its step should be tuned to; None where it has no step."""
        ...


@dataclass(frozen=True)
class HMC:
    r"""Hamiltonian Monte Carlo on the real-valued sites; others stay as they are.

    ``num_leapfrog=1`` is MALA, the Metropolis-adjusted Langevin algorithm. A trajectory that leaves the finite numbers
    is rejected, as is the way back along it. (R. M. Neal, "MCMC using Hamiltonian dynamics", 2011.)
    """

    step_size: float = 0.3
    num_leapfrog: int = 5

    def __post_init__(self) -> None:
        """Check both."""
        _check_step("HMC()", self.step_size)
        if self.num_leapfrog < 1:
            raise OptionError("HMC()", "`num_leapfrog`", expected="an integer >= 1", got=repr(self.num_leapfrog))

    @property
    def target_acceptance(self) -> float:
        """The classical 0.57 for a single leapfrog step, 0.8 for a trajectory."""
        return 0.574 if self.num_leapfrog == 1 else 0.8

    def sites(self, bridge: Bridge) -> frozenset[str]:
        """Name the real-valued sites."""
        return _real_sites("HMC", bridge)

    def move(
        self, bridge: Bridge, state: State, beta: float | int, *, step: Float[Tensor, " B"], spread: Latents
    ) -> Moved:
        """Run one trajectory from fresh momenta."""
        names = sorted(self.sites(bridge))
        size = {name: self.step_size * _rowwise(step, state.latents[name]) * spread[name] for name in names}
        momentum = {name: _noise(state.latents[name]) for name in names}
        before = _kinetic(momentum)
        here, force = _with_gradient(bridge, state.latents, beta, names)
        alive = torch.ones_like(state.log_joint, dtype=torch.bool)
        for _ in range(self.num_leapfrog):
            place = dict(here.latents)
            for name in names:
                momentum[name] = momentum[name] + 0.5 * size[name] * force[name]
                moved = place[name] + size[name] * momentum[name]
                finite = moved.isfinite().flatten(2).all(-1)
                place[name], alive = torch.where(_like(finite, moved), moved, place[name]), alive & finite
            here, force = _with_gradient(bridge, place, beta, names)
            for name in names:
                momentum[name] = momentum[name] + 0.5 * size[name] * force[name]
        log_ratio = here.log_density(beta) - _kinetic(momentum) - state.log_density(beta) + before
        return _accept(state, here, log_ratio.masked_fill(~alive, -torch.inf))


@dataclass(frozen=True)
class RandomWalk:
    """Metropolis's Gaussian random walk on the real-valued sites; others stay as they are."""

    step_size: float = 1.0

    def __post_init__(self) -> None:
        """Check the step."""
        _check_step("RandomWalk()", self.step_size)

    @property
    def target_acceptance(self) -> float:
        """What is best in many dimensions, 0.234, and not far from it in one."""
        return 0.3

    def sites(self, bridge: Bridge) -> frozenset[str]:
        """Name the real-valued sites."""
        return _real_sites("RandomWalk", bridge)

    def move(
        self, bridge: Bridge, state: State, beta: float | int, *, step: Float[Tensor, " B"], spread: Latents
    ) -> Moved:
        """Take one step in all coordinates together."""
        latents = dict(state.latents)
        for name in sorted(self.sites(bridge)):
            value = latents[name]
            latents[name] = value + self.step_size * _rowwise(step, value) * spread[name] * _noise(value)
        proposed = bridge.at(latents)
        return _accept(state, proposed, proposed.log_density(beta) - state.log_density(beta))


@dataclass(frozen=True)
class Independence:
    r"""Propose every site anew from the start density r; for discrete latents, and for any others.

    Accepted with chance :math:`\min(1, (w'/w)^\beta)`, w the importance weight (W. K. Hastings, 1970).
    """

    @property
    def target_acceptance(self) -> None:
        """No step, and so nothing to tune."""
        return None

    def sites(self, bridge: Bridge) -> frozenset[str]:
        """Name all of them."""
        return bridge.sites

    def move(
        self, bridge: Bridge, state: State, beta: float | int, *, step: Float[Tensor, " B"], spread: Latents
    ) -> Moved:
        """Draw a fresh latent for every chain, and keep it or not."""
        proposed = bridge.begin(len(state.log_joint))
        return _accept(state, proposed, beta * (proposed.log_ratio - state.log_ratio))


def _accept(state: State, proposed: State, log_ratio: Float[Tensor, "K B"]) -> Moved:
    """Take the proposal with Metropolis's chance; NaN, from a place without density, is never taken."""
    chance = log_ratio.nan_to_num(nan=-torch.inf).clamp(max=0.0).exp()
    taken = draw("accept", Bernoulli(chance, validate_args=False)).bool()
    latents = {
        name: torch.where(_like(taken, value), proposed.latents[name], value) for name, value in state.latents.items()
    }
    log_start = torch.where(taken, proposed.log_start, state.log_start)
    return Moved(State(latents, log_start, torch.where(taken, proposed.log_joint, state.log_joint)), chance)


def _with_gradient(bridge: Bridge, latents: Latents, beta: float | int, names: list[str]) -> tuple[State, Latents]:
    with torch.enable_grad():
        free = {name: value.detach().requires_grad_(name in names) for name, value in latents.items()}
        state = bridge.at(free)
        slopes = torch.autograd.grad(state.log_density(beta).sum(), [free[name] for name in names])
    detached = {name: value.detach() for name, value in free.items()}
    force = dict(zip(names, slopes, strict=True))
    return State(detached, state.log_start.detach(), state.log_joint.detach()), force


def _noise(value: Tensor) -> Tensor:
    standard = Normal(torch.zeros_like(value), torch.ones_like(value), validate_args=False)
    return draw("noise", standard.to_event(value.ndim - 2))


def _kinetic(momentum: Mapping[str, Tensor]) -> Float[Tensor, "K B"]:
    parts = [0.5 * value.square().flatten(2).sum(-1) for value in momentum.values()]
    return torch.stack(parts).sum(0)


def _like(flags: Tensor, value: Tensor) -> Tensor:
    return flags.reshape(*flags.shape, *[1] * (value.ndim - 2))


def _rowwise(step: Float[Tensor, " B"], value: Tensor) -> Tensor:
    return step.reshape(1, -1, *[1] * (value.ndim - 2)).to(value.dtype)


def _real_sites(kernel: str, bridge: Bridge) -> frozenset[str]:
    if bridge.real:
        return bridge.real
    raise SiteError(
        f"{kernel}",
        "no latent takes any real value",
        expected="a site whose support is the whole line",
        got=f"sites {sorted(bridge.sites)}, none of which is",
        fix="Independence(), or exact_likelihood() where all are discrete",
    )


def _check_step(where: str, step_size: float | int) -> None:
    if not step_size > 0 or step_size == float("inf"):
        raise OptionError(where, "`step_size`", expected="a positive number", got=repr(step_size))
