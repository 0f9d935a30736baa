"""Each small environment does what its module says: checked against Gymnasium, by hand, and against itself."""

import subprocess
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from latentpg.envs import ENV_IDS, arms_bandit, corridor, mixing_goals, multi_goal, peaks_bandit, register_envs
from latentpg.envs.corridor import Corridor, chance_of_reward
from latentpg.envs.dynamics import Dynamics, DynamicsEnv, DynamicsVectorEnv
from latentpg.envs.mixing_goals import MixingGoals, best_gaussian_return, expected_return, gaussian_chance
from latentpg.envs.multi_goal import MultiGoal
from latentpg.errors import OptionError

SMALL = tuple(each for each in ENV_IDS if each not in ("latentpg/Avoiding-v0", "latentpg/Routes-v0"))
"""Those of this file; the two tasks to clone in have files of their own."""

NOISY: dict[str, dict[str, Any]] = {
    "latentpg/Corridor-v0": {"slip": 0.3},
    "latentpg/PeaksBandit-v0": {"reward_noise": 0.5},
    "latentpg/ArmsBandit-v0": {"reward_noise": 0.5},
}


def native(env_id: str, num_envs: int, **options: Any) -> DynamicsVectorEnv:  # noqa: ANN401 (each environment has its own)
    envs = gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode="vector_entry_point", **options)
    assert isinstance(envs, DynamicsVectorEnv)
    return envs


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_gymnasium_finds_nothing_wrong(env_id: str) -> None:
    check_env(gymnasium.make(env_id).unwrapped, skip_render_check=True)


@pytest.mark.parametrize("env_id", SMALL)
def test_options_reach_the_dynamics(env_id: str) -> None:
    options = NOISY.get(env_id, {"num_goals": 6} if "Multi" in env_id else {"memory": 2})
    for envs in (gymnasium.make(env_id, **options).unwrapped, native(env_id, 2, **options)):
        assert isinstance(envs, DynamicsEnv | DynamicsVectorEnv)
        assert isinstance(envs.dynamics, Dynamics)
        assert {name: getattr(envs.dynamics, name) for name in options} == options


@pytest.mark.parametrize("env_id", SMALL)
def test_n_at_once_are_n_one_by_one(env_id: str) -> None:
    """The same seeds and actions, noise included, time limit included, resets by mask included."""
    options = NOISY.get(env_id, {})
    one_by_one = gymnasium.make_vec(
        env_id,
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.DISABLED},
        **options,
    )
    at_once = native(env_id, 3, **options)
    one_by_one.action_space.seed(0)
    first = [envs.reset(seed=[3, 4, 5])[0] for envs in (one_by_one, at_once)]  # type: ignore[arg-type]
    np.testing.assert_array_equal(first[0], first[1])
    ended = 0
    for tick in range(70):
        action = one_by_one.action_space.sample()
        told = [envs.step(action)[:4] for envs in (one_by_one, at_once)]
        for ours, theirs in zip(*told, strict=True):
            np.testing.assert_array_equal(ours, theirs)
        over = told[0][2] | told[0][3]
        ended += int(over.sum())
        if over.any():
            again = [
                envs.reset(seed=[tick, tick + 100, tick + 200], options={"reset_mask": over.copy()})[0]  # type: ignore[arg-type]
                for envs in (one_by_one, at_once)
            ]
            np.testing.assert_array_equal(again[0], again[1])
    assert ended >= 6


def test_a_native_reset_reaches_the_masked_members_alone() -> None:
    envs = native("latentpg/MultiGoal-v0", 3)
    before, _ = envs.reset(seed=[1, 2, 3])
    options = {"reset_mask": np.array([False, True, False])}
    after, _ = envs.reset(seed=[7, 8, 9], options=options)
    assert (before != after).any(1).tolist() == [False, True, False]
    assert options == {}
    fresh, _ = envs.reset(seed=[7, 8, 9])
    assert (fresh[1] == after[1]).all()


def test_a_seed_for_all_counts_up() -> None:
    envs = native("latentpg/MultiGoal-v0", 2)
    np.testing.assert_array_equal(envs.reset(seed=5)[0], envs.reset(seed=[5, 6])[0])
    unseeded = [envs.reset()[0], envs.reset()[0]]
    assert (unseeded[0] != unseeded[1]).all()


