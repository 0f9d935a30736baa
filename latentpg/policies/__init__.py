"""Policies: ready-made ones, and adapters to and from other people's Pyro programs."""

from latentpg.policies.chunk import ChunkPolicy
from latentpg.policies.episode import EpisodePolicy
from latentpg.policies.foreign import ForeignPolicy, from_pyro
from latentpg.policies.gaussian import GaussianPolicy
from latentpg.policies.mixture import MixturePolicy
from latentpg.policies.plain import PlainPolicy
from latentpg.policies.priors import CodeLatent, GaussianLatent, NormalMixture
from latentpg.policies.spaces import decode_actions, encode_actions, encode_observations, observation_size
from latentpg.policies.svi import svi_pair
from latentpg.policies.two_level import TwoLevelPolicy

__all__ = [
    "ChunkPolicy",
    "CodeLatent",
    "EpisodePolicy",
    "ForeignPolicy",
    "GaussianLatent",
    "GaussianPolicy",
    "MixturePolicy",
    "NormalMixture",
    "PlainPolicy",
    "TwoLevelPolicy",
    "decode_actions",
    "encode_actions",
    "encode_observations",
    "from_pyro",
    "observation_size",
    "svi_pair",
]
