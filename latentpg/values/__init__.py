"""Critics: features of observations, linear and network critics, their targets, and the ways to fit them."""

from latentpg.values.bases import Fourier, GaussianRBF, Polynomial
from latentpg.values.cells import GridCells, TileCoding
from latentpg.values.critics import Critic, LinearCritic, NetworkCritic, orthogonal_
from latentpg.values.features import FEATURES, BinaryFeatures, Features, Identity, make_features
from latentpg.values.fitting import CriticFit, explained_variance, fit_critic, fit_to_targets
from latentpg.values.least_squares import solve_least_squares, solve_lstd
from latentpg.values.losses import clipped_value_loss, td_loss, value_loss
from latentpg.values.online import OnlineTD, online_td
from latentpg.values.ranges import Ranges, ranges_of
from latentpg.values.targets import TD0, Experience, MonteCarlo, NStep, Target, TDLambda, state_values

__all__ = [
    "FEATURES",
    "TD0",
    "BinaryFeatures",
    "Critic",
    "CriticFit",
    "Experience",
    "Features",
    "Fourier",
    "GaussianRBF",
    "GridCells",
    "Identity",
    "LinearCritic",
    "MonteCarlo",
    "NStep",
    "NetworkCritic",
    "OnlineTD",
    "Polynomial",
    "Ranges",
    "TDLambda",
    "Target",
    "TileCoding",
    "clipped_value_loss",
    "explained_variance",
    "fit_critic",
    "fit_to_targets",
    "make_features",
    "online_td",
    "orthogonal_",
    "ranges_of",
    "solve_least_squares",
    "solve_lstd",
    "state_values",
    "td_loss",
    "value_loss",
]