def test_members_out_of_turn_are_refused() -> None:
    envs = native("latentpg/ArmsBandit-v0", 2)
    with pytest.raises(gymnasium.error.ResetNeeded, match="must be reset first"):
        envs.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(gymnasium.error.ResetNeeded, match="first reset"):
        envs.reset(options={"reset_mask": np.array([True, False])})
    envs.reset(seed=0)
    envs.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(gymnasium.error.ResetNeeded, match=r"members \[0, 1\]"):
        envs.step(np.zeros(2, dtype=np.int64))
    with pytest.raises(gymnasium.error.ResetNeeded):
        arms_bandit.make_env().step(0)


@pytest.mark.parametrize(
    "mask", [np.array([False, False]), np.array([True]), np.array([1, 0]), [True, False], "all"], ids=str
)
def test_masks_that_are_none_are_refused(mask: object) -> None:
    envs = native("latentpg/MultiGoal-v0", 2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match="reset_mask"):
        envs.reset(options={"reset_mask": mask})


def test_other_mistakes_are_refused() -> None:
    envs = native("latentpg/MultiGoal-v0", 2)
    with pytest.raises(ValueError, match="expected 2 seeds, got 3"):
        envs.reset(seed=[1, 2, 3])
    with pytest.raises(AttributeError, match="no attribute 'gravity'"):
        envs.get_attr("gravity")
    for wrong in (
        lambda: MultiGoal(0),
        lambda: MultiGoal(13),
        lambda: MixingGoals(-1),
        lambda: Corridor(half_length=0),
        lambda: Corridor(slip=1.5),
    ):
        with pytest.raises(OptionError):
            wrong()


def test_the_nearest_goal_is_four_steps_away_from_every_start() -> None:
    envs = native("latentpg/MultiGoal-v0", 200)
    obs, _ = envs.reset(seed=list(range(200)))
    goals = MultiGoal().goals
    for step in range(4):
        nearest = goals[np.arange(200) % 4]
        direction = nearest - obs
        obs, reward, terminated, _, _ = envs.step(direction / np.linalg.norm(direction, axis=1, keepdims=True))
        assert terminated.all() == (step == 3) and terminated.any() == (step == 3)
        assert reward == pytest.approx(np.full(200, 0.95 if step == 3 else -0.05))
    assert (MultiGoal().reached(obs) == np.arange(200) % 4).all()  # each goal is as good as the others
    # no policy is quicker: the nearest goal's edge is more than three of the longest steps away
    corner = np.array([0.02, 0.0])
    assert np.linalg.norm(goals - corner, axis=1).min() - multi_goal.REACH > 3 * multi_goal.STEP
    assert pytest.approx(1 - 4 * multi_goal.STEP_COST) == multi_goal.OPTIMAL_RETURN


def test_the_longest_velocity_is_one() -> None:
    state, _, _ = MultiGoal().step(np.zeros((2, 2)), np.array([[1.0, 1.0], [0.3, 0.4]]), [])
    assert np.linalg.norm(state, axis=1) == pytest.approx([0.25, 0.125])


def play_mixing(actions: list[int], memory: int) -> list[float]:
    dynamics, paid = MixingGoals(memory), []
    state = dynamics.start(np.random.default_rng(0))[None]
    for goal in actions:
        action = np.array([mixing_goals.GOALS[goal] if goal >= 0 else (0.0, 0.0)])
        state, reward, _ = dynamics.step(state, action, [])
        paid.append(float(reward[0]))
    return paid


@pytest.mark.parametrize("memory", [0, 1, 3])
def test_a_goal_pays_unless_it_was_reached_lately(memory: int) -> None:
    actions = np.random.default_rng(memory).integers(-1, 4, size=200).tolist()
    expected = [float(goal >= 0 and goal not in actions[max(t - memory, 0) : t]) for t, goal in enumerate(actions)]
    assert play_mixing(actions, memory) == expected


def test_going_round_is_always_paid() -> None:
    assert play_mixing([0, 1, 2, 3] * 8, 3) == [1.0] * 32
    assert sum(play_mixing([0] * 32, 3)) == 1.0


def test_the_expected_return_is_the_sum_over_all_courses() -> None:
    """Three steps, five outcomes each: every course's payment times its probability, memory 2."""
    chance = np.array([0.1, 0.2, 0.3, 0.15])
    outcome = np.append(chance, 1 - chance.sum())
    total = sum(
        outcome[a] * outcome[b] * outcome[c] * sum(play_mixing([i if i < 4 else -1 for i in (a, b, c)], 2))
        for a in range(5)
        for b in range(5)
        for c in range(5)
    )
    terms = [(chance * (1 - chance) ** t).sum() for t in range(3)]
    assert total == pytest.approx(sum(terms))
    assert expected_return(chance[None], memory=2)[0] == pytest.approx(sum(terms) + 29 * terms[2])


