"""The avoiding task against its published numbers, its arithmetic by hand, and a demonstrator of all its modes."""

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from latentpg.envs import avoiding
from latentpg.envs.avoiding import (
    Avoiding,
    episode_modes,
    gates_of_mode,
    make_env,
    make_vector_env,
    mode_of_gates,
    path_mode,
)
from latentpg.envs.avoiding_demonstrator import STYLE, demonstrate, waypoints
from latentpg.envs.demonstrators import ShownEpisodes, Style, follow, plan_path
from latentpg.envs.dynamics import DynamicsEnv
from latentpg.envs.multi_goal import MultiGoal
from latentpg.envs.planar import inside_any, shortened
from latentpg.envs.rendering import Drawable, RenderedEnv, Shape, View, draw_shapes, paint
from latentpg.envs.routes import Routes
from latentpg.errors import OptionError, ShapeError

OBSTACLES = [(0.5, -0.1), (0.425, 0.08), (0.575, 0.08), (0.35, 0.26), (0.5, 0.26), (0.65, 0.26)]
REACHES = [0.04, 0.035, 0.035, 0.035, 0.035, 0.035]  # .03 + .01 and .025 + .01


def step_from(actual: list[float]) -> tuple[NDArray[np.float64], float, bool]:
    """Stay where the rod and its desired position are."""
    state, reward, over = Avoiding().step(np.array([[*actual, *actual]]), np.zeros((1, 2)), [])
    return state[0], float(reward[0]), bool(over[0])


def plain_step(state: list[float], action: list[float]) -> list[float]:
    """Step once more, in the words of the issue: cap, move, lag."""
    length = (action[0] ** 2 + action[1] ** 2) ** 0.5
    share = min(1.0, 0.015 / length) if length > 0 else 1.0
    desired = [state[0] + share * action[0], state[1] + share * action[1]]
    return [*desired, state[2] + 0.6 * (desired[0] - state[2]), state[3] + 0.6 * (desired[1] - state[3])]


def test_the_geometry_is_the_published_one() -> None:
    assert [each[:2] for each in avoiding.OBSTACLES] == OBSTACLES
    assert [each[2] for each in avoiding.OBSTACLES] == [0.03] + [0.025] * 5
    assert avoiding.START == (0.525, -0.28)
    assert (avoiding.ROD_RADIUS, avoiding.FINISH) == (0.01, 0.35)
    assert (avoiding.LAG, avoiding.MAX_SPEED, avoiding.EPISODE_STEPS) == (0.6, 0.015, 250)
    assert avoiding.NUM_MODES == 2 * 3 * 4
    spec = gymnasium.spec("latentpg/Avoiding-v0")
    assert spec.max_episode_steps == 250


def test_every_episode_starts_alike() -> None:
    envs = make_vector_env(num_envs=3)
    for seed in (0, 1):
        obs, _ = envs.reset(seed=seed)
        assert (obs == np.array([0.525, -0.28, 0.525, -0.28], dtype=np.float32)).all()


def test_an_action_moves_the_desired_position_and_the_rod_lags_behind() -> None:
    state, _, _ = Avoiding().step(np.array([[0.5, 0.0, 0.49, -0.02]]), np.array([[0.003, -0.004]]), [])
    # .49 + .6 (.503 - .49) and -.02 + .6 (-.004 + .02)
    assert state[0] == pytest.approx([0.503, -0.004, 0.4978, -0.0104], abs=1e-15)


def test_longer_actions_are_shortened_to_the_cap() -> None:
    actions = np.array([[0.03, 0.04], [0.009, 0.012], [0.0, -9.0], [0.0, 0.0]])
    state, _, _ = Avoiding().step(np.zeros((4, 4)) + 2.0, actions, [])
    moved = state[:, :2] - 2.0
    assert moved == pytest.approx(np.array([[0.009, 0.012], [0.009, 0.012], [0.0, -0.015], [0.0, 0.0]]), abs=1e-15)


def test_a_rod_led_at_constant_speed_stays_two_thirds_of_a_step_behind() -> None:
    state = np.zeros((1, 4)) + 2.0
    for _ in range(60):
        state, _, _ = Avoiding().step(state, np.array([[0.015, 0.0]]), [])
    assert state[0, 0] - state[0, 2] == pytest.approx(0.01, abs=1e-12)


