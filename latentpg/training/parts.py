"""The parts a run is put together from, by the names that flags and files use, and the options each of them has.

A run has one algorithm, policy, estimator, proposal and guide objective. Each is a *selector*: it names a part, and the
part brings options of its own. Options are named without their part, as the field names them, so no two parts of one
run may have options of one name; those of a guide objective begin with ``guide_`` for that reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal

from latentpg.errors import OptionError, did_you_mean
from latentpg.estimators import ESTIMATORS, GUIDE_OBJECTIVES, ClosedForm
from latentpg.estimators.registry import PROPOSALS
from latentpg.learners import AgentOptions
from latentpg.rollout.supervised import WORKER_TIMEOUT
from latentpg.training.algorithms import ALGORITHMS
from latentpg.training.policies import POLICY_PARTS, NetworkOptions

NONE = "none"
"""The name of no part: no proposal, or a guide that is not taught."""

MAX_ENVS = 2**16
"""The largest number of environments: each is made, one by one, before anything else can be said."""


@dataclass(frozen=True)
class RunOptions(NetworkOptions):
    """What a run is, whatever it is put together from; its networks are as :class:`NetworkOptions` has them.

    An evaluation plays ``eval_episodes`` episodes whenever another ``eval_every`` steps have been taken, a checkpoint
    is written every ``checkpoint_every``, and a row of metrics every ``log_every`` updates. With ``video_every`` an
    episode is filmed whenever so many steps have been taken; None films none. A worker process of ``"async"``
    environments that gives no answer within ``worker_timeout`` seconds ends the run.
    """

    num_envs: int = 8
    vectorization_mode: Literal["sync", "async", "native"] = "sync"
    total_timesteps: int = 100_000
    seed: int = 0
    normalize_observations: bool = False
    eval_every: int = 10_000
    eval_episodes: int = 20
    eval_acting: Literal["stochastic", "decoder-mean"] = "stochastic"
    checkpoint_every: int = 10_000
    log_every: int = 1
    video_every: int | None = None
    worker_timeout: float | int = WORKER_TIMEOUT

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        least = {"seed": 0, "eval_episodes": 4}
        for each in fields(self):
            value, smallest = getattr(self, each.name), least.get(each.name, 1)
            if type(each.default) is int and (type(value) is not int or value < smallest):
                raise OptionError(
                    "RunOptions()", f"`{each.name}`", expected=f"an integer >= {smallest}", got=repr(value)
                )
        if self.num_envs > MAX_ENVS:
            expected, got = f"at most {MAX_ENVS}", repr(self.num_envs)
            raise OptionError("RunOptions()", "`num_envs`", expected=expected, got=got)
        every = self.video_every
        if every is not None and (type(every) is not int or every < 1):
            raise OptionError("RunOptions()", "`video_every`", expected="an integer >= 1, or None", got=repr(every))
        if not 0 < self.worker_timeout < math.inf:
            got = repr(self.worker_timeout)
            raise OptionError("RunOptions()", "`worker_timeout`", expected="seconds > 0", got=got)


@dataclass(frozen=True)
class NoPart:
    """Nothing, which has no options."""


SELECTORS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "algo": {name: algorithm.options for name, algorithm in ALGORITHMS.items()},
    "policy": POLICY_PARTS,
    "estimator": {**ESTIMATORS, "closed-form": ClosedForm},
    "proposal": {NONE: NoPart, **PROPOSALS},
    "guide_objective": {NONE: NoPart, **GUIDE_OBJECTIVES},
}
"""What each selector chooses from: a class by name, whose fields are the part's options."""

COMMON: Mapping[str, type] = {"run": RunOptions, "agent": AgentOptions}
"""The parts of every run."""

PREFIX: Mapping[str, str] = {"guide_objective": "guide_"}
"""What a part's options begin with, beside their names."""

_OBJECTIVES = {
    "posterior-is": "recorded",
    "split-is": "recorded",
    "conditional-is": "conditional-wake",
    "elbo": "elbo",
    "wake-sleep": "wake",
}


