"""Roll-outs of every kind of policy, and what replaces its latents and its actions."""

from pathlib import Path

import numpy as np
import pytest
import torch

from latentpg.cloning import PLACES, Prepared, act_out, play, prepared
from latentpg.cloning.acting import play_groups, replacing
from latentpg.cloning.outcomes import demonstrated_modes, mean_of, posterior_draws
from latentpg.errors import OptionError
from latentpg.numerics.rng import seeded
from latentpg.programs import act, conditionals, draw_prior
from tests.cloning.runs import file_of_steps, small

KINDS: dict[str, dict[str, object]] = {
    "mixture": {},
    "two-level": {"style_size": 1},
    "plain": {},
    "chunk": {"latent_size": 2, "chunk_size": 4, "num_action_steps": 2},
    "episode": {"latent_size": 2},
}


@pytest.mark.parametrize("policy", list(KINDS))
@pytest.mark.parametrize("acting", ["stochastic", "decoder-mean"])
def test_whole_episodes_are_played_and_come_out_the_same_again(policy: str, acting: str) -> None:
    with prepared(small(policy=policy, **KINDS[policy])) as built:
        part, envs = built.config.policy, built.envs
        assert envs is not None
        before = torch.get_rng_state()
        one, other = (play(envs, built.policy, part, num_episodes=6, seed=3, acting=acting) for _ in range(2))
        assert torch.equal(before, torch.get_rng_state())
    assert len(one.lengths) == len(one.returns) == 6 and int(one.lengths.sum()) == len(one.obs)
    assert torch.equal(one.obs, other.obs) and bool((one.starts.abs() <= 0.02).all())


def test_the_decoders_mean_leaves_out_the_noise_of_actions_alone() -> None:
    with prepared(small(policy="mixture")) as built:
        obs = torch.zeros(500, 2)
        with replacing("decoder-mean", "prior", None):
            acted = act(built.policy, obs)
        z = {name: value.unsqueeze(0) for name, value in acted.latents.items()}
        torch.testing.assert_close(acted.action, conditionals(built.policy, obs, z)["action"].mean[0])
        assert len(acted.latents["z"].unique()) == 4  # still drawn


def test_the_priors_middle_is_one_value() -> None:
    with prepared(small(policy="gaussian")) as built, replacing("stochastic", "prior-mean", None):
        drawn = draw_prior(built.policy, torch.zeros(5, 2), num_particles=3)
    torch.testing.assert_close(drawn.latents["z"], drawn.distributions["z"].mean.expand(3, 5, 2))


def test_sites_of_one_draw_come_from_one_entry_of_the_bank() -> None:
    bank = {"mode": torch.arange(4), "style": torch.arange(4.0).unsqueeze(1)}
    with prepared(small(policy="two-level", style_size=1)) as built:
        with replacing("stochastic", "posterior", bank), seeded(0):
            acted = act(built.policy, torch.zeros(200, 2))
            again = act(built.policy, torch.zeros(200, 2))
    names = list(acted.latents)
    values = [acted.latents[name].double().reshape(-1) for name in names]
    assert len(values) == 2 and torch.equal(values[0], values[1]) and len(values[0].unique()) == 4
    assert not torch.equal(acted.latents[names[0]], again.latents[names[0]])


def test_an_unknown_source_is_refused() -> None:
    with pytest.raises(OptionError, match="`source`"), replacing("stochastic", "anywhere", None):
        pass
    with pytest.raises(OptionError, match="`source`"), replacing("stochastic", "posterior", None):
        pass


def test_groups_begin_alike() -> None:
    with prepared(small()) as built:
        assert built.envs is not None
        found = play_groups(built.envs, built.policy, built.config.policy, num_contexts=3, size=2, seed=0)
        assert found is not None
        starts = found.starts
    assert torch.equal(starts[0::2], starts[1::2]) and len(starts.unique(dim=0)) == 3


def test_behaviour_is_measured_over_all_and_within_initial_states() -> None:
    with prepared(small(rollouts=12)) as built:
        found = act_out(built, seed=0)
    assert found is not None and found.behaviour is not None and found.behaviour.contexts is not None
    success = float((found.played.returns > 0).double().mean())
    assert found.behaviour.success.value == success and found.behaviour.contexts.num_contexts == 20
    assert set(found.sensitivity) == {"prior", "prior-mean", "posterior"}
    assert found.sensitivity["prior"].value == success


def test_one_initial_state_needs_no_contexts() -> None:
    config = small(data="scripted:latentpg/Avoiding-v0", split=[0.5, 0.25, 0.25], rollouts=4)
    with prepared(config) as built:
        found = act_out(built, seed=0, with_sensitivity=False)
    assert found is not None and found.behaviour is not None and found.behaviour.contexts is None
    assert not found.sensitivity and len(found.behaviour.counts) == 24


def test_modes_are_told_where_the_data_do_not_name_them() -> None:
    with prepared(small()) as built:
        named = demonstrated_modes(built)
        train = built.split.train
        told = PLACES["latentpg/Routes-v0"].modes(train.obs.numpy(), train.lengths.numpy())
        assert train.mode is not None and named is not None
        np.testing.assert_array_equal(told, train.mode.numpy())
        assert named.tolist() == np.bincount(told, minlength=3).tolist()


def test_nothing_is_played_without_an_environment(tmp_path: Path) -> None:
    with prepared(small(data=str(file_of_steps(tmp_path / "shown.npz")))) as built:
        assert act_out(built, seed=0) is None and demonstrated_modes(built) is None


def test_the_bank_has_a_draw_for_each_row() -> None:
    def shape(built: Prepared) -> list[int]:
        return list(posterior_draws(built, seed=0)["z"].shape)

    with prepared(small(policy="episode", latent_size=3)) as built:
        assert shape(built) == [12, 3]


def test_a_mean_has_the_normal_interval() -> None:
    found = mean_of(torch.tensor([1.0, 3.0]))
    assert found.value == 2.0 and found.high == pytest.approx(2.0 + 1.96 * 2**0.5 / 2**0.5)
    assert np.isnan(mean_of(torch.tensor([1.0])).low)
