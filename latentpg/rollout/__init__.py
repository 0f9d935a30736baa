"""From a Gymnasium environment to tensors: what a policy saw, did and drew."""

from latentpg.rollout.chunked import Chunks, collect_chunks, play_ensembled
from latentpg.rollout.collector import Acting, CollectorState, Rollout, StepCollector, resume_collector
from latentpg.rollout.environments import LARGEST_SEED, close_envs, make_envs, resets_are_ours
from latentpg.rollout.episodes import Decisions, Episodes, SpanRows
from latentpg.rollout.faults import EnvironmentFault
from latentpg.rollout.groups import collect_episodes, collect_groups
from latentpg.rollout.held import act_holding
from latentpg.rollout.normalization import ObservationNormalizer, RewardScaler, RunningMoments
from latentpg.rollout.record import check_record
from latentpg.rollout.transitions import Transitions, record_transitions

__all__ = [
    "LARGEST_SEED",
    "Acting",
    "Chunks",
    "CollectorState",
    "Decisions",
    "EnvironmentFault",
    "Episodes",
    "ObservationNormalizer",
    "RewardScaler",
    "Rollout",
    "RunningMoments",
    "SpanRows",
    "StepCollector",
    "Transitions",
    "act_holding",
    "check_record",
    "close_envs",
    "collect_chunks",
    "collect_episodes",
    "collect_groups",
    "make_envs",
    "play_ensembled",
    "record_transitions",
    "resets_are_ours",
    "resume_collector",
]
