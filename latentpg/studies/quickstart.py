"""The named study ``quickstart``: every estimator on the transitions of a mixture policy in CartPole-v1."""

from __future__ import annotations

from latentpg.studies.sources import MixtureTransitions
from latentpg.studies.spec import Line, Study

_PROPOSALS = ("prior", "guide", "mixture")


def quickstart() -> Study:
    """Describe the study.

    >>> quickstart().num_particles
    (1, 2, 4, 8, 16, 32, 64)
    """
    return Study(
        name="quickstart",
        title="Every estimator of ∇ log π(a|s) against the exact gradient",
        source=MixtureTransitions(),
        lines=(
            Line("exact"),
            Line("quadrature"),
            Line("joint-score"),
            *(Line("conditional-is", proposal) for proposal in _PROPOSALS),
            *(Line("posterior-is", proposal) for proposal in _PROPOSALS),
            Line("split-is", "guide"),
            Line("wake-sleep"),
            Line("markovian-is", "guide", {"num_sweeps": 1}),
            Line("elbo"),
            Line("reparameterized"),
        ),
    )
