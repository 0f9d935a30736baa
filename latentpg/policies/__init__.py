"""Policies: ready-made ones, and the spaces and networks they are built of."""

from latentpg.policies.gaussian import GaussianPolicy
from latentpg.policies.mixture import MixturePolicy
from latentpg.policies.spaces import decode_actions, encode_actions, encode_observations, observation_size
from latentpg.policies.two_level import TwoLevelPolicy

__all__ = [
    "GaussianPolicy",
    "MixturePolicy",
    "TwoLevelPolicy",
    "decode_actions",
    "encode_actions",
    "encode_observations",
    "observation_size",
]
