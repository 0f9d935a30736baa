"""Groups of whole episodes from one initial state: who plays when, what is shared, and what is refused."""

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import VectorEnv

from latentpg.envs.corridor import chance_of_reward
from latentpg.errors import OptionError, ShapeError
from latentpg.estimators import JointScore
from latentpg.numerics.rng import seeded
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import LatentPolicy, log_joint
from latentpg.rollout import EnvironmentFault, Episodes, Transitions, collect_episodes, collect_groups, make_envs
from latentpg.rollout.noise import replace_noise
from tests.rollout.scripted import Scripted, members, scripted, vectorize

AnyEnvs = VectorEnv[Any, Any, Any]


def policy_of(envs: AnyEnvs, seed: int = 0) -> MixturePolicy:
    with seeded(seed):
        return MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=3, hidden=(8,))


def play(envs: AnyEnvs, *, num_groups: int = 5, group_size: int = 4, seed: int = 0, noise: str = "shared") -> Episodes:
    with seeded(1):
        return collect_groups(
            envs, policy_of(envs), num_groups=num_groups, group_size=group_size, seed=seed, noise=noise
        )


@pytest.mark.parametrize("num_envs", [1, 3, 4, 7, 30])
def test_every_episode_is_whole_and_starts_where_its_group_does(num_envs: int) -> None:
    """Members fewer than, as many as, and more than a group or all episodes; lengths drawn from the seed, 1 to 5."""
    episodes = play(scripted(num_envs))
    rows = episodes.transitions
    assert (episodes.num_episodes, episodes.num_groups) == (20, 5)
    assert torch.equal(episodes.step.float(), rows.obs[:, 1])
    assert torch.equal(rows.next_obs[:, 1], rows.obs[:, 1] + 1)
    ends = episodes.lengths.cumsum(0) - 1
    assert torch.equal(rows.done.nonzero().flatten(), ends)
    start = rows.obs[episodes.step == 0, 0].unflatten(0, (5, 4))
    assert (start == start[:, :1]).all() and len(set(start[:, 0].tolist())) == 5
    assert torch.equal(rows.obs[:, 0], episodes.spread(start.flatten()))
    lengths = episodes.lengths.double()
    assert torch.equal(episodes.returns, lengths * (lengths + 1) / 2)
    assert torch.equal(episodes.group, episodes.episode // 4)
    goes_on = rows.done.logical_not()
    assert torch.equal(rows.next_obs[goes_on], rows.obs[1:][goes_on[:-1]])


def test_the_episodes_are_the_same_however_many_members_play_them() -> None:
    """With an environment that does not heed actions: only who steps it when differs."""
    few, many = play(scripted(2)), play(scripted(7))
    assert torch.equal(few.transitions.obs, many.transitions.obs)
    assert torch.equal(few.transitions.next_obs, many.transitions.next_obs)


def test_idle_steps_are_counted_and_not_recorded() -> None:
    envs = vectorize([lambda: Scripted(length=2)] * 3)
    episodes = play(envs, num_groups=1, group_size=4)
    # ticks 1-2: episodes 0, 1, 2; ticks 3-4: episode 3 and two members without one
    assert episodes.num_idle_steps == 4
    assert episodes.transitions.num_rows == 8


def test_no_episode_is_dropped_for_being_long() -> None:
    """One member's episodes are 40 steps long and the other's 1; a step budget would keep the short ones alone."""
    envs = vectorize([lambda: Scripted(length=40), lambda: Scripted(length=1)])
    episodes = play(envs, num_groups=2, group_size=5)
    assert sorted(episodes.lengths.tolist()) == [1] * 9 + [40]


# noise


def noise_of(episodes: Episodes) -> list[torch.Tensor]:
    """Return the draws of each episode's steps."""
    return [episodes.transitions.next_obs[episodes.episode == e, 2] for e in range(episodes.num_episodes)]


def test_shared_noise_is_the_same_in_a_group() -> None:
    episodes = play(scripted(3), num_groups=3)
    draws = noise_of(episodes)
    for group in range(3):
        assert all(torch.equal(draws[group * 4], draws[group * 4 + g]) for g in range(4))
    assert not torch.equal(draws[0][:1], draws[4][:1])


@pytest.mark.parametrize("num_envs", [3, 4])
def test_independent_noise_differs_from_the_first_step_on(num_envs: int) -> None:
    envs = vectorize([lambda: Scripted(length=5)] * num_envs)
    episodes = play(envs, num_groups=3, noise="independent")
    draws = torch.stack(noise_of(episodes))
    assert draws.shape == (12, 5) and len(set(draws.flatten().tolist())) == 60
    starts = episodes.transitions.obs[episodes.step == 0, 0].unflatten(0, (3, 4))
    assert (starts == starts[:, :1]).all()
    again = torch.stack(noise_of(play(scripted(2, length=5), num_groups=3, noise="independent")))
    assert torch.equal(draws, again)  # it hangs on the seed and the episode alone


def test_independent_noise_in_our_native_environments() -> None:
    envs = gymnasium.make_vec(
        "latentpg/ArmsBandit-v0", num_envs=3, vectorization_mode="vector_entry_point", reward_noise=1.0
    )

    def residual(noise: str) -> torch.Tensor:
        rows = play(envs, num_groups=2, noise=noise).transitions
        return (rows.reward - torch.tensor([1.0, 0.5, 1.0, 0.0, 1.0, 0.5])[rows.action]).unflatten(0, (2, 4))

    torch.testing.assert_close(residual("shared"), residual("shared")[:, :1].expand(2, 4))
    assert len(set(residual("independent").flatten().tolist())) == 8


def test_members_that_go_on_keep_their_noise() -> None:
    envs = scripted(2)
    envs.reset(seed=[1, 2])
    kept, other = (env.np_random for env in members(envs))
    replace_noise("here()", envs, {1: 5})
    first, second = (env.np_random for env in members(envs))
    assert first is kept and second is not other
    assert second.random() == np.random.default_rng(5).random()


def test_noise_that_cannot_be_replaced_is_refused() -> None:
    class Locked(Scripted):
        @property
        def np_random(self) -> np.random.Generator:
            return np.random.default_rng(3)

        @np_random.setter
        def np_random(self, value: np.random.Generator) -> None:
            pass

    with pytest.raises(OptionError, match="cannot be made independent") as caught:
        play(vectorize([Locked] * 2), noise="independent")
    assert "another stream" in str(caught.value)

    class NoAttributes(gymnasium.vector.VectorWrapper[Any, Any, Any]):
        @property
        def unwrapped(self) -> Any:  # noqa: ANN401
            return object()

    with pytest.raises(OptionError, match="cannot be made independent"):
        replace_noise("here()", NoAttributes(scripted(2)), {0: 1})


# a latent that is held


POLICIES: dict[str, Callable[[Any, Any], LatentPolicy]] = {
    "mixture": lambda obs, action: MixturePolicy(obs, action, num_components=3, hidden=(8,)),
    "gaussian": lambda obs, action: GaussianPolicy(obs, action, hidden=(8,)),
    "two-level": lambda obs, action: TwoLevelPolicy(obs, action, hidden=(8,)),
}


@pytest.mark.parametrize("name", POLICIES)
@pytest.mark.parametrize("action_space", [spaces.Discrete(2), spaces.Box(-1, 1, (2,))], ids=["discrete", "box"])
def test_an_episode_with_a_held_latent_is_one_row(name: str, action_space: spaces.Space[Any]) -> None:
    envs = scripted(3, action_space=action_space)
    with seeded(0):
        policy = POLICIES[name](envs.single_observation_space, action_space)
    with seeded(1):
        episodes = collect_groups(envs, policy, num_groups=3, group_size=4, seed=0, latent="episode")
    rows, spans = episodes.transitions, episodes.spans()
    assert spans.obs.mask.sum() == rows.num_rows and spans.obs.mask[:, 0].all()
    assert len({*episodes.lengths.tolist()}) > 1
    for site, value in rows.latents.items():
        first = value[episodes.step == 0]
        assert torch.equal(value, first[episodes.episode])  # one value an episode
        assert torch.equal(spans.latents[site], first)
        assert first.unique(dim=0).shape[0] > 1
    with torch.no_grad():
        again = log_joint(policy, spans.obs, spans.action, {site: z.unsqueeze(0) for site, z in spans.latents.items()})
    torch.testing.assert_close(again[0], spans.log_joint)
    estimator = JointScore()
    particles = estimator.propose(policy, spans.obs, spans.action, spans.latents)
    log_prob = estimator.estimate(policy, spans.obs, spans.action, particles).log_prob
    torch.testing.assert_close(log_prob.detach(), spans.log_joint)


def test_a_held_latent_is_drawn_from_the_prior_at_the_first_observation() -> None:
    """A latent that the prior makes certain by the observation: later observations would give another one."""
    envs = scripted(2, length=4)
    policy = policy_of(envs)
    with torch.no_grad():  # z = 1 where the step's number is 0, and z = 2 from 0.5 on
        for layer in policy.prior.layers:
            if isinstance(layer, torch.nn.Linear):
                layer.weight.zero_()
                layer.bias.zero_()
        linear = [layer for layer in policy.prior.layers if isinstance(layer, torch.nn.Linear)]
        linear[0].weight[0, 1] = 100.0
        linear[-1].weight[2, 0] = 200.0
        linear[-1].bias.copy_(torch.tensor([-100.0, 100.0, 0.0]))
    with seeded(1):
        held = collect_groups(envs, policy, num_groups=2, group_size=2, seed=0, latent="episode")
        fresh = collect_groups(envs, policy, num_groups=2, group_size=2, seed=0)
    assert held.transitions.latents["z"].tolist() == [1] * 16
    assert fresh.transitions.latents["z"].tolist() == [1, 2, 2, 2] * 4


def test_a_held_latent_is_paid_where_one_a_step_is_not() -> None:
    """The corridor: two components that go left or right with probability .95, drawn evenly."""
    envs = make_envs("latentpg/Corridor-v0", 20, vectorization_mode="native")
    with seeded(0):
        policy = MixturePolicy(envs.single_observation_space, envs.single_action_space, num_components=2, hidden=(2,))
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
        embedding, readout = policy.decoder.network.latents[0], policy.decoder.network.rest.layers[-1]
        assert isinstance(embedding, torch.nn.Linear) and isinstance(readout, torch.nn.Linear)
        embedding.weight[0] = torch.tensor([-10.0, 10.0])  # tanh of it: -1, 1
        readout.weight[1, 0] = math.log(0.95 / 0.05)
    with seeded(1):
        held = collect_groups(envs, policy, num_groups=10, group_size=20, seed=0, latent="episode")
        fresh = collect_groups(envs, policy, num_groups=10, group_size=20, seed=0)
    # ten failures of 200 where .63 are expected, or ten rewards where .08 are: less than once in 1e8 runs
    assert chance_of_reward(0.95) > 0.9968 and chance_of_reward(0.5) < 0.0004
    assert held.returns.sum() > 190 and fresh.returns.sum() < 10


def test_steps_with_latents_of_their_own_are_no_span() -> None:
    with pytest.raises(OptionError, match="latent of its own"):
        play(scripted(2)).spans()


# limits


def test_an_episode_that_never_ends_is_an_error_or_truncated() -> None:
    envs = vectorize([lambda: Scripted(length=0), lambda: Scripted(length=3)])
    policy = policy_of(envs)
    with pytest.raises(EnvironmentFault, match="member 0 does not end") as caught:
        collect_groups(envs, policy, num_groups=2, group_size=2, seed=0, max_steps=7)
    assert "max_steps=7" in str(caught.value)
    found = collect_groups(envs, policy, num_groups=2, group_size=2, seed=0, max_steps=7, on_max_steps="truncate")
    assert sorted(found.lengths.tolist()) == [3, 3, 3, 7]
    ends = found.transitions.rows(found.lengths.cumsum(0) - 1)
    assert torch.equal(ends.truncated, found.lengths == 7) and torch.equal(ends.terminated, found.lengths == 3)
    assert found.transitions.truncated.sum() == 1


def test_an_end_in_the_last_step_allowed_is_an_end() -> None:
    found = collect_groups(
        scripted(2, length=3), policy_of(scripted(1)), num_groups=1, group_size=2, seed=0, max_steps=3
    )
    assert found.transitions.terminated.sum() == 2 and not found.transitions.truncated.any()


def test_an_environments_own_limit_ends_an_episode() -> None:
    found = play(scripted(2, length=3, truncates=True))
    assert found.lengths.tolist() == [3] * 20 and found.transitions.truncated.sum() == 20


# what is refused


@pytest.mark.parametrize("size", [1, 0, True])
def test_a_group_of_one_is_refused(size: int) -> None:
    with pytest.raises(OptionError, match="`group_size`") as caught:
        play(scripted(2), group_size=size)
    assert "nothing to be compared with" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"num_groups": 0}, "`num_groups`"),
        ({"noise": "indepndent"}, "did you mean independent"),
        ({"latent": "episodes"}, "did you mean episode"),
        ({"on_max_steps": "stop"}, "`on_max_steps`"),
        ({"max_steps": 0}, "`max_steps`"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], told: str) -> None:
    envs = scripted(2)
    settings: dict[str, Any] = {"num_groups": 1, "group_size": 2, "seed": 0, **options}
    with pytest.raises(OptionError, match=told):
        collect_groups(envs, policy_of(envs), **settings)