@pytest.mark.parametrize(("centre", "reach"), list(zip(OBSTACLES, REACHES, strict=True)), ids=str)
@pytest.mark.parametrize("angle", [0.0, 0.3, 1.0, np.pi / 2, 2.5, 4.0])
def test_a_collision_begins_where_the_rims_meet(centre: tuple[float, float], reach: float, angle: float) -> None:
    direction = np.array([np.cos(angle), np.sin(angle)])
    for off, collides in ((-1e-12, True), (1e-12, False)):
        _, reward, over = step_from((np.array(centre) + (reach + off) * direction).tolist())
        assert over is collides
        assert reward == 0.0
    assert step_from(list(centre))[2]


def test_the_line_itself_is_not_beyond_it() -> None:
    assert step_from([0.4, 0.35])[1:] == (0.0, False)
    _, reward, over = step_from([0.4, float(np.nextafter(0.35, 1))])
    assert (reward, over) == (1.0, True)


def test_the_actual_position_decides_and_not_the_desired_one() -> None:
    state = np.array([[0.4, 0.36, 0.4, 0.3], [0.5, -0.1, 0.5, -0.2]])  # desired: beyond the line; in an obstacle
    after, reward, over = Avoiding().step(state, np.zeros((2, 2)), [])
    assert reward.tolist() == [0.0, 0.0] and over.tolist() == [False, False]
    assert after[0, 3] == pytest.approx(0.336) and after[1, 3] == pytest.approx(-0.14)


def test_nothing_is_touched_at_the_start_nor_beyond_the_line() -> None:
    assert not step_from([0.525, -0.28])[2]
    assert max(y + reach for (_, y), reach in zip(OBSTACLES, REACHES, strict=True)) < 0.35


def test_time_is_up_after_250_steps() -> None:
    envs = make_vector_env(num_envs=1)
    envs.reset(seed=0)
    for step in range(250):
        _, _, terminated, truncated, _ = envs.step(np.zeros((1, 2), dtype=np.float32))
        assert not terminated[0] and truncated[0] == (step == 249)


def test_long_walks_are_those_of_plain_arithmetic() -> None:
    draws = np.random.default_rng(0).uniform(-0.02, 0.02, (200, 2))
    ours, theirs = np.array([[2.0, 2.0, 2.0, 2.0]]), [2.0, 2.0, 2.0, 2.0]
    for action in draws:
        ours, _, _ = Avoiding().step(ours, action[None], [])
        theirs = plain_step(theirs, action.tolist())
    assert ours[0] == pytest.approx(theirs, abs=1e-13)


