"""Small studies for tests."""

from dataclasses import dataclass
from typing import cast

import torch
from gymnasium import spaces
from torch import nn

from latentpg.estimators import Exact
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import act
from latentpg.studies import Cell, Line, Problem, Study
from latentpg.studies.references import EnumeratedPosterior


@dataclass(frozen=True)
class ToySource:
    """Rows of a small mixture policy without an environment, in float64."""

    num_rows: int = 6
    num_actions: int = 2

    def build(self, seed: int) -> Problem:
        """Build it."""
        with seeded(seed):
            policy = MixturePolicy(
                spaces.Box(-1, 1, (2,)), spaces.Discrete(self.num_actions), num_components=3, hidden=(4,)
            ).double()
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter.mul_(3.0)
                cast(nn.Linear, policy.decoder.network.latents[0]).weight.copy_(torch.linspace(-2, 2, 3))
                cast(nn.Linear, policy.decoder.network.rest.layers[0]).weight.copy_(
                    torch.linspace(-1, 1, self.num_actions).unsqueeze(1)
                )
            obs = torch.randn(self.num_rows, 2, dtype=torch.float64)
            acted = act(policy, obs)
        return Problem(
            policy,
            obs,
            acted.action,
            acted.latents,
            {"a fact": 1.0},
            exact=Exact(),
            redraw=EnumeratedPosterior.of(policy, obs, acted.action),
            seed=seed,
        )

    def describe(self) -> str:
        """Describe it."""
        return f"{self.num_rows} toy rows"


def toy_study(*lines: Line, num_replicates: int = 40, num_particles: tuple[int, ...] = (1, 4), seed: int = 0) -> Study:
    """Describe a small study."""
    return Study(
        name="toy",
        title="A toy",
        source=ToySource(),
        lines=lines or (Line("exact"), Line("conditional-is", "prior"), Line("posterior-is", "prior"), Line("elbo")),
        axes={"num_particles": num_particles},
        num_replicates=num_replicates,
        num_timings=4,
        seed=seed,
    )


def cell(line: Line, num_particles: int | None = None, target: str = "gradient") -> Cell:
    """Place a line at a K."""
    return Cell(line, target, () if num_particles is None else (("num_particles", num_particles),))