def test_environments_that_reset_themselves_are_refused() -> None:
    with pytest.raises(OptionError, match="reset themselves"):
        play(make_envs("CartPole-v1", 2, vectorization_mode="native"))


def test_members_that_start_in_different_states_are_refused() -> None:
    class Wandering(Scripted):
        def reset(
            self, *, seed: int | None = None, options: dict[str, Any] | None = None
        ) -> tuple[Any, dict[str, Any]]:
            return super().reset(seed=None)  # it ignores its seed

    with pytest.raises(EnvironmentFault, match="two members of group 0 did not start in the same state"):
        play(vectorize([Wandering] * 3))


# whole episodes without groups, and the shapes


def test_episodes_without_groups() -> None:
    envs = scripted(3)
    with seeded(1):
        episodes = collect_episodes(envs, policy_of(envs), num_episodes=10, seed=0)
    assert (episodes.num_episodes, episodes.group_size) == (10, 1)
    assert len(set(episodes.transitions.obs[episodes.step == 0, 0].tolist())) == 10
    with pytest.raises(OptionError, match="`num_episodes`"):
        collect_episodes(envs, policy_of(envs), num_episodes=0, seed=0)


def by_hand() -> Episodes:
    """Two episodes in one group, of three steps and of one."""
    rows = Transitions(
        torch.zeros(4, 1),
        torch.arange(4),
        {},
        torch.zeros(4),
        torch.tensor([1.0, 2.0, 4.0, 8.0]),
        torch.tensor([False, False, True, True]),
        torch.zeros(4, dtype=torch.bool),
        torch.zeros(4, 1),
    )
    return Episodes(rows, torch.tensor([0, 0, 0, 1]), 2)