def test_many_at_once_are_many_one_by_one_bit_for_bit() -> None:
    """Demonstrated actions of different modes, so that members end at different times and by different ends."""
    shown = demonstrate(modes=[0, 5, 10, 15, 23], per_mode=1)
    at_once = make_vector_env(num_envs=6, max_episode_steps=90)
    one_by_one = gymnasium.make_vec(
        "latentpg/Avoiding-v0",
        num_envs=6,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        max_episode_steps=90,
    )
    both = (at_once, one_by_one)
    first = [envs.reset(seed=[1, 2, 3, 4, 5, 6])[0] for envs in both]  # type: ignore[arg-type]
    np.testing.assert_array_equal(first[0], first[1])
    age, ends = np.zeros(6, dtype=int), {"success": 0, "collision": 0, "time": 0}
    for tick in range(400):
        action = np.zeros((6, 2), dtype=np.float32)
        action[0] = (-0.0014, 0.014)  # into the first obstacle
        for member in range(1, 5):
            action[member] = shown.action[shown.rows(member - 1)][age[member]]
        told = [envs.step(action)[:4] for envs in both]
        for ours, theirs in zip(*told, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        _, reward, terminated, truncated = told[0]
        over = terminated | truncated
        age = np.where(over, 0, age + 1)
        ends["success"] += int((reward == 1).sum())
        ends["collision"] += int((terminated & (reward == 0)).sum())
        ends["time"] += int((truncated & ~terminated).sum())
        if over.any():
            seeds = [tick + n for n in range(6)]
            again = [envs.reset(seed=seeds, options={"reset_mask": over.copy()})[0] for envs in both]  # type: ignore[arg-type]
            np.testing.assert_array_equal(again[0], again[1])
    assert min(ends.values()) >= 4, ends


def test_gymnasium_finds_nothing_wrong() -> None:
    check_env(gymnasium.make("latentpg/Avoiding-v0").unwrapped, skip_render_check=True)


# Modes.


@pytest.mark.parametrize(
    ("xs", "mode"),
    [
        ((0.44, 0.36, 0.285), 0),
        ((0.44, 0.36, 0.425), 1),
        ((0.44, 0.5, 0.575), 6),
        ((0.44, 0.64, 0.715), 11),
        ((0.56, 0.36, 0.285), 12),
        ((0.56, 0.5, 0.425), 17),
        ((0.56, 0.64, 0.715), 23),
    ],
)
def test_modes_of_paths_made_by_hand(xs: tuple[float, float, float], mode: int) -> None:
    path = np.array([[0.525, -0.28], *([x, y] for x, y in zip(xs, (-0.09, 0.085, 0.27), strict=True))])
    assert path_mode(path) == mode
    assert path_mode(path[:-1]) == -1
    assert path_mode(path[:1]) == -1


def test_a_row_is_passed_at_it_and_for_good() -> None:
    below, at = float(np.nextafter(-0.1, -1)), -0.1
    rest = [[0.5, 0.1], [0.425, 0.3]]
    assert gates_of_mode(path_mode(np.array([[0.4, below], [0.6, at], *rest])))[0] == 1
    # back again, and through the other gate: the first passage counts
    assert gates_of_mode(path_mode(np.array([[0.4, 0.0], [0.6, -0.2], [0.6, 0.0], *rest])))[0] == 0


def test_modes_and_gates_are_the_same_thing() -> None:
    gates = [(a, b, c) for a in range(2) for b in range(3) for c in range(4)]
    assert [mode_of_gates(*each) for each in gates] == list(range(24))
    assert [gates_of_mode(mode) for mode in range(24)] == gates
    for wrong in (-1, 24):
        with pytest.raises(OptionError, match=r"expected: from 0 to 23\n.*got: +" + str(wrong)):
            gates_of_mode(wrong)


def test_modes_of_episodes_are_those_of_their_paths() -> None:
    paths = [
        np.array([[0.44, 0.0], [0.36, 0.1], [0.285, 0.27]]),
        np.array([[0.56, 0.0]]),
        np.array([[0.56, 0.0], [0.64, 0.1], [0.715, 0.27], [0.715, 0.3]]),
    ]
    actual = np.concatenate(paths)
    obs = np.concatenate([np.full_like(actual, 9.0), actual], 1)  # the desired positions are not looked at
    assert episode_modes(obs, np.array([3, 1, 4])).tolist() == [0, -1, 23]
    for lengths in ([3, 1], [3, 1, 5], [8, 0], [9, -1]):
        with pytest.raises(ShapeError, match=r"episode_modes\(\): `lengths`\n.*each at least 1, 8 in all"):
            episode_modes(obs, np.array(lengths))


# ShownEpisodes.


@pytest.fixture(scope="module")
def shown() -> ShownEpisodes:
    return demonstrate()


def play(data: ShownEpisodes) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Play each episode's actions in an environment of its own; return observations, returns and lengths."""
    seen, returns, lengths = [], [], []
    for episode in range(data.num_episodes):
        env, total, steps = make_env(), 0.0, 0
        obs, _ = env.reset(seed=episode)
        for action in data.action[data.rows(episode)]:
            assert env.action_space.contains(action)
            seen.append(obs)
            obs, reward, terminated, _, _ = env.step(action)
            total, steps = total + float(reward), steps + 1
            if terminated:
                break
        returns.append(total)
        lengths.append(steps)
    return np.stack(seen), np.array(returns), np.array(lengths)


def test_a_demonstration_played_again_is_the_same_and_succeeds(shown: ShownEpisodes) -> None:
    seen, returns, lengths = play(shown)
    np.testing.assert_array_equal(seen, shown.obs)
    np.testing.assert_array_equal(lengths, shown.lengths)
    assert (returns == 1.0).all()
    assert shown.mode.tolist() == np.repeat(np.arange(24), 4).tolist()
    np.testing.assert_array_equal(episode_modes(shown.obs, shown.lengths), shown.mode)
    assert shown.obs.dtype == shown.action.dtype == np.float32
    assert np.isfinite(shown.obs).all() and lengths.max() < 250


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_all_modes_are_solved_whatever_the_seed(seed: int) -> None:
    data = demonstrate(per_mode=1, seed=seed)
    assert (play(data)[1] == 1.0).all()
    np.testing.assert_array_equal(episode_modes(data.obs, data.lengths), np.arange(24))


@pytest.mark.slow
def test_few_attempts_fail() -> None:
    """The first attempt of 50 in each mode: kept or not, nearly all are good, so that little is selected."""
    noise, good = np.random.default_rng(0), 0
    for mode in range(24):
        for _ in range(50):
            plan = plan_path(waypoints(gates_of_mode(mode), STYLE.spread * noise.standard_normal(3)), speed=STYLE.speed)
            tried = follow(Avoiding(), plan, style=STYLE, unit=1.0, longest=0.015, max_steps=250, noise=noise)
            good += tried.succeeded and path_mode(tried.obs[:, 2:]) == mode
    assert good >= 0.99 * 1200


def test_the_seed_and_the_mode_say_everything(shown: ShownEpisodes) -> None:
    again = demonstrate()
    for name in ("obs", "action", "mode", "lengths"):
        np.testing.assert_array_equal(getattr(again, name), getattr(shown, name))
    alone = demonstrate(modes=[20, 7], per_mode=5)
    for episode, mode in ((0, 20), (5, 7)):
        for extra in range(4):
            ours, theirs = alone.rows(episode + extra), shown.rows(4 * mode + extra)
            np.testing.assert_array_equal(alone.action[ours], shown.action[theirs])
    other = demonstrate(modes=[7], per_mode=1, seed=1)
    assert not np.array_equal(other.action[:50], shown.action[shown.rows(28)][:50])


def test_demonstrations_of_a_mode_differ(shown: ShownEpisodes) -> None:
    for mode in range(24):
        paths = [shown.obs[shown.rows(4 * mode + n), 2:][:60] for n in range(4)]
        apart = [np.abs(paths[a] - paths[b]).max() for a in range(4) for b in range(a)]
        assert min(apart) > 0.002, mode


def test_rows_are_the_episodes_own() -> None:
    data = demonstrate(modes=[4, 9], per_mode=2)
    assert data.rows(0).start == 0 and data.rows(3).stop == len(data.obs) == len(data.action) == data.lengths.sum()
    for episode in range(4):
        assert np.flatnonzero(data.episode == episode).tolist() == list(range(len(data.obs)))[data.rows(episode)]
        assert (data.obs[data.rows(episode)][0] == np.array([0.525, -0.28, 0.525, -0.28], dtype=np.float32)).all()


def test_a_path_is_walked_at_the_speed_asked_for() -> None:
    plan = plan_path(np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0]]), speed=0.01)
    steps = np.sqrt((np.diff(plan, axis=0) ** 2).sum(1))
    assert len(plan) == 201
    assert steps[5:90] == pytest.approx(np.full(85, 0.01))
    assert plan[100] == pytest.approx([1 - 0.06 / 7, 0.06 / 7])  # the corner: three points on each side, and itself


