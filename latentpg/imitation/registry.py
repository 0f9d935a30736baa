"""Names for objectives, as a command line or a configuration file spells them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from latentpg.errors import OptionError, RecordedLatentError, did_you_mean
from latentpg.estimators import PROPOSALS
from latentpg.imitation.bounds import ImportanceBound, VariationalBound
from latentpg.imitation.em import ExpectationMaximization
from latentpg.imitation.objectives import (
    NO_LATENT,
    ClassicWakeSleep,
    MaximumLikelihood,
    Objective,
    ReweightedWakeSleep,
    ScoreClimbing,
)

OBJECTIVES: Mapping[str, Callable[..., Objective]] = {
    "exact": MaximumLikelihood,
    "elbo": VariationalBound,
    "iwae": ImportanceBound,
    "reweighted-wake-sleep": ReweightedWakeSleep,
    "wake-sleep": ClassicWakeSleep,
    "score-climbing": ScoreClimbing,
    "em": ExpectationMaximization,
}
"""Every objective over demonstrations by name."""

NEED_A_LATENT = ("conditional-is", "joint-score", "recorded", "conditional-wake")
"""Names of estimators and guide objectives that have no place here: they need the latent recorded while acting."""


def make_objective(name: str, options: Mapping[str, Any] | None = None) -> Objective:
    """Build an objective from its name and options; ``proposal`` may be a name too.

    >>> make_objective("reweighted-wake-sleep", {"num_particles": 4, "proposal": "mixture"})
    ReweightedWakeSleep(num_particles=4, guide='wake', proposal=Mixture(prior_weight=0.5))
    """
    if name in NEED_A_LATENT:
        raise RecordedLatentError(
            "objective registry",
            NO_LATENT,
            expected=f"one of {', '.join(sorted(OBJECTIVES))}",
            got=repr(name),
            fix="score-climbing, which keeps a chain for every datum instead",
        )
    if name not in OBJECTIVES:
        raise OptionError(
            "objective registry",
            "unknown objective",
            expected=f"one of {', '.join(sorted(OBJECTIVES))}",
            got=repr(name),
            fix=did_you_mean(name, OBJECTIVES),
        )
    chosen, allowed = dict(options or {}), list(inspect.signature(OBJECTIVES[name]).parameters)
    for option in chosen:
        if option not in allowed:
            raise OptionError(
                f"objective {name}",
                f"unknown option `{option}`",
                expected=f"one of {', '.join(allowed)}" if allowed else "no options",
                got=repr(option),
                fix=did_you_mean(option, allowed) if allowed else f"drop `{option}`",
            )
    if isinstance(proposal := chosen.get("proposal"), str):
        if proposal not in PROPOSALS:
            raise OptionError(
                f"objective {name}",
                "unknown proposal",
                expected=f"one of {', '.join(PROPOSALS)}",
                got=repr(proposal),
                fix=did_you_mean(proposal, PROPOSALS),
            )
        chosen["proposal"] = PROPOSALS[proposal]()
    return OBJECTIVES[name](**chosen)
