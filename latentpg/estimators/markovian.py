r"""Markovian importance sampling: a chain a row stands in for the latent that demonstrations do not carry.

One transition of the chain is i-SIR: put the present state into slot 0, draw K - 1 fresh particles from the proposal,
and pick one of the K in proportion to its weight. It leaves the posterior p(z | s, a) invariant for every K >= 2, so
that in the limit of the chain the last state is a posterior draw and conditional importance sampling applies (Naesseth,
Lindsten and Blei, "Markovian Score Climbing", 2020; Andrieu, Lee and Vihola, 2018).

The state is the caller's: keep what :func:`MarkovianIS.advance` returns beside each row, and hand it in as ``latents``
when the row comes up again.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators.base import Estimate, Particles, check_log_weights, check_num_particles
from latentpg.estimators.importance import importance_estimate, log_weights, retain
from latentpg.estimators.proposals import Guide, Proposal
from latentpg.programs import Categorical, LatentPolicy, Latents, Observations, draw


@dataclass(frozen=True)
class MarkovianIS:
    """Importance sampling that retains the last state of a per-row i-SIR chain; see the module's docstring.

    ``num_sweeps`` transitions are made before the particles are handed out. Without a state (``latents=None``) the
    chain starts from a draw of the proposal. Biased by what the chain has not yet forgotten of its start; exact in its
    limit.
    """

    num_particles: int = 8
    num_sweeps: int = 1
    proposal: Proposal = field(default_factory=Guide)

    def __post_init__(self) -> None:
        """Check K and the number of sweeps."""
        check_num_particles(
            "MarkovianIS()", self.num_particles, minimum=2, why="with K = 1 the chain never leaves its state"
        )
        if self.num_sweeps < 0:
            raise OptionError("MarkovianIS()", "`num_sweeps`", expected="an integer >= 0", got=repr(self.num_sweeps))

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        """Advance the chain from the state ``latents [B, ...]`` and retain its last state in slot 0."""
        with torch.no_grad():
            state = latents
            if not state:
                start = self.proposal.draw(policy, obs, action, 1)
                state = {name: value[0] for name, value in start.latents.items()}
            particles = retain(self.proposal, policy, obs, action, state, self.num_particles)
            for _ in range(self.num_sweeps):
                state = self.advance(policy, obs, action, particles)
                particles = retain(self.proposal, policy, obs, action, state, self.num_particles)
        return particles

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        r"""Return :math:`\log\frac1K\sum_k w_k`."""
        return importance_estimate(policy, obs, action, particles)

    def advance(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Latents:
        """Pick the chain's next state ``[B, ...]`` among the particles, in proportion to their weights."""
        with torch.no_grad():
            log_weight = log_weights(policy, obs, action, particles)
            check_log_weights("MarkovianIS.advance()", log_weight)
            chosen = draw("chain state", Categorical(log_weight.T))
            rows = torch.arange(particles.num_rows, device=chosen.device)
            return {name: value[chosen, rows] for name, value in particles.latents.items()}
