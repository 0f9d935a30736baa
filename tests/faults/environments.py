"""An environment whose worker processes do something wrong, once, when they are told to."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class Troubled(gymnasium.Env[Any, Any]):
    """Episodes of five steps; in its 20th step the first worker to get there does what ``what`` says.

    ``mark`` is a file that is made then, so that it happens once. What begins with ``start`` happens when the
    environment is made. Workers take ``seconds`` for a step. The process that ``owner`` is does nothing wrong.
    """

    observation_space = spaces.Box(-10, 10, (1,))
    action_space = spaces.Discrete(7)

    def __init__(self, what: str, mark: Path, owner: int, seconds: float = 0.0) -> None:
        self.what, self.mark, self.owner, self.seconds, self.steps, self.age = what, mark, owner, seconds, 0, 0
        if what.startswith("start: "):
            self.go_wrong(what.removeprefix("start: "))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # noqa: ANN401 (any action)
        self.steps, self.age = self.steps + 1, self.age + 1
        if os.getpid() != self.owner:
            time.sleep(self.seconds)
        if self.steps == 20:
            self.go_wrong(self.what)
        return np.full(1, self.age, np.float32), 1.0, self.age == 5, False, {}

    def go_wrong(self, how: str) -> None:
        if os.getpid() == self.owner or how in ("", "nothing"):
            return
        with suppress(FileExistsError):
            os.close(os.open(self.mark, os.O_CREAT | os.O_EXCL))
            misbehave(how)


def misbehave(how: str) -> None:
    match how:
        case "hangs":
            time.sleep(600)
        case "is stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "raises":
            raise ValueError("the arm is bent")
        case _:
            raise AssertionError(how)


def register_troubled(what: str, mark: Path, *, seconds: float = 0.0) -> None:
    """Register ``Troubled-v0``; this process, which calls it, is the one that does nothing wrong."""
    owner = os.getpid()

    def make(**given: Any) -> gymnasium.Env[Any, Any]:  # noqa: ANN401 (what Gymnasium hands on)
        return Troubled(what, mark, owner, seconds)

    gymnasium.register("Troubled-v0", entry_point=make, disable_env_checker=True)
