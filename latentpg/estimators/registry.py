"""Names for estimators, proposals and guide objectives, as a command line or a configuration file spells them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from latentpg.errors import OptionError, did_you_mean
from latentpg.estimators.base import Estimator
from latentpg.estimators.exact import Exact
from latentpg.estimators.guides import (
    IWAE,
    VIMCO,
    ConditionalWake,
    DoublyReparameterized,
    ELBOGuide,
    GuideObjective,
    Recorded,
    ScoreELBO,
    Sleep,
    StickingTheLanding,
    Wake,
)
from latentpg.estimators.importance import ELBO, ConditionalIS, JointScore, PosteriorIS, SplitIS, WakeSleep
from latentpg.estimators.markovian import MarkovianIS
from latentpg.estimators.proposals import Guide, Mixture, Prior
from latentpg.estimators.quadrature import Quadrature
from latentpg.estimators.reparameterized import Reparameterized

ESTIMATORS: Mapping[str, Callable[..., Estimator]] = {
    "exact": Exact,
    "quadrature": Quadrature,
    "joint-score": JointScore,
    "posterior-is": PosteriorIS,
    "conditional-is": ConditionalIS,
    "split-is": SplitIS,
    "elbo": ELBO,
    "reparameterized": Reparameterized,
    "wake-sleep": WakeSleep,
    "markovian-is": MarkovianIS,
}
"""Every estimator of log pi by name."""

GUIDE_OBJECTIVES: Mapping[str, Callable[..., GuideObjective]] = {
    "elbo": ELBOGuide,
    "elbo-score": ScoreELBO,
    "elbo-stl": StickingTheLanding,
    "iwae": IWAE,
    "iwae-dreg": DoublyReparameterized,
    "vimco": VIMCO,
    "wake": Wake,
    "sleep": Sleep,
    "recorded": Recorded,
    "conditional-wake": ConditionalWake,
}
"""Every guide objective by name."""

PROPOSALS: Mapping[str, Callable[..., Any]] = {"prior": Prior, "guide": Guide, "mixture": Mixture}
"""Every proposal by name."""


def make_estimator(name: str, options: Mapping[str, Any] | None = None) -> Estimator:
    """Build an estimator from its name and options; ``proposal`` may be a name too.

    >>> make_estimator("conditional-is", {"num_particles": 4, "proposal": "guide"})
    ConditionalIS(num_particles=4, proposal=Guide())
    """
    chosen = dict(options or {})
    if isinstance(chosen.get("proposal"), str):
        chosen["proposal"] = _make("proposal", PROPOSALS, chosen["proposal"], {})
    return _make("estimator", ESTIMATORS, name, chosen)


def make_guide_objective(name: str, options: Mapping[str, Any] | None = None) -> GuideObjective:
    """Build a guide objective from its name and options.

    >>> make_guide_objective("vimco", {"num_particles": 4})
    VIMCO(num_particles=4)
    """
    return _make("guide objective", GUIDE_OBJECTIVES, name, dict(options or {}))


def _make(kind: str, known: Mapping[str, Callable[..., Any]], name: str, options: Mapping[str, Any]) -> Any:  # noqa: ANN401 (one of three protocols)
    if name not in known:
        raise OptionError(
            f"{kind} registry",
            f"unknown {kind}",
            expected=f"one of {', '.join(sorted(known))}",
            got=repr(name),
            fix=did_you_mean(name, known),
        )
    allowed = list(inspect.signature(known[name]).parameters)
    for option in options:
        if option not in allowed:
            raise OptionError(
                f"{kind} {name}",
                f"unknown option `{option}`",
                expected=f"one of {', '.join(allowed)}" if allowed else "no options",
                got=repr(option),
                fix=did_you_mean(option, allowed) if allowed else f"drop `{option}`",
            )
    return known[name](**options)