def test_without_a_shaking_hand_the_plan_is_followed_to_rounding() -> None:
    steady = Style(speed=0.01, pace=0, spread=0, shake=0, pull=0.5)
    plan = plan_path(waypoints((0, 1, 2), np.zeros(3)), speed=0.01)
    tried = follow(
        Avoiding(), plan, style=steady, unit=1.0, longest=0.015, max_steps=250, noise=np.random.default_rng(0)
    )
    far = np.abs(tried.obs[20:60, :2] - plan[20:60]).max()
    assert tried.succeeded and far < 1e-6


def test_an_attempt_that_never_ends_is_a_failure() -> None:
    style = Style(speed=0.01, pace=0, spread=0, shake=0, pull=0)
    still = np.array([[0.525, -0.28]])
    tried = follow(
        Avoiding(), still, style=style, unit=1.0, longest=0.015, max_steps=12, noise=np.random.default_rng(0)
    )
    assert not tried.succeeded and tried.action.shape == (12, 2) and not tried.action.any()


def test_a_style_that_cannot_succeed_is_given_up() -> None:
    wild = Style(speed=0.01, pace=0, spread=0.2, shake=0.01, pull=0)
    with pytest.raises(OptionError, match=r"demonstrate\(\): none of 100 attempts at mode 1 succeeded in it"):
        demonstrate(modes=[1], style=wild)


