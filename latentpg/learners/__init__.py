"""The loops that train: acting, estimating, surrogates and critics put together."""

from latentpg.learners.actor_critic import A2C, A2COptions
from latentpg.learners.agent import Agent, AgentOptions
from latentpg.learners.descent import Descent
from latentpg.learners.faults import LearningFault
from latentpg.learners.grpo import GRPO
from latentpg.learners.grpo_options import GRPOOptions
from latentpg.learners.learner import Learner
from latentpg.learners.online import OnlineActorCritic, OnlineOptions
from latentpg.learners.ppo import PPO
from latentpg.learners.ppo_options import PPOOptions
from latentpg.learners.reinforce import Reinforce
from latentpg.learners.reinforce_options import ReinforceOptions
from latentpg.learners.scoring import Fresh, Rows, Scored, Scorer, Stored, make_scorer

__all__ = [
    "A2C",
    "GRPO",
    "PPO",
    "A2COptions",
    "Agent",
    "AgentOptions",
    "Descent",
    "Fresh",
    "GRPOOptions",
    "Learner",
    "LearningFault",
    "OnlineActorCritic",
    "OnlineOptions",
    "PPOOptions",
    "Reinforce",
    "ReinforceOptions",
    "Rows",
    "Scored",
    "Scorer",
    "Stored",
    "make_scorer",
]
