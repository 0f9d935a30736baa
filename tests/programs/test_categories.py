"""Particles looked up in a table of all categories: the same numbers and gradients, in as many runs of the decoder."""

import pytest
import torch
from gymnasium import spaces
from torch import Tensor
from torch.func import vmap

from latentpg.errors import SupportError
from latentpg.policies import MixturePolicy
from latentpg.programs import LatentPolicy, Latents, Observations, Span, act, blocks, log_joint, model_parameters
from latentpg.programs.run import score_in_one_piece

OBS = spaces.Box(-1.0, 1.0, (3,))
ROWS, K, SIZE = 5, 9, 4


def mixture(action_space: spaces.Space, size: int = SIZE) -> MixturePolicy:
    return MixturePolicy(OBS, action_space, num_components=size, hidden=(8,)).double()


def sizes_scored(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> list[int]:
    seen: list[int] = []

    def note(policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents) -> Tensor:
        seen.append(len(latents["z"]))
        return score_in_one_piece(policy, obs, action, latents)

    with blocks.scoring_with(note):
        log_joint(policy, obs, action, latents)
    return seen


@pytest.mark.parametrize("space", [spaces.Box(-1, 1, (2,)), spaces.Discrete(3)], ids=["box", "discrete"])
@pytest.mark.parametrize("steps", [None, 4])
def test_values_and_gradients_are_those_of_particles_scored_one_by_one(space: spaces.Space, steps: int | None) -> None:
    torch.manual_seed(0)
    policy = mixture(space)
    obs: Observations = torch.randn(ROWS, 3, dtype=torch.float64)
    if steps is not None:
        mask = torch.rand(ROWS, steps) < 0.5
        mask[:, 0] = True
        obs = Span(torch.randn(ROWS, steps, 3, dtype=torch.float64), mask)
    action = act(policy, obs).action
    latents = {"z": torch.randint(SIZE, (K, ROWS))}
    weight = torch.randn(K, ROWS, dtype=torch.float64)
    ways = (log_joint(policy, obs, action, latents), score_in_one_piece(policy, obs, action, latents))
    torch.testing.assert_close(*ways, rtol=1e-12, atol=1e-12)
    slopes = [torch.autograd.grad((weight * way).sum(), model_parameters(policy)) for way in ways]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


def test_each_category_is_scored_once_and_fewer_particles_than_categories_by_themselves() -> None:
    policy, obs = mixture(spaces.Discrete(3)), torch.zeros(ROWS, 3, dtype=torch.float64)
    action = torch.zeros(ROWS, dtype=torch.int64)
    scored = {
        count: sizes_scored(policy, obs, action, {"z": torch.zeros(count, ROWS, dtype=torch.int64)})
        for count in (SIZE - 1, SIZE, SIZE + 1, 50)
    }
    assert scored == {SIZE - 1: [SIZE - 1], SIZE: [SIZE], SIZE + 1: [SIZE], 50: [SIZE]}


def test_a_policy_that_names_no_categories_is_scored_as_it_is() -> None:
    policy, obs = mixture(spaces.Discrete(3)), torch.zeros(ROWS, 3, dtype=torch.float64)
    policy.categories = {}
    action = torch.zeros(ROWS, dtype=torch.int64)
    assert sizes_scored(policy, obs, action, {"z": torch.zeros(50, ROWS, dtype=torch.int64)}) == [50]


@pytest.mark.parametrize("wrong", [-1, SIZE])
def test_a_category_out_of_range_is_told_of_and_not_looked_up(wrong: int) -> None:
    policy, obs = mixture(spaces.Discrete(3)), torch.zeros(ROWS, 3, dtype=torch.float64)
    latents = {"z": torch.zeros(K, ROWS, dtype=torch.int64)}
    latents["z"][5, 2] = wrong
    with pytest.raises(SupportError, match="row 2"):
        log_joint(policy, obs, torch.zeros(ROWS, dtype=torch.int64), latents)


def test_under_vmap_over_particles() -> None:
    torch.manual_seed(0)
    policy, obs = mixture(spaces.Box(-1, 1, (2,))), torch.randn(ROWS, 3, dtype=torch.float64)
    action, many = act(policy, obs).action, torch.randint(SIZE, (6, K, ROWS))
    together = vmap(lambda z: log_joint(policy, obs, action, {"z": z}))(many)
    apart = torch.stack([score_in_one_piece(policy, obs, action, {"z": z}) for z in many])
    torch.testing.assert_close(together, apart, rtol=1e-12, atol=1e-12)