def test_what_fails_is_not_kept() -> None:
    """So rough that many attempts fail or go astray; what is kept is good all the same."""
    rough = Style(speed=0.01, pace=0.05, spread=0.03, shake=0.001, pull=0.1)
    data = demonstrate(modes=[5, 6, 18], per_mode=4, style=rough)
    assert (play(data)[1] == 1.0).all()
    np.testing.assert_array_equal(episode_modes(data.obs, data.lengths), np.repeat([5, 6, 18], 4))
    paths = [
        plan_path(waypoints((0, 1, 1), 0.03 * draw), speed=0.01)
        for draw in np.random.default_rng(0).normal(size=(50, 3))
    ]
    reaches = np.array([(x, y, reach) for (x, y), reach in zip(OBSTACLES, REACHES, strict=True)])
    assert sum(bool(inside_any(path, reaches).any()) for path in paths) > 10  # so attempts do fail


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"per_mode": 0}, r"at least 1 of each\n.*got: +0, \[0, 1"),
        ({"modes": []}, r"at least 1 of each\n.*got: +4, \[\]"),
        ({"modes": [24]}, r"gates_of_mode\(\): `mode`"),
        ({"seed": -1}, r"`seed`\n.*integer >= 0\n.*got: +-1"),
    ],
)
def test_senseless_wishes_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        demonstrate(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [("speed", 0.0), ("pace", -1.0), ("spread", -0.1), ("shake", float("nan")), ("pull", 1.5), ("pull", -0.1)],
)
def test_senseless_styles_are_refused(name: str, value: float) -> None:
    sound = {"speed": 0.01, "pace": 0.0, "spread": 0.0, "shake": 0.0, "pull": 0.0}
    with pytest.raises(OptionError, match=rf"Style\(\): `{name}`"):
        Style(**(sound | {name: value}))


# Pictures.


def test_frames_show_the_rod_where_it_is() -> None:
    env = gymnasium.make("latentpg/Avoiding-v0", render_mode="rgb_array")
    assert env.render_mode == "rgb_array" and env.metadata["render_modes"] == ["rgb_array"]
    env.reset(seed=0)
    frame = np.asarray(env.render())
    assert frame.shape == (296, 240, 3) and frame.dtype == np.uint8

    def pixel(x: float, y: float) -> list[int]:
        return frame[int((0.42 - y) / 0.0025), int((x - 0.2) / 0.0025)].tolist()

    assert pixel(0.525, -0.28) == [213, 94, 0]  # where the rod is desired, within it
    assert pixel(0.525 + 0.007, -0.28) == [0, 114, 178]
    assert pixel(0.5, -0.1) == pixel(0.65, 0.26) == [170, 170, 170]
    assert pixel(0.3, 0.35) == [120, 190, 120]
    assert pixel(0.3, 0.0) == pixel(0.525, -0.28 + 0.014) == [255, 255, 255]
    for _ in range(5):
        env.step(np.array([0.0, 0.015], dtype=np.float32))
    assert not np.array_equal(np.asarray(env.render()), frame)


def test_edges_are_smoothed_over_one_pixel() -> None:
    view = View((0, 0), (4, 2), height=2)
    assert (view.width, view.pixel) == (4, 1.0)
    frame = paint(view, [Shape(0, 0, (0, 0, 0), half=(1.5, 9)), Shape(3.5, 1.5, (0, 0, 200), radius=0.75)])
    # the middle of the second column lies on the edge: half of it is covered; so much of the disc's own pixel: all
    assert frame[1].tolist() == [[0, 0, 0], [128, 128, 128], [255, 255, 255], [191, 191, 241]]
    assert frame[0, 3].tolist() == [0, 0, 200]


def test_shapes_are_drawn_on_a_figure() -> None:
    import matplotlib.pyplot as plt
    from matplotlib.patches import Circle, Rectangle

    figure, axes = plt.subplots()
    draw_shapes(axes, Avoiding().view, Avoiding().scenery())
    line, *discs = axes.patches
    assert isinstance(line, Rectangle) and line.get_y() + line.get_height() / 2 == pytest.approx(0.35)
    for disc, (x, y, radius) in zip(discs, avoiding.OBSTACLES, strict=True):
        assert isinstance(disc, Circle) and np.array_equal(disc.get_center(), (x, y)) and disc.get_radius() == radius
    assert axes.get_xlim() == (0.2, 0.8) and axes.get_aspect() == 1.0
    plt.close(figure)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(OptionError, match=r"`render_mode`\n.*'rgb_array', or None to draw nothing\n.*got: +'human'"):
        make_env(render_mode="human")
    with pytest.raises(OptionError, match=r"`env`\n.*dynamics that say what is seen.*\n.*MultiGoal"):
        RenderedEnv(DynamicsEnv(MultiGoal()), render_mode="rgb_array")
    with pytest.raises(gymnasium.error.ResetNeeded, match="before render"):
        make_env(render_mode="rgb_array").render()
    assert isinstance(Avoiding(), Drawable) and isinstance(Routes(), Drawable) and not isinstance(MultiGoal(), Drawable)


def test_short_vectors_keep_their_bits() -> None:
    vectors = np.random.default_rng(0).uniform(-0.01, 0.01, (1000, 2)).astype(np.float32)
    np.testing.assert_array_equal(shortened(vectors, 0.015), vectors.astype(np.float64))
