"""Guide objectives: what psi is trained on, chosen apart from the estimator of log pi."""

from latentpg.estimators.guides.base import GuideObjective
from latentpg.estimators.guides.elbo import ELBOGuide, ScoreELBO, StickingTheLanding
from latentpg.estimators.guides.iwae import IWAE, VIMCO, DoublyReparameterized
from latentpg.estimators.guides.wake import ConditionalWake, Recorded, Sleep, Wake

__all__ = [
    "IWAE",
    "VIMCO",
    "ConditionalWake",
    "DoublyReparameterized",
    "ELBOGuide",
    "GuideObjective",
    "Recorded",
    "ScoreELBO",
    "Sleep",
    "StickingTheLanding",
    "Wake",
]
