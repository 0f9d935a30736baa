"""Batches split over rows: the same numbers from less memory, and mistakes told of the whole batch.

``tests/programs/test_run.py`` draws sizes for a Gaussian latent, and the examiner's contract takes every estimator
through blocks of one row; here is what they leave out.
"""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, vmap

from latentpg.errors import EstimatorError, ShapeError, SupportError
from latentpg.estimators import ELBO, ConditionalIS, Estimator, Exact, Guide, PosteriorIS, replicate_gradients
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import (
    LatentPolicy,
    Latents,
    Observations,
    Span,
    act,
    draw_guide,
    log_joint,
    model_parameters,
    row_blocks,
)
from latentpg.programs import blocks as blocks_module
from latentpg.programs.run import score_in_one_piece
from tests.programs.reference import off_by

OBS = spaces.Box(-1.0, 1.0, (3,))
BOX = spaces.Box(-1.0, 1.0, (2,))
ROWS, K = 7, 3
BLOCKS = pytest.mark.parametrize("block", [1, 2 * K, 3 * K + 1, ROWS * K, 1000])
"""One row a block, two and three (uneven last block; not a multiple of K), the whole batch, more than the batch."""

Policy = MixturePolicy | GaussianPolicy | TwoLevelPolicy
POLICIES: dict[str, Callable[[], Policy]] = {
    "mixture of boxes": lambda: MixturePolicy(OBS, BOX, num_components=3, hidden=(8,)),
    "mixture of choices": lambda: MixturePolicy(OBS, spaces.Discrete(3), num_components=3, hidden=(8,)),
    "gaussian, any flags": lambda: GaussianPolicy(OBS, spaces.MultiBinary(2), hidden=(8,)),
    "two levels, vector of choices": lambda: TwoLevelPolicy(OBS, spaces.MultiDiscrete([2, 3]), hidden=(8,)),
}
KINDS = pytest.mark.parametrize("kind", POLICIES)


def observations(steps: int | None = None, *, rows: int = ROWS) -> Observations:
    if steps is None:
        return torch.randn(rows, 3, dtype=torch.float64)
    mask = torch.rand(rows, steps) < 0.6
    mask[:, 0] = True
    return Span(torch.randn(rows, steps, 3, dtype=torch.float64), mask)


def recorded(policy: Policy, steps: int | None = None) -> tuple[Observations, Tensor, Latents]:
    obs = observations(steps)
    acted = act(policy, obs)
    return obs, acted.action, acted.latents


def gradients(policy: LatentPolicy, value: Tensor, *, keep: bool = False) -> tuple[Tensor, ...]:
    return torch.autograd.grad(value, model_parameters(policy), retain_graph=keep)


def assert_same(one: tuple[Tensor, ...], other: tuple[Tensor, ...]) -> None:
    assert all(torch.allclose(a, b, rtol=1e-12, atol=1e-13) for a, b in zip(one, other, strict=True))


# ---------------------------------------------------------------------------------------------------- the same numbers


@BLOCKS
@KINDS
@pytest.mark.parametrize("steps", [None, 4])
def test_values_and_gradients_are_those_of_one_piece(kind: str, steps: int | None, block: int) -> None:
    policy = POLICIES[kind]().double()
    obs, action, _ = recorded(policy, steps)
    latents = draw_guide(policy, obs, action, num_particles=K).latents
    cotangent = torch.randn(K, ROWS, dtype=torch.float64)

    def score() -> tuple[Tensor, ...]:
        value = log_joint(policy, obs, action, latents)
        return value.detach(), *gradients(policy, (value * cotangent).sum())

    whole = score()
    with row_blocks(block):
        assert_same(score(), whole)
        with torch.no_grad():
            assert off_by(log_joint(policy, obs, action, latents), whole[0]) < 1e-13


@BLOCKS
def test_latents_of_several_sites_keep_their_paths_into_the_guide(block: int) -> None:
    """Pathwise draws are inputs of the blocks: their gradient must leave them again."""
    policy = TwoLevelPolicy(OBS, BOX, hidden=(8,)).double()
    obs, action, _ = recorded(policy)
    drawn = draw_guide(policy, obs, action, num_particles=K, pathwise=True)
    wanted = [*policy.guide_parameters(), *model_parameters(policy)]

    def score() -> tuple[Tensor, ...]:
        value = log_joint(policy, obs, action, drawn.latents).sum()
        return torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True, materialize_grads=True)

    whole = score()
    assert any(bool((part != 0).any()) for part in whole[: len(policy.guide_parameters())])
    with row_blocks(block):
        assert_same(score(), whole)


