r"""Scripted demonstrators: a smooth path is planned, followed with a shaky hand, and kept where it does what it should.

A plan is a sequence of points at equal distances along a path through waypoints. It is followed by the displacements

.. math:: u_t = (q_{t+1} - q_t) + g\,(q_t - d_t) + \sigma\varepsilon_t,\qquad \varepsilon_t\sim\mathcal N(0, I),

with plan :math:`q`, where the demonstrator is (or wishes to be) :math:`d`, a pull :math:`g` back to the plan and a
shake :math:`\sigma`. Where a demonstrator is off its plan by :math:`\delta`, :math:`\delta' = (1-g)\delta +
\sigma\varepsilon`: it strays with a standard deviation of :math:`\sigma/\sqrt{1-(1-g)^2}` in each coordinate, and the
way back is in the data. What is recorded are the observations and the actions as they were carried out, in float32;
stepping the environment with them from the first observation gives the others, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float32, Int
from numpy.typing import NDArray

from latentpg.envs.dynamics import Dynamics
from latentpg.envs.planar import shortened
from latentpg.errors import OptionError

MAX_ATTEMPTS = 100
"""How many demonstrations are tried for each that is kept, before a style is given up."""

_SMOOTHING = 7


@dataclass(frozen=True)
class Style:
    r"""How a demonstrator moves, in the units of the task: everything in which two demonstrations of a mode differ.

    ``speed`` is the distance of a plan's points, multiplied for each demonstration by
    :math:`\exp(\text{pace}\cdot\varepsilon)`; ``spread`` the standard deviation of each waypoint across its gate;
    ``shake`` and ``pull`` are :math:`\sigma` and :math:`g` above.
    """

    speed: float | int
    pace: float | int
    spread: float | int
    shake: float | int
    pull: float | int

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("pace", "spread", "shake"):
            if not getattr(self, name) >= 0:
                raise OptionError("Style()", f"`{name}`", expected="a number >= 0", got=repr(getattr(self, name)))
        if not self.speed > 0:
            raise OptionError("Style()", "`speed`", expected="a number > 0", got=repr(self.speed))
        if not 0 <= self.pull <= 1:
            raise OptionError("Style()", "`pull`", expected="a number in [0, 1]", got=repr(self.pull))


@dataclass(frozen=True)
class ShownEpisodes:
    """E episodes as M rows: episode 0 from its first step to its last, then episode 1, and so on.

    ``mode [E]`` is which way each episode takes, ``lengths [E]`` its steps. The last action of every episode succeeds;
    the observation behind it is not recorded.
    """

    obs: Float32[NDArray[np.float32], "M S"]
    action: Float32[NDArray[np.float32], "M A"]
    mode: Int[NDArray[np.int64], " E"]
    lengths: Int[NDArray[np.int64], " E"]

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.lengths)

    @property
    def episode(self) -> Int[NDArray[np.int64], " M"]:
        """Each row's episode."""
        return np.repeat(np.arange(self.num_episodes), self.lengths)

    def rows(self, episode: int) -> slice:
        """Return where an episode's rows are."""
        end = int(self.lengths[: episode + 1].sum())
        return slice(end - int(self.lengths[episode]), end)


@dataclass(frozen=True)
class Episode:
    """One attempt: what was seen and done in T steps, and whether it succeeded."""

    obs: Float32[NDArray[np.float32], "T S"]
    action: Float32[NDArray[np.float32], "T A"]
    succeeded: bool


def plan_path(waypoints: Float[NDArray[np.float64], "W 2"], *, speed: float | int) -> Float[NDArray[np.float64], "P 2"]:
    """Walk straight from waypoint to waypoint in steps of about ``speed``, and round the corners by a moving average.

    >>> plan_path(np.array([[0.0, 0.0], [0.0, 1.0]]), speed=0.5)[:, 1].round(3).tolist()
    [0.357, 0.5, 0.643]
    """
    legs = np.sqrt((np.diff(waypoints, axis=0) ** 2).sum(1))
    along = np.concatenate([[0.0], np.cumsum(legs)])
    places = np.linspace(0.0, along[-1], 1 + max(1, round(along[-1] / speed)))
    points = np.stack([np.interp(places, along, waypoints[:, axis]) for axis in (0, 1)], 1)
    margin = _SMOOTHING // 2
    padded = np.concatenate([np.repeat(points[:1], margin, 0), points, np.repeat(points[-1:], margin, 0)])
    return np.lib.stride_tricks.sliding_window_view(padded, _SMOOTHING, 0).mean(-1)


def follow(
    dynamics: Dynamics,
    plan: Float[NDArray[np.float64], "P 2"],
    *,
    style: Style,
    unit: float | int,
    longest: float | int,
    max_steps: int,
    noise: np.random.Generator,
) -> Episode:
    """Follow a plan until the episode is over.

    The first two numbers of the state are what the actions move: by ``unit`` for an action of length 1, and by
    ``longest`` at most. Behind the plan's end its last point is held.
    """
    state, seen, done = dynamics.start(noise)[None], [], []
    for step in range(max_steps):
        now, following = plan[min(step, len(plan) - 1)], plan[min(step + 1, len(plan) - 1)]
        shake = style.shake * noise.standard_normal(2)
        wish = following - now + style.pull * (now - state[0, :2]) + shake
        action = (shortened(wish[None], longest) / unit).astype(np.float32)
        seen.append(np.asarray(dynamics.observe(state)[0], dtype=np.float32))
        done.append(action[0])
        state, reward, over = dynamics.step(state, action, [noise])
        if over[0]:
            return Episode(np.stack(seen), np.stack(done), bool(reward[0] > 0))
    return Episode(np.stack(seen), np.stack(done), False)


def gather(
    modes: Sequence[int], attempt: Callable[[int], Episode], tell: Callable[[Episode], int], *, where: str
) -> ShownEpisodes:
    """Demonstrate each mode in turn; ``attempt(mode)`` is repeated until it succeeds and ``tell`` says it is the mode.

    ``where`` names the caller in the error that ends it after :data:`MAX_ATTEMPTS`.
    """
    kept = []
    for mode in modes:
        tries = (attempt(mode) for _ in range(MAX_ATTEMPTS))
        good = next((episode for episode in tries if episode.succeeded and tell(episode) == mode), None)
        if good is None:
            raise OptionError(
                where,
                f"none of {MAX_ATTEMPTS} attempts at mode {mode} succeeded in it",
                likely="a style that is too rough for the gates",
                fix="less `spread` or `shake`, more `pull`, or a lower `speed`",
            )
        kept.append(good)
    return ShownEpisodes(
        np.concatenate([episode.obs for episode in kept]),
        np.concatenate([episode.action for episode in kept]),
        np.array(list(modes), dtype=np.int64),
        np.array([len(episode.action) for episode in kept], dtype=np.int64),
    )
