"""Who demonstrates: scripts that come with environments, functions of the user's own, and the policies of runs.

A script of this package shows whole episodes and knows the mode of each (:data:`SCRIPTED`). A function of one's own is
``module:make``: ``make(seed)`` is called once an episode and returns what acts in it, from an observation as the
environment gives it to an action as the environment takes it; whatever that remembers is the episode's. If it has an
attribute ``mode`` when the episode is over, an integer >= 0, that is the episode's mode. It is a program, so that it
needs the user's word as an environment ``module:Env`` does.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor

from latentpg.data import Demonstrations
from latentpg.envs import avoiding, avoiding_demonstrator, routes, routes_demonstrator
from latentpg.envs.demonstrators import ShownEpisodes
from latentpg.errors import OptionError, did_you_mean

Act = Callable[[Any], Any]
"""From an observation as the environment gives it to an action as the environment takes it, for one episode."""

MakeExpert = Callable[[int], Act]
"""From an episode's seed to what acts in it."""


@runtime_checkable
class Show(Protocol):
    """Demonstrate; exactly one of the two numbers is given."""

    def __call__(self, *, episodes: int | None, per_mode: int | None, seed: int) -> ShownEpisodes:
        """Show so many episodes, or so many of each mode."""
        ...


@dataclass(frozen=True)
class Script:
    """A scripted demonstrator: what it is, how it shows, and how the modes of E episodes are told from their rows."""

    title: str
    show: Show
    tell: Callable[[Float[NDArray[Any], "M S"], Int[NDArray[Any], " E"]], Int[NDArray[Any], " E"]]


def _show_avoiding(*, episodes: int | None, per_mode: int | None, seed: int) -> ShownEpisodes:
    if per_mode is None:
        assert episodes is not None
        per_mode, left = divmod(episodes, avoiding.NUM_MODES)
        if left:
            raise OptionError(
                "latentpg record",
                "`--episodes` of a script that shows every mode as often as any other",
                expected=f"a multiple of {avoiding.NUM_MODES}",
                got=repr(episodes),
                fix=f"--episodes-per-mode {max(1, per_mode)}",
            )
    return avoiding_demonstrator.demonstrate(per_mode=per_mode, seed=seed)


def _show_routes(*, episodes: int | None, per_mode: int | None, seed: int) -> ShownEpisodes:
    if episodes is None:
        raise OptionError(
            "latentpg record",
            "`--episodes-per-mode` of a script that draws the mode of each episode",
            expected="--episodes",
            got=f"--episodes-per-mode {per_mode}",
            fix="--episodes 100",
        )
    return routes_demonstrator.demonstrate(num_episodes=episodes, seed=seed)


SCRIPTED: Mapping[str, Script] = {
    "latentpg/Avoiding-v0": Script("All 24 modes, each as often.", _show_avoiding, avoiding.episode_modes),
    "latentpg/Routes-v0": Script(
        "Three routes, with probabilities .3, .4 and .3.", _show_routes, routes.episode_routes
    ),
}
"""Every script by the environment that it demonstrates."""


def script_of(env_id: str) -> Script:
    """Return the script that demonstrates an environment.

    >>> script_of("latentpg/Routes-v0").title
    'Three routes, with probabilities .3, .4 and .3.'
    """
    if env_id not in SCRIPTED:
        raise OptionError(
            "latentpg record",
            f"no script demonstrates {env_id}",
            expected=f"one of {', '.join(SCRIPTED)}",
            got=repr(env_id),
            fix=f"{did_you_mean(env_id, SCRIPTED)}; or --expert RUN, or --expert module:make",
        )
    return SCRIPTED[env_id]


def shown_by_script(
    env_id: str, *, episodes: int | None = None, per_mode: int | None = None, seed: int = 0
) -> Demonstrations:
    """Let the script of an environment demonstrate; every episode of it succeeds in its mode.

    >>> shown_by_script("latentpg/Routes-v0", episodes=4).mode
    tensor([2, 1, 2, 0])
    """
    shown = script_of(env_id).show(episodes=episodes, per_mode=per_mode, seed=seed)
    rows = (torch.from_numpy(shown.obs), torch.from_numpy(shown.action), torch.from_numpy(shown.episode))
    return Demonstrations(*rows, mode=torch.from_numpy(shown.mode), source=f"the script of {env_id}, seed {seed}")


def modes_of(env_id: str, obs: Float[Tensor, "M S"], lengths: Int[Tensor, " E"]) -> Int[Tensor, " E"] | None:
    """Tell the modes of episodes from their observations; None where nobody knows them, or one episode has none."""
    if env_id not in SCRIPTED:
        return None
    modes = torch.from_numpy(SCRIPTED[env_id].tell(obs.numpy(), lengths.numpy()))
    return modes if bool((modes >= 0).all()) else None


def load_function(text: str, *, trusted: bool) -> MakeExpert:
    """Import ``module:make``, if the user said on this command line that it may be."""
    module, _, name = text.partition(":")
    where = "latentpg record"
    if not trusted:
        raise OptionError(
            where,
            f"`{text}` would import and so execute the module {module}",
            expected="scripted, or the folder of a run",
            got=repr(text),
            fix="--trust-expert, if you trust that module",
        )
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise OptionError(
            where,
            f"`--expert {text}` is not there",
            expected="module:make, with the module where Python finds it",
            got=str(error),
            fix="PYTHONPATH=. latentpg record ..., for a module in this folder",
        ) from error
    if not callable(found):
        raise OptionError(
            where, f"`--expert {text}` cannot be called", expected="make(seed) -> act", got=type(found).__name__
        )
    made: MakeExpert = found
    return made