@KINDS
@pytest.mark.parametrize(
    "estimator", [ConditionalIS(K, Guide()), PosteriorIS(K), ELBO(K)], ids=["conditional", "posterior", "elbo"]
)
def test_stored_particles_serve_twice(kind: str, estimator: Estimator) -> None:
    """The ratio of a PPO step: old values without a gradient, new ones with, both from blocks of uneven size."""
    policy = POLICIES[kind]().double()
    obs, action, latents = recorded(policy)
    particles = estimator.propose(policy, obs, action, latents)

    def step(block: int) -> tuple[Tensor, ...]:
        with row_blocks(block):
            with torch.no_grad():
                old = estimator.estimate(policy, obs, action, particles).log_prob
            new = estimator.estimate(policy, obs, action, particles).log_prob
            again = estimator.estimate(policy, obs, action, particles).log_prob
        assert not old.requires_grad
        assert torch.equal(old, new.detach())
        ratio = (new - old).exp() * torch.linspace(-1.0, 1.0, ROWS, dtype=torch.float64)
        return old, *gradients(policy, ratio.sum() + (again * new).sum())

    assert_same(step(2 * K), step(1000))


def test_a_graph_that_is_kept_can_be_walked_again() -> None:
    policy = POLICIES["mixture of boxes"]().double()
    obs, action, latents = recorded(policy)
    particles = ConditionalIS(K).propose(policy, obs, action, latents)
    with row_blocks(2 * K):
        value = ConditionalIS(K).estimate(policy, obs, action, particles).log_prob
    first = [gradients(policy, row, keep=True) for row in value]  # one row's gradient after the other
    total = gradients(policy, value.sum())
    assert_same(tuple(sum(parts) for parts in zip(*first, strict=True)), total)


# ------------------------------------------------------------------------------------------------------- less memory


def saved_bytes(score: Callable[[], Tensor], parameters: list[nn.Parameter]) -> int:
    """Count the bytes of distinct storage that a forward pass keeps for its backward pass, parameters left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        value = score()
    del value
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["mixture of boxes", "gaussian, any flags"])
def test_the_forward_pass_keeps_no_activations(kind: str) -> None:
    """In one piece every hidden layer of every particle is kept; in blocks next to nothing, however large the batch."""
    rows, particles = 256, 16
    policy = POLICIES[kind]()
    policy.categories = {}  # every particle by itself
    obs = torch.randn(rows, 3)
    action = act(policy, obs).action
    latents = draw_guide(policy, obs, action, num_particles=particles).latents

    def kept(block: int) -> int:
        with row_blocks(block):
            return saved_bytes(lambda: log_joint(policy, obs, action, latents), list(policy.parameters()))

    hidden = rows * particles * 8 * 4  # one hidden layer of eight floats
    assert kept(10**6) > hidden
    assert kept(rows) < hidden / 100


def test_batches_beyond_the_default_are_split_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    inner = score_in_one_piece

    def note(policy: Any, obs: Any, action: Any, latents: Any) -> Tensor:  # noqa: ANN401 (as it comes)
        sizes.append(len(action))
        return inner(policy, obs, action, latents)

    policy = MixturePolicy(OBS, spaces.Discrete(2), num_components=64, hidden=(2,))
    limit = blocks_module.DEFAULT_BLOCK // 64
    obs, action = torch.zeros(limit + 3, 3), torch.zeros(limit + 3, dtype=torch.int64)
    latents = {"z": torch.zeros(64, limit + 3, dtype=torch.int64)}
    with blocks_module.scoring_with(note), torch.no_grad():
        log_joint(policy, obs, action, latents)
        assert sizes == [limit, 3]
        log_joint(policy, obs[:limit], action[:limit], {"z": latents["z"][:, :limit]})
        assert sizes == [limit, 3, limit]


# --------------------------------------------------------------------------------------------- under torch.func's vmap


def test_under_vmap_everything_is_scored_in_one_piece_as_written() -> None:
    """Nothing is recomputed or compiled there, whatever holds outside of it."""

    def refuse(policy: Any, obs: Any, action: Any, latents: Any) -> Tensor:  # noqa: ANN401 (as it comes)
        raise AssertionError

    policy = POLICIES["mixture of boxes"]().double()
    obs, action, latents = recorded(policy)
    particles = {name: value.unsqueeze(0) for name, value in latents.items()}
    shifts = torch.linspace(-1.0, 1.0, 4, dtype=torch.float64)
    with row_blocks(1), blocks_module.scoring_with(refuse):
        inside = vmap(lambda shift: log_joint(policy, obs, action + shift, particles))(shifts)
    outside = torch.stack([log_joint(policy, obs, action + shift, particles) for shift in shifts])
    assert off_by(inside, outside) < 1e-13


def test_blocks_change_no_replicate() -> None:
    policy = POLICIES["mixture of choices"]().double()
    obs, action, _ = recorded(policy)
    whole = replicate_gradients(policy, Exact(), obs, action, num_replicates=2)
    with row_blocks(2):
        assert_same(replicate_gradients(policy, Exact(), obs, action, num_replicates=2), whole)


# ------------------------------------------------------------------------------------------------------------- errors


@pytest.mark.production
@pytest.mark.parametrize("block", [K, 2 * K, 1000])
@pytest.mark.parametrize("grad", [True, False])
def test_an_action_outside_the_support_is_named_by_its_row_in_the_batch(block: int, grad: bool) -> None:
    policy = POLICIES["mixture of choices"]().double()
    obs, action = observations(), torch.zeros(ROWS, dtype=torch.int64)
    action[5] = 9
    latents = {"z": torch.zeros(K, ROWS, dtype=torch.int64)}
    with nullcontext() if grad else torch.no_grad(), row_blocks(block):
        with pytest.raises(SupportError, match="9 in row 5"):
            log_joint(policy, obs, action, latents)
        with pytest.raises(SupportError, match="9 in row 0"):  # nothing of the earlier blocks stays behind
            log_joint(policy, torch.zeros(1, 3).double(), action[5:6], {"z": latents["z"][:, :1]})


@pytest.mark.production
@pytest.mark.parametrize("given", [4, 6, 8, 14])
@pytest.mark.parametrize("block", [2 * K, 1000])
def test_latents_of_other_rows_are_refused_as_in_one_piece(given: int, block: int) -> None:
    """Slices of too many rows fit every block; none may pass for it."""
    policy = POLICIES["mixture of choices"]().double()
    obs, action = observations(), torch.zeros(ROWS, dtype=torch.int64)
    with row_blocks(block), pytest.raises(ShapeError) as caught:
        log_joint(policy, obs, action, {"z": torch.zeros(K, given, dtype=torch.int64)})
    assert f"[K={K}, B={ROWS}]" in str(caught.value) and f"[{K}, {given}]" in str(caught.value)
    with row_blocks(block), pytest.raises(ShapeError, match=f"B={ROWS}"):
        log_joint(policy, obs, torch.zeros(given, dtype=torch.int64), {"z": torch.zeros(K, ROWS, dtype=torch.int64)})


class Reads(nn.Module):
    """Scores fixed data, for ``functional_call`` to swap the policy's parameters meanwhile."""

    def __init__(self, policy: Policy, *data: Any) -> None:  # noqa: ANN401 (as log_joint's)
        super().__init__()
        self.policy, self.data = policy, data

    def forward(self) -> Tensor:
        return log_joint(self.policy, *self.data).sum()


