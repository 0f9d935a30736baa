"""Demonstrations: episodes of different lengths as flat rows, with the episode each row belongs to.

The shapes are those of :class:`~latentpg.rollout.Episodes`, without what only a policy's own actions have: nobody
recorded a latent behind a demonstration. Estimators that need one refuse them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from latentpg.data.guards import DataError

_FLOATS = (torch.float32, torch.float64)


@dataclass(frozen=True)
class Demonstrations:
    """E episodes as M rows: episode 0 from its first step to its last, then episode 1, and so on.

    ``obs [M, S]`` is what was seen before ``action`` was done: ``[M, A]`` floating-point, or integers ``[M]`` or
    ``[M, A]``. ``episode [M]`` rises from 0 by steps of 0 or 1. Known for some datasets only are ``mode [E]``, which
    of several ways the episode took, counted from 0 and called ``mode_names``; ``reward [M]``; and ``dt [E]``, the
    seconds from row to row. ``source`` says where all this came from, in reports and in errors.

    Built only of what can be learnt from: finite numbers, float32 or float64 throughout, no empty episode.

    >>> two = Demonstrations.from_episodes([[[0.0], [1.0]], [[5.0]]], [[[1.0], [1.0]], [[-1.0]]], mode=[1, 0])
    >>> two.num_episodes, two.num_rows, two.lengths.tolist()
    (2, 3, [2, 1])
    """

    obs: Float[Tensor, "M S"]
    action: Tensor
    episode: Int[Tensor, " M"]
    mode: Int[Tensor, " E"] | None = None
    reward: Float[Tensor, " M"] | None = None
    dt: Float[Tensor, " E"] | None = None
    mode_names: tuple[str, ...] = ()
    source: str = "Demonstrations()"

    def __post_init__(self) -> None:
        """Check shapes, types and numbers."""
        self._check_rows()
        self._check_types()
        self._check_per_episode()
        for name, values in (("obs", self.obs), ("action", self.action), ("reward", self.reward)):
            if values is not None:
                self._check_finite(name, values)

    @classmethod
    def from_episodes(
        cls,
        obs: Sequence[Any],
        action: Sequence[Any],
        *,
        mode: Sequence[int] | None = None,
        reward: Sequence[Any] | None = None,
        dt: Sequence[float] | None = None,
        mode_names: Sequence[str] = (),
        dtype: torch.dtype = torch.float32,
        source: str = "Demonstrations.from_episodes()",
    ) -> Demonstrations:
        """Join one array ``[T_e, S]`` and one ``[T_e, ...]`` an episode; floating-point ones become ``dtype``."""
        parts = {"obs": [_array(source, "obs", e, each) for e, each in enumerate(obs)]}
        parts["action"] = [_array(source, "action", e, each) for e, each in enumerate(action)]
        if reward is not None:
            parts["reward"] = [_array(source, "reward", e, each) for e, each in enumerate(reward)]
        _check_episodes(source, parts)
        joined = {name: _typed(np.concatenate(each), dtype) for name, each in parts.items()}
        lengths = torch.tensor([len(each) for each in parts["obs"]])
        return cls(
            joined["obs"],
            joined["action"],
            torch.arange(len(lengths)).repeat_interleave(lengths),
            None if mode is None else torch.as_tensor(mode, dtype=torch.int64),
            joined["reward"].to(dtype) if reward is not None else None,
            None if dt is None else torch.as_tensor(dt, dtype=dtype),
            tuple(mode_names),
            source,
        )

    @property
    def num_rows(self) -> int:
        """M, steps of all episodes."""
        return len(self.obs)

    @property
    def num_episodes(self) -> int:
        """E."""
        return int(self.episode[-1]) + 1

    @property
    def lengths(self) -> Int[Tensor, " E"]:
        """Steps of each episode."""
        return torch.bincount(self.episode, minlength=self.num_episodes)

    @property
    def starts(self) -> Int[Tensor, " E"]:
        """Each episode's first row."""
        lengths = self.lengths
        return lengths.cumsum(0) - lengths

    @property
    def step(self) -> Int[Tensor, " M"]:
        """Each row's step within its episode, from 0."""
        return torch.arange(self.num_rows) - self.starts[self.episode]

    def take(self, episodes: Int[Tensor, " N"]) -> Demonstrations:
        """Return some episodes, in the order given, counted from 0 again.

        >>> two = Demonstrations.from_episodes([[[0.0], [1.0]], [[5.0]]], [[[1.0], [1.0]], [[-1.0]]], mode=[1, 0])
        >>> two.take(torch.tensor([1])).obs.tolist()
        [[5.0]]
        """
        lengths = self.lengths[episodes]
        first = self.starts[episodes] - (lengths.cumsum(0) - lengths)
        rows = torch.arange(int(lengths.sum())) + first.repeat_interleave(lengths)
        return replace(
            self,
            obs=self.obs[rows],
            action=self.action[rows],
            episode=torch.arange(len(episodes)).repeat_interleave(lengths),
            mode=None if self.mode is None else self.mode[episodes],
            reward=None if self.reward is None else self.reward[rows],
            dt=None if self.dt is None else self.dt[episodes],
        )

    def to(self, dtype: torch.dtype) -> Demonstrations:
        """Return the same in another floating-point type: a policy's, say."""
        return replace(
            self,
            obs=self.obs.to(dtype),
            action=self.action.to(dtype) if self.action.is_floating_point() else self.action,
            reward=None if self.reward is None else self.reward.to(dtype),
            dt=None if self.dt is None else self.dt.to(dtype),
        )

    def where(self, bad: Bool[Tensor, " M"]) -> str:
        """Name the first of some rows by episode and step, and count the others."""
        row, number = int(bad.nonzero()[0]), int(bad.sum())
        others = f" ({number} such steps)" if number > 1 else ""
        return f"episode {int(self.episode[row])}, step {int(self.step[row])}{others}"

    def _check_rows(self) -> None:
        rows = len(self.obs) if self.obs.ndim == 2 else -1
        fits = self.action.ndim in (1, 2) and len(self.action) == rows and self.episode.shape == (rows,)
        if rows < 1 or not fits or 0 in (*self.obs.shape, *self.action.shape):
            raise DataError(
                self.source,
                "no steps" if rows == 0 else "rows that do not fit each other",
                expected="`obs` [M, S], `action` [M] or [M, A], `episode` [M], with M >= 1",
                got=f"{list(self.obs.shape)}, {list(self.action.shape)} and {list(self.episode.shape)}",
            )
        rising = torch.diff(self.episode, prepend=self.episode.new_tensor([-1]))
        if not bool(((rising == 0) | (rising == 1)).all()) or int(self.episode[0]) != 0:
            row = int(((rising < 0) | (rising > 1)).to(torch.int8).argmax()) if int(self.episode[0]) == 0 else 0
            raise DataError(
                self.source,
                "`episode` skips a number or goes back",
                expected="0 for the first row, then the same or one more from row to row",
                got=f"{int(self.episode[row])} in row {row}",
                likely="an empty episode, or rows out of order",
            )
        if self.reward is not None and self.reward.shape != (rows,):
            raise DataError(self.source, "`reward`", expected=f"[M={rows}]", got=str(list(self.reward.shape)))

    def _check_types(self) -> None:
        dtype = self.obs.dtype
        if dtype not in _FLOATS:
            raise DataError(
                self.source,
                "`obs` is not floating-point",
                expected="float32 or float64",
                got=str(dtype),
                fix="one-hot what counts categories; divide what counts levels",
            )
        others = {"action": self.action, "reward": self.reward, "dt": self.dt}
        for name, values in others.items():
            integers = name == "action" and values is not None and values.dtype == torch.int64
            if values is not None and values.dtype != dtype and not integers:
                raise DataError(
                    self.source,
                    f"`{name}` has another type than `obs`",
                    expected=f"{dtype}" + (" or torch.int64" if name == "action" else ""),
                    got=str(values.dtype),
                    fix=f"{name}.to({dtype})",
                )

    def _check_per_episode(self) -> None:
        for name, values in (("mode", self.mode), ("dt", self.dt)):
            if values is not None and values.shape != (self.num_episodes,):
                raise DataError(
                    self.source, f"`{name}`", expected=f"[E={self.num_episodes}]", got=str(list(values.shape))
                )
        if self.mode is not None and int(self.mode.min()) < 0:
            raise DataError(self.source, "`mode`", expected="integers >= 0", got=str(int(self.mode.min())))
        if self.mode_names and (self.mode is None or int(self.mode.max()) >= len(self.mode_names)):
            raise DataError(
                self.source,
                "`mode_names`",
                expected="a name for each number in `mode`",
                got=f"{len(self.mode_names)} names" + ("" if self.mode is None else f", mode {int(self.mode.max())}"),
            )
        if self.dt is not None and not bool((self.dt.isfinite() & (self.dt > 0)).all()):
            raise DataError(self.source, "`dt`", expected="seconds > 0", got=str(self.dt.tolist()[:8]))

    def _check_finite(self, name: str, values: Tensor) -> None:
        finite = values.isfinite().reshape(self.num_rows, -1).all(1)
        if not bool(finite.all()):
            raise DataError(
                self.source,
                f"`{name}` has NaN or infinite entries",
                expected="finite numbers",
                got=f"{values[~finite][0].tolist()} in {self.where(~finite)}",
                fix="leave such episodes out, or mend them",
            )


