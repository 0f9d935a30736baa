"""The task of three routes: its geometry, its arithmetic, and a demonstrator with known probabilities."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from latentpg.envs import routes
from latentpg.envs.demonstrators import Style
from latentpg.envs.routes import Routes, episode_routes, make_env, make_vector_env, route_of
from latentpg.envs.routes_demonstrator import demonstrate, draw_routes
from latentpg.errors import OptionError, ShapeError


def ends_at(x: float, y: float) -> tuple[float, bool]:
    _, reward, over = Routes().step(np.array([[x, y]]), np.zeros((1, 2)), [])
    return float(reward[0]), bool(over[0])


def test_gymnasium_finds_nothing_wrong() -> None:
    check_env(gymnasium.make("latentpg/Routes-v0").unwrapped, skip_render_check=True)
    assert gymnasium.spec("latentpg/Routes-v0").max_episode_steps == routes.EPISODE_STEPS == 60


def test_a_step_is_a_twenty_fifth_of_the_velocity_and_one_at_most() -> None:
    actions = np.array([[0.6, 0.0], [3.0, -4.0], [0.0, 0.0]])
    state, _, _ = Routes().step(np.full((3, 2), 2.0), actions, [])
    assert state - 2.0 == pytest.approx(np.array([[0.024, 0.0], [0.024, -0.032], [0.0, 0.0]]), abs=1e-15)


@pytest.mark.parametrize("angle", [0.0, 0.7, 2.0, 3.9])
def test_ends_begin_at_the_rims(angle: float) -> None:
    direction = np.array([np.cos(angle), np.sin(angle)])
    for centre, radius, reward in (((0.5, -0.2), 0.12, 0.0), ((0.5, 0.2), 0.12, 0.0), ((1.0, 0.0), 0.1, 1.0)):
        assert ends_at(*(np.array(centre) + (radius - 1e-12) * direction)) == (reward, True)
        assert ends_at(*(np.array(centre) + (radius + 1e-12) * direction)) == (0.0, False)


def test_starts_are_near_the_origin() -> None:
    obs, _ = make_vector_env(num_envs=500).reset(seed=0)
    assert 0.0195 < np.abs(obs).max() <= 0.02
    assert obs.min(0) == pytest.approx([-0.02, -0.02], abs=1e-3)


def test_many_at_once_are_many_one_by_one_bit_for_bit() -> None:
    at_once = make_vector_env(num_envs=4)
    one_by_one = gymnasium.make_vec(
        "latentpg/Routes-v0",
        num_envs=4,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
    )
    both = (at_once, one_by_one)
    first = [envs.reset(seed=[1, 2, 3, 4])[0] for envs in both]  # type: ignore[arg-type]
    np.testing.assert_array_equal(first[0], first[1])
    ends = {"success": 0, "collision": 0, "time": 0}
    noise = np.random.default_rng(0)
    # ahead, askew into a pillar, to and fro
    drift = np.array([[0.9, 0.0], [0.9, 0.25], [0.0, 0.0], [0.7, 0.0]])
    for tick in range(300):
        action = (drift + 0.2 * noise.standard_normal((4, 2))).astype(np.float32)
        told = [envs.step(action)[:4] for envs in both]
        for ours, theirs in zip(*told, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        _, reward, terminated, truncated = told[0]
        over = terminated | truncated
        ends["success"] += int((reward == 1).sum())
        ends["collision"] += int((terminated & (reward == 0)).sum())
        ends["time"] += int((truncated & ~terminated).sum())
        if over.any():
            seeds = [tick + n for n in range(4)]
            again = [envs.reset(seed=seeds, options={"reset_mask": over.copy()})[0] for envs in both]  # type: ignore[arg-type]
            np.testing.assert_array_equal(again[0], again[1])
    assert min(ends.values()) >= 4, ends


@pytest.mark.parametrize(("y", "route"), [(-0.5, 0), (-0.33, 0), (-0.07, 1), (0.07, 1), (0.33, 2), (0.9, 2)])
def test_routes_of_paths_made_by_hand(y: float, route: int) -> None:
    path = np.array([[0.0, 0.0], [0.49, -y], [0.5, y], [0.9, 0.0]])
    assert route_of(path) == route
    assert route_of(path[:2]) == -1


def test_routes_of_episodes_are_those_of_their_paths() -> None:
    rows = np.array([[0.0, 0.0], [0.6, 0.5], [0.1, 0.0], [0.55, -0.4], [0.6, 0.4]])
    assert episode_routes(rows, np.array([2, 1, 2])).tolist() == [2, -1, 0]
    with pytest.raises(ShapeError, match=r"episode_routes\(\): `lengths`\n.*5 in all"):
        episode_routes(rows, np.array([2, 2]))


def test_demonstrations_played_again_are_the_same_and_succeed() -> None:
    shown = demonstrate(num_episodes=60)
    assert set(shown.mode.tolist()) == {0, 1, 2}
    np.testing.assert_array_equal(episode_routes(shown.obs, shown.lengths), shown.mode)
    for episode in range(60):
        env = make_env()
        env.reset(seed=0)
        obs, actions = shown.obs[shown.rows(episode)], shown.action[shown.rows(episode)]
        assert np.abs(obs[0]).max() <= 0.02
        state = obs[:1].astype(np.float64)
        for step, action in enumerate(actions):
            assert env.action_space.contains(action)
            assert (obs[step] == state[0].astype(np.float32)).all()
            state, reward, over = Routes().step(state, action[None], [])
            assert over[0] == (reward[0] == 1.0) == (step == len(actions) - 1)


def test_routes_are_as_frequent_as_said() -> None:
    found = np.bincount(draw_routes(40_000), minlength=3) / 40_000
    # Hoeffding: a mean of 40,000 is off by .0176 with probability 2 exp(-2 n e^2) = 3e-11
    assert np.abs(found - [0.3, 0.4, 0.3]).max() < 0.0176
    assert routes.ROUTE_PROBABILITIES == (0.3, 0.4, 0.3)
    assert demonstrate(num_episodes=30).mode.tolist() == draw_routes(30).tolist()
    assert set(demonstrate(num_episodes=30, probabilities=(0.5, 0.0, 0.5)).mode.tolist()) == {0, 2}


def test_the_seed_says_everything_and_longer_sets_begin_alike() -> None:
    long, short, other = demonstrate(num_episodes=20), demonstrate(num_episodes=5), demonstrate(num_episodes=5, seed=1)
    np.testing.assert_array_equal(long.action[: len(short.action)], short.action)
    np.testing.assert_array_equal(long.obs[: len(short.obs)], short.obs)
    assert long.mode[:5].tolist() == short.mode.tolist()
    assert not np.array_equal(short.obs[:20], other.obs[:20])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_episodes": 0}, r"at least 1 and at least 0\n.*got: +0, 0"),
        ({"seed": -1}, r"at least 1 and at least 0\n.*got: +100, -1"),
        ({"probabilities": (0.5, 0.5)}, r"`probabilities`\n.*sum to 1\n.*got: +\(0\.5, 0\.5\)"),
        ({"probabilities": (0.5, 0.4, 0.3)}, "`probabilities`"),
        ({"probabilities": (-0.5, 0.5, 1.0)}, "`probabilities`"),
        ({"num_episodes": 1, "style": Style(speed=0.03, pace=0, spread=0, shake=1, pull=0)}, "none of 100 attempts"),
    ],
)
def test_senseless_wishes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        demonstrate(**options)  # type: ignore[arg-type]


def test_frames_show_the_point_where_it_is() -> None:
    env = gymnasium.make("latentpg/Routes-v0", render_mode="rgb_array")
    env.reset(seed=0)
    frame = np.asarray(env.render())
    assert frame.shape == (240, 216, 3)

    def pixel(x: float, y: float) -> list[int]:
        return frame[int((0.75 - y) / 0.00625), int((x + 0.15) / 0.00625)].tolist()

    obs = np.asarray(env.unwrapped.state[0])  # type: ignore[attr-defined]
    assert pixel(*obs) == [0, 114, 178]
    assert pixel(0.5, 0.2) == pixel(0.5, -0.2) == [170, 170, 170]
    assert pixel(1.0, 0.0) == [160, 215, 160]
    assert pixel(0.5, 0.0) == [255, 255, 255]