def test_a_gradient_is_refused_once_what_was_scored_has_moved() -> None:
    """Scored a second time after an optimiser's step, it would be the gradient of neither; torch raises here too."""
    policy = POLICIES["mixture of boxes"]().double()
    obs, action, recorded_latents = recorded(policy)
    latents = {name: value.unsqueeze(0) for name, value in recorded_latents.items()}
    assert isinstance(obs, Tensor)
    moves: list[Tensor] = [next(iter(policy.decoder_parameters())), obs, action, latents["z"]]
    for moved in moves:
        with row_blocks(2):
            value = log_joint(policy, obs, action, latents).sum()
        with torch.no_grad():
            moved.mul_(1)
        with pytest.raises(EstimatorError, match="changed since the forward pass"):
            gradients(policy, value)
    with row_blocks(2):
        value = log_joint(policy, obs, action, latents).sum()
    with torch.no_grad():
        for parameter in policy.guide_parameters():
            parameter.mul_(2)  # which no score of the model depends on
    gradients(policy, value)


@pytest.mark.production  # parameters that were swapped are tensors, which the checked annotations refuse
def test_parameters_that_were_swapped_for_the_forward_pass_are_missed_in_the_backward_pass() -> None:
    policy = POLICIES["mixture of boxes"]().double()
    obs, action, recorded_latents = recorded(policy)
    reader = Reads(policy, obs, action, {name: value.unsqueeze(0) for name, value in recorded_latents.items()})
    other = {name: (2 * value.detach()).requires_grad_() for name, value in reader.named_parameters()}
    with row_blocks(2):
        value = functional_call(reader, other, ())
    with pytest.raises(EstimatorError, match="functional_call"):
        torch.autograd.grad(value, list(other.values()), allow_unused=True)
    assert torch.allclose(functional_call(reader, other, ()), value)


class Shifted(nn.Module):
    """z ~ N(shift, 1), a ~ N(z + s, 1): no product, so that no input is needed to differentiate it."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(self.shift, 1.0))
        pyro.sample("action", dist.Normal(z + obs, 1.0), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", dist.Normal(obs, 1.0))

    def prior_parameters(self) -> list[nn.Parameter]:
        return [self.shift]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []

    guide_parameters = decoder_parameters


def test_data_made_under_inference_mode_is_scored_as_in_one_piece() -> None:
    """Such tensors count no versions, so that no move of theirs can be seen; rollouts may be made of them."""
    policy = Shifted()
    with torch.inference_mode():
        obs, action, latents = torch.ones(4), torch.zeros(4), {"z": torch.ones(2, 4)}
    with row_blocks(2):
        blocks = log_joint(policy, obs, action, latents)
    assert gradients(policy, blocks.sum())[0] == 2 * 4
