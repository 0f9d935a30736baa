"""Films of whole episodes: what the environment paints of itself while a policy acts, as an animated GIF.

GIFs need no package beside those that are here already (Pillow, which matplotlib brings). Colours are reduced to 256 a
frame and frames to :data:`LARGEST` pixels; an episode is filmed for its first :data:`MAX_FRAMES` steps.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from latentpg.envs import register_envs
from latentpg.errors import OptionError
from latentpg.numerics.rng import seeded, stream_seed
from latentpg.programs import LatentPolicy
from latentpg.rollout import close_envs, collect_episodes
from latentpg.training.evaluate import ACTING

LARGEST = 320
"""Pixels of a frame's longer side, at most."""

MAX_FRAMES = 2000
"""Frames of a film, at most."""

FRAMES_PER_SECOND = 30
"""How fast a film is shown whose environment does not say."""


class Camera(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Keeps a small picture of every state of the episode that goes on.

    >>> camera = Camera(gymnasium.make("latentpg/Routes-v0", render_mode="rgb_array"))
    >>> observation, info = camera.reset(seed=0)
    >>> len(camera.frames), camera.frames[0].size
    (1, (216, 240))
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        """Begin with no pictures."""
        super().__init__(env)
        self.frames: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Reset, and begin a new film."""
        found = self.env.reset(seed=seed, options=options)
        self.frames = [self._picture()]
        return found

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:  # noqa: ANN401 (any action)
        """Step, and take a picture."""
        found = self.env.step(action)
        if len(self.frames) < MAX_FRAMES:
            self.frames.append(self._picture())
        return found

    def _picture(self) -> Any:  # noqa: ANN401 (Pillow's image, imported late)
        from PIL import Image

        frame = self.env.render()
        if not isinstance(frame, np.ndarray) or frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape[2] != 3:
            raise TypeError(f"render() gave {type(frame).__name__} and no picture [H, W, 3] of uint8")
        picture = Image.fromarray(frame)
        picture.thumbnail((LARGEST, LARGEST))
        return picture.quantize()


def film_episodes(
    env_id: str,
    policy: LatentPolicy,
    path_of: Callable[[int], Path],
    *,
    num_episodes: int,
    seed: int,
    acting: str = "stochastic",
    latent: str = "step",
    execute: int | None = None,
) -> list[tuple[Path, float]]:
    """Film whole episodes, and return each film's path, ``path_of(episode)``, and the episode's return.

    ``seed`` fixes environment and policy alike; the ambient random stream is left as it was. An environment that cannot
    paint itself is an :class:`~latentpg.errors.OptionError`.
    """
    envs, camera = _with_camera(env_id)
    films = []
    try:
        for episode in range(num_episodes):
            with seeded(stream_seed(seed, f"film {episode}")):
                played = collect_episodes(
                    envs,
                    policy,
                    num_episodes=1,
                    seed=stream_seed(seed, f"filmed episode {episode}"),
                    latent=latent,
                    execute=execute,
                    acting=ACTING[acting],
                )
            path = path_of(episode)
            _write(path, camera.frames, camera.metadata.get("render_fps") or FRAMES_PER_SECOND)
            films.append((path, float(played.returns[0])))
    finally:
        close_envs(envs)
    return films


def check_films(env_id: str) -> None:
    """Refuse an environment that cannot paint itself."""
    close_envs(_with_camera(env_id)[0])


def _with_camera(env_id: str) -> tuple[SyncVectorEnv, Camera]:
    """Make one member with a camera, of which one picture has been taken."""
    register_envs()
    try:
        camera = Camera(gymnasium.make(env_id, render_mode="rgb_array", disable_env_checker=True))
        camera.reset(seed=0)
    except Exception as error:  # a renderer may fail in any way: no display, no library, no such mode
        raise OptionError(
            "video",
            f"environment {env_id} cannot be filmed",
            expected='an environment that paints itself with render_mode="rgb_array"',
            got=f"{type(error).__name__}: {error}",
            fix="no --video; or install what the message names",
        ) from error
    return SyncVectorEnv([lambda: camera], autoreset_mode=AutoresetMode.DISABLED), camera


def _write(path: Path, frames: list[Any], fps: float | int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    duration = max(20, round(1000 / fps))  # viewers slow down what claims to be faster than fifty a second
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=duration, loop=0)