@dataclass(frozen=True)
class Selection:
    """The environment, and the name of each part; what was left open follows from the rest.

    A plain policy has its log pi in closed form. A proposal that asks the guide has the guide taught, by the objective
    that suits the estimator; one from the prior needs none.

    >>> Selection.of(env="CartPole-v1", proposal="guide").guide_objective
    'conditional-wake'
    """

    env: str
    algo: str
    policy: str
    estimator: str
    proposal: str
    guide_objective: str

    @classmethod
    def of(
        cls,
        *,
        env: str,
        algo: str | None = None,
        policy: str | None = None,
        estimator: str | None = None,
        proposal: str | None = None,
        guide_objective: str | None = None,
    ) -> Selection:
        """Check the names and choose what was left open."""
        policy = checked_name("policy", policy or "mixture")
        estimator = checked_name("estimator", estimator or ("closed-form" if policy == "plain" else "conditional-is"))
        if proposal is None or proposal == NONE:
            proposal = _proposal_of(estimator)
        elif _proposal_of(estimator) == NONE:
            raise OptionError(
                "training", f"estimator {estimator} has no proposal", expected="none", got=repr(proposal), fix="drop it"
            )
        if guide_objective is None:
            asks_guide = proposal in ("guide", "mixture") or estimator in ("elbo", "wake-sleep")
            guide_objective = _OBJECTIVES.get(estimator, NONE) if asks_guide else NONE
        selection = cls(
            env,
            checked_name("algo", algo or "ppo"),
            policy,
            estimator,
            checked_name("proposal", proposal),
            checked_name("guide_objective", guide_objective),
        )
        if policy == "plain" and (estimator != "closed-form" or guide_objective != NONE):
            raise OptionError(
                "training",
                "a plain policy has no latent to estimate over, and no guide",
                expected="--estimator closed-form and --guide-objective none",
                got=f"--estimator {estimator} --guide-objective {guide_objective}",
                fix="leave both out, or choose a latent policy",
            )
        if policy != "plain" and estimator == "closed-form":
            raise OptionError(
                "training", f"policy {policy} has no closed form", got="--estimator closed-form", fix="--policy plain"
            )
        return selection

    def parts(self) -> dict[str, Callable[..., Any]]:
        """Return the classes of all parts, those of every run among them, by the selector or name of each."""
        return {**COMMON, **{name: known[getattr(self, name)] for name, known in SELECTORS.items()}}


def checked_name(selector: str, name: str) -> str:
    """Return the name, which must be one that the selector knows."""
    known = SELECTORS[selector]
    if name not in known:
        raise OptionError(
            f"--{selector.replace('_', '-')}",
            "unknown name",
            expected=f"one of {', '.join(known)}",
            got=repr(name),
            fix=did_you_mean(name, known),
        )
    return name


def options_of(part: str, maker: Callable[..., Any]) -> dict[str, Field[Any]]:
    """Return a part's fields by the names of its options; a proposal is a part of its own and no option.

    >>> list(options_of("guide_objective", GUIDE_OBJECTIVES["sleep"]))
    ['guide_num_dreams']
    """
    return {PREFIX.get(part, "") + f.name: f for f in fields(maker) if f.name != "proposal"}  # type: ignore[arg-type]


def default_of(field: Field[Any]) -> Any:  # noqa: ANN401 (any option's value)
    """Return a field's default."""
    if field.default is not MISSING:
        return field.default
    assert field.default_factory is not MISSING  # every option has a default
    return field.default_factory()


def owner_of(option: str) -> str | None:
    """Name a part that has an option, as a command line chooses it; None if no part does.

    >>> owner_of("num_components"), owner_of("seed"), owner_of("colour")
    ('--policy mixture', 'every run', None)
    """
    if any(option in options_of(part, maker) for part, maker in COMMON.items()):
        return "every run"
    for selector, known in SELECTORS.items():
        for name, maker in known.items():
            if option in options_of(selector, maker):
                return f"--{selector.replace('_', '-')} {name}"
    return None


def _proposal_of(estimator: str) -> str:
    """Return the name of an estimator's own proposal."""
    for each in fields(SELECTORS["estimator"][estimator]):  # type: ignore[arg-type]
        if each.name == "proposal":
            kind = type(default_of(each))
            return next(name for name, maker in PROPOSALS.items() if maker is kind)
    return NONE
