"""Exact answers to hold estimators to: enumerated expectations, closed forms and tabular decision processes."""

from latentpg.oracles.enumeration import Enumeration, Multisets, Tuples, enumerate_draws, multisets, tuples
from latentpg.oracles.grid_world import ACTIONS, grid_world
from latentpg.oracles.linear_gaussian import LinearGaussianGradient, LinearGaussianPolicy
from latentpg.oracles.mdp import OptimalValues, TabularMDP, finite_horizon
from latentpg.oracles.replay import Path, replay
from latentpg.oracles.softmax import PolicyGradient, TabularLatentPolicy, exact_gradient
from latentpg.oracles.trajectories import (
    Groups,
    Trajectories,
    enumerate_groups,
    enumerate_trajectories,
    expectation,
    expected_surrogate,
)

__all__ = [
    "ACTIONS",
    "Enumeration",
    "Groups",
    "LinearGaussianGradient",
    "LinearGaussianPolicy",
    "Multisets",
    "OptimalValues",
    "Path",
    "PolicyGradient",
    "TabularLatentPolicy",
    "TabularMDP",
    "Trajectories",
    "Tuples",
    "enumerate_draws",
    "enumerate_groups",
    "enumerate_trajectories",
    "exact_gradient",
    "expectation",
    "expected_surrogate",
    "finite_horizon",
    "grid_world",
    "multisets",
    "replay",
    "tuples",
]