def _array(source: str, name: str, episode: int, values: object) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of different lengths
        raise DataError(source, f"`{name}` of episode {episode} is ragged", got=str(error)) from error
    if array.dtype.kind not in "fiub":
        raise DataError(
            source, f"`{name}` of episode {episode} holds no numbers", expected="numbers", got=f"dtype {array.dtype}"
        )
    return array


def _check_episodes(source: str, parts: dict[str, list[np.ndarray]]) -> None:
    """Refuse no episodes, empty ones, and those whose parts have other lengths or sizes than they should."""
    numbers = {name: len(each) for name, each in parts.items()}
    if len(set(numbers.values())) != 1 or not numbers["obs"]:
        raise DataError(source, "episodes", expected="one array an episode in each of the parts", got=str(numbers))
    for name, arrays in parts.items():
        first = next((a for a in arrays if len(np.atleast_1d(a))), arrays[0])
        for e, array in enumerate(arrays):
            rows = len(parts["obs"][e]) if parts["obs"][e].ndim else 0
            if array.ndim == 0 or len(array) == 0:
                raise DataError(source, f"episode {e} is empty", expected="one step or more", got=f"no `{name}`")
            if len(array) != rows:
                raise DataError(
                    source,
                    f"`obs` and `{name}` of episode {e} have different lengths",
                    expected=f"{rows} steps, as `obs` has",
                    got=str(len(array)),
                    likely="the observation after the last action is there too" if rows == len(array) + 1 else None,
                    fix="obs[:-1]" if rows == len(array) + 1 else None,
                )
            if array.shape[1:] != first.shape[1:] or array.dtype.kind != first.dtype.kind:
                raise DataError(
                    source,
                    f"`{name}` of episode {e} is not like that of the others",
                    expected=f"{first.dtype} {['T', *first.shape[1:]]}",
                    got=f"{array.dtype} {['T', *array.shape[1:]]}",
                )


def _typed(array: np.ndarray, dtype: torch.dtype) -> Tensor:
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused by name
            return torch.from_numpy(array.astype(np.float32 if dtype == torch.float32 else np.float64, order="C"))
    return torch.from_numpy(array.astype(np.int64, order="C"))
