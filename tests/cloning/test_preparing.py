"""From data to rows, spaces, a policy and a learner."""

from pathlib import Path

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import nn

from latentpg.cloning import demonstrations_of, prepared, spaces_of
from latentpg.data import Demonstrations, save_npz
from latentpg.errors import OptionError
from latentpg.policies.heads import BoxHead
from latentpg.programs import Span
from tests.cloning.runs import EPISODE, file_of_steps, small


def test_rows_are_what_the_latent_spans() -> None:
    with prepared(small()) as built:
        steps = built.rows
        assert steps.size == built.split.train.num_rows and not isinstance(steps.obs, Span)
    with prepared(small(**EPISODE)) as built:
        assert built.rows.size == 12 and built.test.size == 6
    with prepared(small(policy="chunk", latent_size=2, chunk_size=4, num_action_steps=3)) as built:
        assert built.rows.size == built.split.train.num_rows  # a chunk begins at every step to learn from
        obs = built.test.obs
        assert isinstance(obs, Span)
        assert int(obs.mask.sum()) == built.split.test.num_rows and int(obs.mask.sum(1).max()) == 3


def test_observations_are_normalised_by_the_training_part_alone() -> None:
    with prepared(small()) as built:
        assert isinstance(built.policy, nn.Module)
        mean = next(value for name, value in built.policy.state_dict().items() if name.endswith("mean"))
        torch.testing.assert_close(mean, built.split.train.obs.double().mean(0))


def test_networks_begin_as_cloning_has_them_and_a_floor_is_kept() -> None:
    with prepared(small(min_log_std=-3.0)) as built:
        assert isinstance(built.policy, nn.Module)
        heads = [each for each in built.policy.modules() if isinstance(each, BoxHead)]
    assert heads and all(each.min_log_std == -3.0 and each.log_std.tolist() == [-1.0, -1.0] for each in heads)


def test_seeds_change_split_and_parameters_and_nothing_else_does() -> None:
    def first(seed: int) -> tuple[list[int], torch.Tensor]:
        with prepared(small(seed=seed)) as built:
            return built.split.episodes[0].tolist(), torch.cat(
                [p.detach().flatten() for p in built.policy.decoder_parameters()]
            )

    one, same, other = first(0), first(0), first(1)
    assert one[0] == same[0] and torch.equal(one[1], same[1])
    assert one[0] != other[0] and not torch.equal(one[1], other[1])


def test_spaces_of_data_hold_all_of_them() -> None:
    floats = Demonstrations.from_episodes([[[0.0], [1.0]]], [[[1.0, 5.0], [-2.0, 5.0]]])
    box = spaces_of(floats)[1]
    assert isinstance(box, spaces.Box) and box.low.tolist() == [-2.0, 4.0] and box.high.tolist() == [1.0, 6.0]
    whole = Demonstrations.from_episodes([[[0.0], [1.0]]], [[0, 3]])
    assert spaces_of(whole)[1] == spaces.Discrete(4)
    several = Demonstrations.from_episodes([[[0.0], [1.0]]], [[[0, 1], [2, 0]]])
    assert spaces_of(several)[1] == spaces.MultiDiscrete([3, 2])
    with pytest.raises(OptionError, match="integer actions"):
        spaces_of(Demonstrations.from_episodes([[[0.0], [1.0]]], [[0, -1]]))


def test_discrete_actions_are_cloned_too(tmp_path: Path) -> None:
    file = file_of_steps(tmp_path / "shown.npz", action=np.arange(60) % 3)
    with prepared(small(data=str(file), policy="mixture")) as built:
        assert built.spaces[1] == spaces.Discrete(3)
        assert np.isfinite(built.cloner.update()["valid/log_prob"])


def test_doubles_are_read_as_the_networks_compute(tmp_path: Path) -> None:
    demos = Demonstrations.from_episodes([[[0.0]]] * 2, [[[0.5]]] * 2, dtype=torch.float64)
    save_npz(tmp_path / "shown.npz", demos)
    assert demonstrations_of(str(tmp_path / "shown.npz"), number=1, seed=0).obs.dtype == torch.float32


def test_the_digest_knows_data_again(tmp_path: Path) -> None:
    def digest(shift: float) -> str:
        with np.load(file_of_steps(tmp_path / "shown.npz")) as arrays:
            obs = arrays["obs"] + np.float32(shift)
        with prepared(small(data=str(file_of_steps(tmp_path / "shown.npz", obs=obs)))) as built:
            return built.digest

    assert digest(0.0) == digest(0.0) != digest(0.5)
