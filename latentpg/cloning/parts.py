"""The parts a run of cloning is put together from, by the names that flags and files use, and the options of each.

A run has data, an environment to act in (or none), a policy, an objective, and for some objectives a proposal. Policies
and their options are training's own (:mod:`latentpg.training.policies`), so that a run of one can go on in the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

from latentpg.errors import OptionError, did_you_mean
from latentpg.estimators.registry import PROPOSALS
from latentpg.imitation import OBJECTIVES, FitOptions
from latentpg.imitation.registry import make_objective
from latentpg.training.parts import NONE, NoPart, default_of, options_of
from latentpg.training.policies import POLICY_PARTS, NetworkOptions

SCRIPTED = "scripted:"
"""What names of data begin with that a scripted demonstrator makes: ``scripted:latentpg/Avoiding-v0``."""

Acts = Literal["stochastic", "decoder-mean", "ensembled"]
"""How roll-outs act: as the policy is, by its decoder's mean at a sampled z, or by the average of chunks."""


@dataclass(frozen=True)
class CloningOptions(NetworkOptions):
    """What a run of cloning is, whatever it is put together from; its networks are as :class:`NetworkOptions` has them.

    Their defaults are not training's: a network that is to copy needs no timid start, and standard deviations begin at
    a third of half the action space.

    ``num_demonstrations`` and ``demonstration_seed`` are of scripted data. Episodes are split by ``split`` into
    training, validation and test. A checkpoint is written every ``checkpoint_every`` epochs, a row of metrics every
    ``log_every``. What is handed on is the ``"best"`` measurement on the validation part or the ``"last"`` epoch
    (``keep``). With ``per_datum`` every row has a density of its own for its latent.

    At the end ``rollouts`` episodes are played in ``num_envs`` environments, acting by ``acting``. The likelihood of
    the test part, ``measured_episodes`` of it at most (fewer where they are more than 4,000 rows), is bounded with
    ``likelihood_particles``, and by annealing over ``annealing_temperatures`` with ``annealing_chains``; 0 temperatures
    leave that out.
    """

    hidden: tuple[int, ...] = (128, 128)
    activation: Literal["tanh", "relu", "silu"] = "silu"
    initial_log_std: float | int = -1.0
    orthogonal_init: bool = False
    seed: int = 0
    num_demonstrations: int = 96
    demonstration_seed: int = 0
    split: tuple[float, ...] = (0.8, 0.1, 0.1)
    keep: Literal["best", "last"] = "best"
    per_datum: bool = False
    checkpoint_every: int = 50
    log_every: int = 1
    rollouts: int = 480
    num_envs: int = 32
    acting: Acts = "stochastic"
    measured_episodes: int = 100
    likelihood_particles: tuple[int, ...] = (1, 4, 16, 64, 256)
    annealing_temperatures: int = 20
    annealing_chains: int = 8

    def __post_init__(self) -> None:
        """Check the numbers."""
        super().__post_init__()
        least = {"seed": 0, "demonstration_seed": 0, "rollouts": 0, "annealing_temperatures": 0, "measured_episodes": 4}
        for each in fields(self):
            value, smallest = getattr(self, each.name), least.get(each.name, 1)
            if type(each.default) is int and (type(value) is not int or value < smallest):
                raise OptionError(
                    "CloningOptions()", f"`{each.name}`", expected=f"an integer >= {smallest}", got=repr(value)
                )
        if not self.likelihood_particles or min(self.likelihood_particles) < 1:
            raise OptionError(
                "CloningOptions()",
                "`likelihood_particles`",
                expected="integers >= 1, one or more",
                got=repr(self.likelihood_particles),
            )


SELECTORS: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "policy": POLICY_PARTS,
    "objective": OBJECTIVES,
    "proposal": {NONE: NoPart, **PROPOSALS},
}
"""What each selector chooses from: a class by name, whose fields are the part's options."""

COMMON: Mapping[str, type] = {"run": CloningOptions, "fit": FitOptions}
"""The parts of every run."""


