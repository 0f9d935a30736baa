"""Films of episodes: what is on them, what they do not disturb, and what cannot be filmed."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from PIL import Image

from latentpg.errors import OptionError
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.rollout import make_envs
from latentpg.training import read_metrics
from latentpg.training.commands import evaluate_command, train_command
from latentpg.training.video import LARGEST, check_films, film_episodes
from tests.training.runs import files_of, no_figure, shortly, spelled

ROUTES = "latentpg/Routes-v0"


@pytest.fixture
def registry() -> Iterator[None]:
    before = dict(gymnasium.registry)
    yield
    gymnasium.registry.clear()
    gymnasium.registry.update(before)


@pytest.fixture
def short_routes(registry: None) -> str:
    """Register the environment that paints itself, in episodes of five steps."""
    gymnasium.register(
        "Short-v0", entry_point="latentpg.envs.routes:make_env", max_episode_steps=5, disable_env_checker=True
    )
    return "Short-v0"


def policy_on(env_id: str) -> MixturePolicy:
    envs = make_envs(env_id, 1)
    with seeded(0):
        return MixturePolicy(envs.single_observation_space, envs.single_action_space, hidden=(4,))


def frames_of(path: Path) -> list[np.ndarray[Any, Any]]:
    with Image.open(path) as film:
        found = []
        for number in range(getattr(film, "n_frames", 1)):
            film.seek(number)
            found.append(np.asarray(film.convert("RGB")))
        return found


def test_a_film_shows_every_state(short_routes: str, tmp_path: Path) -> None:
    """The first frame is the reset's, and every one is what the environment painted but for 256 colours."""
    policy = policy_on(short_routes)
    films = film_episodes(short_routes, policy, lambda k: tmp_path / "films" / f"{k}.gif", num_episodes=2, seed=3)
    assert [path.name for path, _ in films] == ["0.gif", "1.gif"]
    env = gymnasium.make(short_routes, render_mode="rgb_array")
    env.reset(seed=0)
    size = np.asarray(env.render()).shape
    for path, reward in films:
        frames = frames_of(path)
        assert 2 <= len(frames) <= 6 and all(frame.shape == size for frame in frames)
        assert np.isfinite(reward)
        with Image.open(path) as film:
            assert film.info["duration"] == 40  # 25 frames a second
    first = frames_of(films[0][0])[0].astype(int)
    drawn = np.asarray(env.render()).astype(int)
    assert np.abs(first - drawn).mean() < 4  # the same scenery


def test_a_film_hangs_on_its_seed_and_leaves_the_random_stream(short_routes: str, tmp_path: Path) -> None:
    policy = policy_on(short_routes)
    before = torch.get_rng_state()

    def film(name: str, seed: int) -> bytes:
        film_episodes(short_routes, policy, lambda k: tmp_path / f"{name}.gif", num_episodes=1, seed=seed)
        return (tmp_path / f"{name}.gif").read_bytes()

    assert film("one", 1) == film("again", 1) != film("other", 2)
    assert torch.equal(torch.get_rng_state(), before)


