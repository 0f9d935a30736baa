"""Latent-variable policies written as Pyro programs, with estimators of log pi, its gradient and the ratio.

The few names here are loaded on first use, so that importing the package costs little; everything else is in the rooms
:mod:`~latentpg.programs`, :mod:`~latentpg.policies`, :mod:`~latentpg.estimators`, :mod:`~latentpg.numerics` and
:mod:`~latentpg.oracles`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latentpg.estimators import (
        ELBO,
        ConditionalIS,
        Estimate,
        Estimator,
        Exact,
        JointScore,
        MarkovianIS,
        Particles,
        PosteriorIS,
        Quadrature,
        Reparameterized,
        SplitIS,
        WakeSleep,
        make_estimator,
        make_guide_objective,
    )
    from latentpg.numerics.rng import seeded
    from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy, from_pyro, svi_pair
    from latentpg.programs import Span, act

__version__ = "0.1.0"

# registers our environments with Gymnasium, by name alone: none is imported before it is made
importlib.import_module("latentpg.envs")

_HOMES = {
    "latentpg.estimators": [
        "ELBO",
        "ConditionalIS",
        "Estimate",
        "Estimator",
        "Exact",
        "JointScore",
        "MarkovianIS",
        "Particles",
        "PosteriorIS",
        "Quadrature",
        "Reparameterized",
        "SplitIS",
        "WakeSleep",
        "make_estimator",
        "make_guide_objective",
    ],
    "latentpg.numerics.rng": ["seeded"],
    "latentpg.policies": ["GaussianPolicy", "MixturePolicy", "TwoLevelPolicy", "from_pyro", "svi_pair"],
    "latentpg.programs": ["Span", "act"],
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "ELBO",
    "ConditionalIS",
    "Estimate",
    "Estimator",
    "Exact",
    "GaussianPolicy",
    "JointScore",
    "MarkovianIS",
    "MixturePolicy",
    "Particles",
    "PosteriorIS",
    "Quadrature",
    "Reparameterized",
    "Span",
    "SplitIS",
    "TwoLevelPolicy",
    "WakeSleep",
    "act",
    "from_pyro",
    "make_estimator",
    "make_guide_objective",
    "seeded",
    "svi_pair",
]


def __getattr__(name: str) -> Any:  # noqa: ANN401 (whatever the name stands for)
    """Load a public name from its room on first use."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'latentpg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    """List the public names."""
    return sorted([*__all__, "__version__"])