def test_mixing_evenly_is_best_and_a_gaussian_far_from_it() -> None:
    even = expected_return(np.full((1, 4), 0.25))[0]
    others = np.random.default_rng(0).dirichlet(np.full(4, 2.0), size=2000)
    assert even == 14.546875
    assert float(expected_return(others).max()) < even
    assert best_gaussian_return(resolution=13) < 5.86 < even / 2


def test_a_gaussians_chances_are_those_of_its_draws() -> None:
    mean, std = np.array([0.2, 0.1]), np.array([0.5, 0.3])
    exact = gaussian_chance(mean[None], std[None])[0]
    drawn = mixing_goals.reached_goal(mean + std * np.random.default_rng(0).standard_normal((40_000, 2)))
    found = (drawn[:, None] == np.arange(4)).mean(0)
    # Hoeffding: a mean of 40,000 is off by .0176 with probability 2 exp(-2 n e^2) = 3e-11
    assert np.abs(found - exact).max() < 0.0176
    assert exact.min() > 1e-4


def test_the_corridor_pays_at_its_ends_alone() -> None:
    envs = native("latentpg/Corridor-v0", 3)
    envs.reset(seed=0)
    for step in range(19):
        assert not envs.step(np.array([0, 1, step % 2]))[1].any()
    obs, reward, terminated, truncated, _ = envs.step(np.array([0, 1, 1]))
    assert reward.tolist() == [1.0, 1.0, 0.0]
    assert terminated.tolist() == [True, True, False] and not truncated.any()
    assert obs[:, 0].tolist() == [-1.0, 1.0, 0.0]


def test_the_chance_of_reward_is_the_sum_over_all_courses() -> None:
    """Seven steps, an end three steps away: all 128 courses."""
    right, total = 0.3, 0.0
    for course in range(2**7):
        moves = np.array([1 if course >> t & 1 else -1 for t in range(7)])
        paid = (np.abs(moves.cumsum()) >= 3).any()
        ups = (moves > 0).sum()
        total += paid * right**ups * (1 - right) ** (7 - ups)
    assert chance_of_reward(right, half_length=3, num_steps=7) == pytest.approx(total)


def test_slips_are_as_frequent_as_said() -> None:
    envs = native("latentpg/Corridor-v0", 4000, slip=0.25)
    envs.reset(seed=0)
    obs, *_ = envs.step(np.ones(4000, dtype=np.int64))
    # Hoeffding, as above: 4000 draws are off by .056 with probability 3e-11
    assert abs((obs[:, 0] < 0).mean() - 0.25) < 0.056


def test_the_bandits_pay_what_they_say() -> None:
    peaks = native("latentpg/PeaksBandit-v0", 4)
    peaks.reset(seed=0)
    _, reward, terminated, _, _ = peaks.step(np.array([[-0.6], [0.0], [0.6], [0.5]]))
    assert reward == pytest.approx([1.0, 1.0, 1.0, np.exp(-0.5)])
    assert terminated.all()
    arms = native("latentpg/ArmsBandit-v0", 6)
    arms.reset(seed=0)
    assert arms.step(np.arange(6))[1].tolist() == list(arms_bandit.PAYS)
    assert max(arms_bandit.PAYS) == arms_bandit.OPTIMAL_RETURN == peaks_bandit.OPTIMAL_RETURN
    assert corridor.OPTIMAL_RETURN == chance_of_reward(1)


def test_registering_twice_changes_nothing() -> None:
    before = {env_id: gymnasium.spec(env_id) for env_id in ENV_IDS}
    register_envs()
    assert {env_id: gymnasium.spec(env_id) for env_id in ENV_IDS} == before


REGISTER_AND_TELL = """
import sys
import latentpg.envs
print(sorted(name for name in sys.modules if name.startswith("latentpg.envs") or name in ("torch", "pyro")))
import gymnasium
gymnasium.make("latentpg/Corridor-v0")
print("latentpg.envs.corridor" in sys.modules, "latentpg.envs.multi_goal" in sys.modules)
"""


def test_registering_imports_no_environment() -> None:
    told = subprocess.run([sys.executable, "-c", REGISTER_AND_TELL], check=True, capture_output=True, text=True)
    assert told.stdout.splitlines() == [
        "['latentpg.envs', 'latentpg.envs.registration']",
        "True False",
    ]