def test_padded_forms() -> None:
    episodes = by_hand()
    reward = episodes.transitions.reward
    assert episodes.pad(reward).tolist() == [[1, 8], [2, 0], [4, 0]]
    assert episodes.pad(episodes.transitions.done, fill=True).tolist() == [[False, True], [False, True], [True, True]]
    assert episodes.mask.tolist() == [[True, True], [True, False], [True, False]]
    assert torch.equal(episodes.unpad(episodes.pad(reward)), reward)
    assert episodes.spread(torch.tensor([5.0, 6.0])).tolist() == [5, 5, 5, 6]
    assert episodes.step.tolist() == [0, 1, 2, 0] and episodes.lengths.tolist() == [3, 1]
    assert episodes.group_returns.tolist() == [[7.0, 8.0]] and episodes.returns.dtype == torch.float64


@pytest.mark.production
def test_shapes_that_do_not_fit_are_refused() -> None:
    episodes = by_hand()
    with pytest.raises(ShapeError, match=r"Episodes.pad\(\)"):
        episodes.pad(torch.zeros(3))
    with pytest.raises(ShapeError, match=r"T=3, E=2"):
        episodes.unpad(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"E=2"):
        episodes.spread(torch.zeros(4))
    for wrong in ([0, 0, 2, 2], [0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 1]):
        with pytest.raises(ShapeError, match="`episode`"):
            Episodes(episodes.transitions, torch.tensor(wrong), 1)
    with pytest.raises(ShapeError, match="`group_size`"):
        Episodes(episodes.transitions, episodes.episode, 3)