class Wide(gymnasium.Env[Any, Any]):
    """Two steps, painted large, or not at all as it should."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,))
    action_space = gymnasium.spaces.Discrete(2)
    picture: Any = np.zeros((100, 1000, 3), np.uint8)

    def __init__(self, render_mode: str | None = None) -> None:
        self.render_mode = render_mode

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.age = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:  # noqa: ANN401
        self.age += 1
        return np.zeros(1, np.float32), 1.0, self.age == 2, False, {}

    def render(self) -> Any:  # noqa: ANN401
        return self.picture


def test_large_frames_are_made_smaller_and_long_films_cut(
    tmp_path: Path, registry: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    gymnasium.register("Wide-v0", entry_point=lambda **given: Wide(**given))
    monkeypatch.setattr("latentpg.training.video.MAX_FRAMES", 2)
    seen: list[int] = []
    monkeypatch.setattr("latentpg.training.video._write", lambda path, frames, fps: seen.append(len(frames)))
    film_episodes("Wide-v0", policy_on("Wide-v0"), lambda k: tmp_path / "film.gif", num_episodes=1, seed=0)
    assert seen == [2]
    monkeypatch.undo()
    ((path, reward),) = film_episodes(
        "Wide-v0", policy_on("Wide-v0"), lambda k: tmp_path / "film.gif", num_episodes=1, seed=0
    )
    assert frames_of(path)[0].shape == (LARGEST // 10, LARGEST, 3) and reward == 2


@pytest.mark.parametrize(
    "picture", [None, np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3))], ids=["none", "grey", "float"]
)
def test_what_is_no_picture_is_refused(picture: object, registry: None, monkeypatch: pytest.MonkeyPatch) -> None:
    gymnasium.register("Wide-v0", entry_point=lambda **given: Wide(**given))
    monkeypatch.setattr(Wide, "picture", picture)
    with pytest.raises(OptionError, match=r"Wide-v0 cannot be filmed[\s\S]*rgb_array[\s\S]*no picture"):
        check_films("Wide-v0")


# by the command


def test_an_evaluation_films_and_gives_the_same_numbers(
    short_routes: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    folder = tmp_path / "run"
    plain = spelled(shortly("ppo", env=short_routes))
    assert train_command([*plain, "--video-every", "96", "--out", str(folder)]) == 0
    assert sorted(path.name for path in (folder / "videos").iterdir()) == ["step-192.gif", "step-96.gif"]
    assert train_command([*plain, "--out", str(tmp_path / "unseen")]) == 0
    clock = ("time/fps", "time/seconds")
    filmed, unseen = (
        [{n: v for n, v in row.items() if n not in clock} for row in read_metrics(tmp_path / name)]
        for name in ("run", "unseen")
    )
    assert filmed == unseen
    assert evaluate_command([str(folder), "--episodes", "4", "--video", "--video-episodes", "2"]) == 0
    out = capsys.readouterr().out
    films = [folder / "videos" / f"step-192-stochastic-seed-0-{k}.gif" for k in range(2)]
    assert all(f"film    {film}" in out and len(frames_of(film)) > 1 for film in films)
    (kept,) = (folder / "evaluations").iterdir()
    before = json.loads(kept.read_text(encoding="utf-8"))
    assert evaluate_command([str(folder), "--episodes", "4"]) == 0
    assert json.loads(kept.read_text(encoding="utf-8")) == before


def test_what_cannot_be_filmed_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment without a picture of itself, by either command."""
    monkeypatch.setattr("latentpg.training.loop.draw_curve", no_figure)
    options = spelled(shortly("ppo", env="latentpg/PeaksBandit-v0"))
    with pytest.raises(OptionError, match=r"PeaksBandit-v0 cannot be filmed[\s\S]*rgb_array"):
        train_command([*options, "--video-every", "10", "--out", str(tmp_path / "run")])
    assert not list(tmp_path.iterdir())
    assert train_command([*options, "--out", str(tmp_path / "run")]) == 0
    before = files_of(tmp_path / "run")
    with pytest.raises(OptionError, match="cannot be filmed"):
        evaluate_command([str(tmp_path / "run"), "--video"])
    with pytest.raises(OptionError, match=r"--video-episodes[\s\S]*>= 1"):
        evaluate_command([str(tmp_path / "run"), "--video", "--video-episodes", "0"])
    assert files_of(tmp_path / "run") == before


def test_cartpole_is_filmed_where_pygame_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="CartPole paints itself with pygame")
    ((path, reward),) = film_episodes(
        "CartPole-v1", policy_on("CartPole-v1"), lambda k: tmp_path / "film.gif", num_episodes=1, seed=0
    )
    assert len(frames_of(path)) == reward + 1