@dataclass(frozen=True)
class CloningSelection:
    """The data, the environment, and the name of each part; what was left open follows from the rest.

    Data of a scripted demonstrator bring their environment. A policy whose likelihood is a sum is fitted exactly, any
    other by the evidence lower bound.

    >>> CloningSelection.of(data="scripted:latentpg/Routes-v0", policy="gaussian")
    CloningSelection(data='scripted:latentpg/Routes-v0', env='latentpg/Routes-v0', policy='gaussian', objective='elbo', proposal='none')
    """  # noqa: E501 (a printed value is one line)

    data: str
    env: str | None
    policy: str
    objective: str
    proposal: str

    @classmethod
    def of(
        cls,
        *,
        data: str,
        env: str | None = None,
        policy: str | None = None,
        objective: str | None = None,
        proposal: str | None = None,
        latent_kind: str | None = None,
    ) -> CloningSelection:
        """Check the names and choose what was left open; ``latent_kind`` is the option of a policy over several steps.

        An objective that the policy's latent does not allow is an :class:`~latentpg.errors.OptionError`.
        """
        if env is None and data.startswith(SCRIPTED):
            env = data.removeprefix(SCRIPTED)
        policy = _checked("policy", policy or "mixture")
        kind = latent_of(policy, latent_kind)
        if objective is None:
            objective = "elbo" if kind == "continuous" else "exact"
        make_objective(objective)  # which knows the names, and why some estimators have no place here
        check_objective(policy, kind, objective)
        return cls(data, env, policy, objective, _proposal_of(objective, proposal))

    def parts(self) -> dict[str, Callable[..., Any]]:
        """Return the classes of all parts, those of every run among them, by the selector or name of each."""
        return {**COMMON, **{name: known[getattr(self, name)] for name, known in SELECTORS.items()}}


def latent_of(policy: str, latent_kind: str | None = None) -> str:
    """Say what the latent of a policy is: ``"none"``, ``"discrete"`` or, wholly or in part, ``"continuous"``.

    >>> latent_of("mixture"), latent_of("two-level"), latent_of("episode", "codes")
    ('discrete', 'continuous', 'discrete')
    """
    if policy in ("chunk", "episode"):
        return "discrete" if latent_kind == "codes" else "continuous"
    return {"mixture": "discrete", "plain": "none"}.get(policy, "continuous")


def check_objective(policy: str, kind: str, objective: str) -> None:
    """Refuse an objective that there is nothing to enumerate for, or no latent at all."""
    if objective in ("exact", "em") and kind == "continuous":
        codes = policy in ("chunk", "episode")
        raise OptionError(
            "latentpg imitate",
            f"objective {objective} sums over the values of a latent, and that of policy {policy} is continuous",
            expected="--policy mixture, or chunk or episode with --latent-kind codes",
            got=f"--policy {policy} --objective {objective}",
            fix="--latent-kind codes, or --objective elbo" if codes else "--objective elbo, or iwae",
        )
    if objective != "exact" and kind == "none":
        raise OptionError(
            "latentpg imitate",
            f"objective {objective} infers a latent, and policy {policy} has none",
            expected="--objective exact, which is its likelihood in closed form",
            got=f"--policy {policy} --objective {objective}",
            fix="--objective exact",
        )


def owner_of(option: str) -> str | None:
    """Name a part of cloning that has an option, as a command line chooses it; None if no part does.

    >>> owner_of("free_nats"), owner_of("split"), owner_of("colour")
    ('--objective elbo', 'every run', None)
    """
    if any(option in options_of(part, maker) for part, maker in COMMON.items()):
        return "every run"
    for selector, known in SELECTORS.items():
        for name, maker in known.items():
            if option in options_of(selector, maker):
                return f"--{selector} {name}"
    return None


def _checked(selector: str, name: str) -> str:
    known = SELECTORS[selector]
    if name not in known:
        raise OptionError(
            f"--{selector}",
            "unknown name",
            expected=f"one of {', '.join(known)}",
            got=repr(name),
            fix=did_you_mean(name, known),
        )
    return name


def _proposal_of(objective: str, proposal: str | None) -> str:
    """Return the proposal of an objective that has one, its own unless another is asked for."""
    own = next((each for each in fields(OBJECTIVES[objective]) if each.name == "proposal"), None)  # type: ignore[arg-type]
    if own is None:
        if proposal not in (None, NONE):
            raise OptionError(
                "latentpg imitate",
                f"objective {objective} has no proposal",
                expected="none",
                got=f"--proposal {proposal}",
                fix="leave it out, or --objective reweighted-wake-sleep",
            )
        return NONE
    if proposal in (None, NONE):
        kind = type(default_of(own))
        return next(name for name, maker in PROPOSALS.items() if maker is kind)
    return _checked("proposal", str(proposal))
