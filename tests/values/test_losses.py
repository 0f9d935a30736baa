"""Losses: golden rows, and the bootstrap that must not be differentiated."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError, ShapeError
from latentpg.values import LinearCritic, clipped_value_loss, td_loss, value_loss
from tests.values.tabular import double, ending, flag, table, transitions

Loss = Callable[[LinearCritic, Tensor, Tensor, Tensor, Tensor], Tensor]


def ours(critic: LinearCritic, obs: Tensor, reward: Tensor, next_obs: Tensor, terminated: Tensor) -> Tensor:
    return td_loss(critic, obs, reward, next_obs, terminated, discount=0.8)


def bootstrap_differentiated(
    critic: LinearCritic, obs: Tensor, reward: Tensor, next_obs: Tensor, terminated: Tensor
) -> Tensor:
    """Plant a bug: the same value, but the gradient runs through V(s') too."""
    target = reward + 0.8 * critic(next_obs).masked_fill(terminated, 0.0)
    return 0.5 * (critic(obs) - target).square()


def truncation_taken_for_termination(
    critic: LinearCritic, obs: Tensor, reward: Tensor, next_obs: Tensor, terminated: Tensor
) -> Tensor:
    """Plant a bug: every row ends its episode by the clock at the latest, and none is bootstrapped."""
    return td_loss(critic, obs, reward, next_obs, torch.ones_like(terminated), discount=0.8)


def expected_updates(loss: Loss, sweeps: int) -> tuple[Tensor, Tensor]:
    """Run gradient steps of size 1 on the rows of all transitions, weighted to 1 a state; return weights and V."""
    mdp, pi = ending()
    rows, critic = transitions(mdp, pi), table(4)
    for _ in range(sweeps):
        value = loss(critic, rows.obs, rows.reward, rows.next_obs, rows.terminated)
        (gradient,) = torch.autograd.grad((rows.weight * value).sum(), critic.weight)
        critic.load(critic.weight.detach() - gradient)
    return critic.weight.detach(), mdp.state_values(pi)


def test_one_expected_update_of_size_1_is_the_bellman_operator() -> None:
    """From 0 it gives the rewards under the policy; from there r + 0.8 P r with P of the live states."""
    mdp, pi = ending()
    live = mdp.live.double()
    reward = (pi * mdp.reward).sum(-1) * live
    under = torch.einsum("sa,sap->sp", pi, mdp.transition) * live[:, None] * live
    assert torch.allclose(expected_updates(ours, 1)[0], reward, atol=1e-14)
    assert torch.allclose(expected_updates(ours, 2)[0], reward + 0.8 * under @ reward, atol=1e-14)


def test_expected_tabular_updates_reach_the_exact_values() -> None:
    """The operator shrinks every error by 0.8, so that 150 sweeps leave less than 0.8^150 < 3e-15 of the first."""
    weight, exact = expected_updates(ours, 150)
    assert (weight - exact).abs().max() < 1e-12


@pytest.mark.parametrize("planted", [bootstrap_differentiated, truncation_taken_for_termination])
def test_a_planted_bug_reaches_other_values(planted: Loss) -> None:
    """So the test above can fail: the first descends the Bellman residual, the second forgets all but one reward."""
    weight, exact = expected_updates(planted, 150)
    assert (weight - exact).abs().max() > 0.1


def gradient_of(loss: Loss) -> Tensor:
    """One step from state 0 to 1 with reward 2, values (1, 5): the TD error is 2 + 0.8 * 5 - 1 = 5."""
    critic, hot = table(2, double([1.0, 5.0])), torch.eye(2, dtype=torch.float64)
    value = loss(critic, hot[:1], double([2.0]), hot[1:], flag(False))
    assert value.item() == pytest.approx(12.5)
    (gradient,) = torch.autograd.grad(value.sum(), critic.weight)
    return gradient


def test_the_bootstrap_is_never_differentiated() -> None:
    assert gradient_of(ours).tolist() == [-5.0, 0.0]
    assert gradient_of(bootstrap_differentiated).tolist() == [-5.0, 4.0]  # the bug has the same value: only this tells


def test_only_termination_removes_the_bootstrap() -> None:
    """Reward 2 from a state worth 1 to one worth 5: errors 5 and, terminated, 1; halves of the squares."""
    critic, hot = table(2, double([1.0, 5.0])), torch.eye(2, dtype=torch.float64)
    rows = ours(critic, hot[[0, 0]], double([2.0, 2.0]), hot[[1, 1]], flag(False, True))
    assert rows.tolist() == pytest.approx([12.5, 0.5])


def test_targets_are_constants() -> None:
    value, target = double([1.0, 2.0]).requires_grad_(), double([3.0, 1.0]).requires_grad_()
    for loss in (value_loss(value, target), clipped_value_loss(value, value, target, clip_range=9.0)):
        gradient, none = torch.autograd.grad(loss.sum(), [value, target], allow_unused=True)
        assert loss.tolist() == [2.0, 0.5] and gradient.tolist() == [-2.0, 1.0] and none is None


def test_clipped_value_loss_golden() -> None:
    """Old value 0, range 1, and a row for each case.

    target 3, value 2: clipped 1, rows (1, 4)/2: the clipped one, no gradient; moved far enough towards the target.
    target 3, value -2: clipped -1, rows (25, 16)/2: the plain one, gradient -5; moved away from it.
    target 3, value .5: not clipped, 6.25/2, gradient -2.5.
    target 0, value 2: clipped 1, rows (4, 1)/2: the plain one, gradient 2; moved away from it.
    target 1.2, value 1.3: clipped 1, rows (.01, .04)/2: the clipped one, no gradient; past it, by less than the clip.
    """
    value = double([2.0, -2.0, 0.5, 2.0, 1.3]).requires_grad_()
    rows = clipped_value_loss(value, torch.zeros_like(value), double([3.0, 3.0, 3.0, 0.0, 1.2]), clip_range=1.0)
    assert rows.tolist() == pytest.approx([2.0, 12.5, 3.125, 2.0, 0.02])
    (gradient,) = torch.autograd.grad(rows.sum(), value)
    assert gradient.tolist() == pytest.approx([0.0, -5.0, -2.5, 2.0, 0.0])


def test_clipping_never_lowers_the_loss_and_a_wide_range_is_none() -> None:
    value, old, target = torch.randn(3, 50, dtype=torch.float64)
    plain = value_loss(value, target)
    assert bool((clipped_value_loss(value, old, target, clip_range=0.3) >= plain).all())
    assert torch.allclose(clipped_value_loss(value, old, target, clip_range=100.0), plain, atol=1e-13)


def test_old_values_are_constants() -> None:
    old = double([0.0]).requires_grad_()
    rows = clipped_value_loss(double([2.0]).requires_grad_(), old, double([3.0]), clip_range=1.0)
    (none,) = torch.autograd.grad(rows.sum(), old, allow_unused=True)
    assert none is None


@pytest.mark.production
def test_shapes_must_be_equal() -> None:
    row, column = torch.zeros(3), torch.zeros(3, 1)
    with pytest.raises(ShapeError, match=r"value_loss\(\): `target`\n  expected: \[3\][\s\S]*target\.squeeze\(-1\)"):
        value_loss(row, column)
    with pytest.raises(ShapeError, match=r"clipped_value_loss\(\): `old_value`"):
        clipped_value_loss(row, column, row, clip_range=0.2)
    hot = torch.eye(3)
    with pytest.raises(ShapeError, match=r"td_loss\(\): `reward`"):
        td_loss(LinearCritic(table(3).features), hot, column, hot, flag(False, False, False), discount=0.9)


@pytest.mark.parametrize("clip_range", [0.0, -0.2, float("nan"), float("inf")])
def test_a_clip_range_is_positive(clip_range: float) -> None:
    with pytest.raises(OptionError, match="`clip_range`\n  expected: a positive number"):
        clipped_value_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip_range=clip_range)


def test_a_discount_is_a_fraction() -> None:
    hot = torch.eye(1)
    with pytest.raises(OptionError, match=r"td_loss\(\): `discount`\n  expected: a number in \[0, 1\]"):
        td_loss(LinearCritic(table(1).features), hot, torch.zeros(1), hot, flag(False), discount=1.5)
