"""Adam on one set of parameters: nothing else moves, and what is not finite moves nothing."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.learners import Descent, LearningFault
from latentpg.learners.descent import check_finite, named_among, step_together


def pair() -> tuple[nn.Parameter, nn.Parameter]:
    return nn.Parameter(torch.tensor([1.0, -2.0])), nn.Parameter(torch.tensor([[3.0, 0.5, -1.0]]))


def some_loss(first: Tensor, second: Tensor) -> Tensor:
    return (first.square().sum() + 1.0) * (second - 0.25).square().sum()


def test_a_step_moves_its_own_set_and_leaves_no_gradient_behind() -> None:
    first, second = pair()
    other = second.detach().clone()
    Descent({"first": first}, learning_rate=0.1).step(some_loss(first, second))
    assert not torch.equal(first, pair()[0]) and torch.equal(second, other)
    assert first.grad is None and second.grad is None


@pytest.mark.parametrize("limit", [float("inf"), 0.5])
def test_steps_are_those_of_adam_on_clipped_gradients(limit: float) -> None:
    """Those of torch's own clipping and Adam, to the rounding of a norm; the loss is steep, so that 0.5 clips each."""
    mine, theirs = pair(), pair()
    descent = Descent(dict(zip("ab", mine, strict=True)), learning_rate=0.03, max_grad_norm=limit)
    adam = torch.optim.Adam(theirs, lr=0.03, eps=1e-5, fused=True)
    for _ in range(6):
        norm = descent.step(some_loss(*mine))
        adam.zero_grad()
        some_loss(*theirs).backward()
        assert norm == pytest.approx(float(nn.utils.clip_grad_norm_(theirs, limit)), rel=2e-7) and norm > 0.5
        adam.step()
        if limit == float("inf"):
            assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-7)


LAYOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "transposed": lambda a, b: (a.t() * torch.arange(6.0).reshape(3, 2).sub(2.5)).sum() + b.square().sum(),
    "stretched from one number": lambda a, b: a.sum() - b.sum(),
    "one tensor for two parameters": lambda a, b: ((a + b) * torch.arange(6.0).reshape(2, 3).sub(2.5)).sum(),
}


@pytest.mark.parametrize("limit", [float("inf"), 0.1])
@pytest.mark.parametrize("name", LAYOUTS)
def test_gradients_may_lie_in_memory_as_they_like(name: str, limit: float) -> None:
    """The fused kernel reads memory as it lies; autograd's gradients may be views. Held against the plain kernel."""
    mine, theirs = ([nn.Parameter(torch.full((2, 3), value)) for value in (0.0, 1.0)] for _ in range(2))
    descent = Descent(dict(zip("ab", mine, strict=True)), learning_rate=0.1, max_grad_norm=limit)
    adam = torch.optim.Adam(theirs, lr=0.1, eps=1e-5, fused=False, foreach=False)
    for _ in range(3):
        descent.step(LAYOUTS[name](*mine))
        adam.zero_grad()
        LAYOUTS[name](*theirs).backward()
        nn.utils.clip_grad_norm_(theirs, limit)
        adam.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def test_gradients_that_were_handed_in_stay_as_they_are() -> None:
    """They may be somebody's traces, and are clipped in a copy."""
    first, second = pair()
    descent = Descent({"first": first, "second": second}, learning_rate=0.1, max_grad_norm=0.1)
    given = descent.gradients(some_loss(first, second))
    before = [each.clone() for each in given]
    assert descent.move(given) > 0.1
    assert all(torch.equal(one, two) for one, two in zip(given, before, strict=True))


BAD: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], str, str]] = {
    "NaN loss with a finite gradient": (lambda a, b: a.sum() + b.sum() + torch.nan, "the loss", "nan in 1 of 1"),
    "infinite loss": (lambda a, b: (a.sum() + b.sum()) * torch.inf, "the loss", "inf in 1 of 1"),
    "finite loss with an infinite gradient": (
        lambda a, b: a.sum() + (b - b.detach()).abs().sqrt().sum(),
        "the gradient of second",
        "in 3 of 3",
    ),
    "a gradient whose norm is beyond float32": (
        lambda a, b: (a - a.detach()).sum() * 1e38 + ((b - b.detach()) * 3e38).sum(),
        "the gradient's norm",
        "inf in 1 of 1",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_finite_is_refused_and_nothing_moves(name: str) -> None:
    loss, what, got = BAD[name]
    first, second = pair()
    descent = Descent({"first": first, "second": second}, learning_rate=0.1)
    descent.step(some_loss(first, second))
    before, remembered = [first.detach().clone(), second.detach().clone()], descent.state()
    with pytest.raises(LearningFault, match=f"{what} is not finite") as caught:
        descent.step(loss(first, second))
    assert got in str(caught.value) and "are as they were before this step" in str(caught.value)
    assert torch.equal(first, before[0]) and torch.equal(second, before[1])
    assert first.grad is None and second.grad is None
    after = descent.state()
    assert len(after) == 6 and all(torch.equal(after[key], remembered[key]) for key in after)


def test_a_state_is_gone_on_from_bit_for_bit() -> None:
    first, second = pair()
    descent = Descent({"first": first, "second": second}, learning_rate=0.1)
    for _ in range(3):
        descent.step(some_loss(first, second))
    state = descent.state()
    copies = nn.Parameter(first.detach().clone()), nn.Parameter(second.detach().clone())
    again = Descent({"first": copies[0], "second": copies[1]}, learning_rate=0.1)
    again.step(some_loss(*pair()) + 0.0 * copies[0].sum())  # what it remembers of its own must go
    with torch.no_grad():
        for copy, original in zip(copies, (first, second), strict=True):
            copy.copy_(original)
    again.restore(state)
    for _ in range(3):
        assert descent.step(some_loss(first, second)) == again.step(some_loss(*copies))
    assert torch.equal(first, copies[0]) and torch.equal(second, copies[1])
    assert all(torch.equal(value, again.state()[name]) for name, value in descent.state().items())
    assert not any(torch.equal(value, state[name]) for name, value in descent.state().items())  # a copy, not a view


def test_an_empty_state_is_the_beginning() -> None:
    first, _ = pair()
    descent = Descent({"first": first}, learning_rate=0.1)
    assert descent.state() == {}
    descent.step(first.square().sum())
    descent.restore({})
    assert descent.state() == {}


def test_an_empty_set_has_nothing_to_descend() -> None:
    descent = Descent({}, learning_rate=0.1)
    assert descent.step(torch.tensor(1.0)) == 0.0 == descent.move([])
    assert descent.gradients(torch.tensor(1.0)) == () and descent.state() == {}
    descent.set_rate(0.5)
    descent.restore({})


def test_parameters_that_need_no_gradient_stay() -> None:
    first, second = pair()
    second.requires_grad_(False)
    descent = Descent({"first": first, "second": second}, learning_rate=0.1)
    descent.step(some_loss(first, second))
    assert descent.names == ["first"] and torch.equal(second, pair()[1])


def test_a_parameter_that_the_loss_does_not_know_gets_zero() -> None:
    first, second = pair()
    descent = Descent({"first": first, "second": second}, learning_rate=0.1)
    assert descent.step(3.0 * first.sum()) == pytest.approx(3.0 * 2**0.5)
    assert torch.equal(second, pair()[1])


def test_rates() -> None:
    """Adam's first step is the rate, times g / (|g| + epsilon)."""
    first, _ = pair()
    descent = Descent({"first": first}, learning_rate=0.1, epsilon=0.0)
    descent.set_rate(0.0)
    descent.step(first.sum())
    assert torch.equal(first, pair()[0])
    fresh, _ = pair()
    descent = Descent({"first": fresh}, learning_rate=0.1, epsilon=0.0)
    descent.set_rate(0.25)
    descent.step((fresh * torch.tensor([5.0, -7.0])).sum())
    torch.testing.assert_close(fresh.detach(), torch.tensor([0.75, -1.75]))


@pytest.mark.parametrize("rate", [-1e-3, float("nan"), float("inf")])
def test_bad_rates_are_refused(rate: float) -> None:
    descent = Descent({"first": pair()[0]}, learning_rate=0.1)
    with pytest.raises(OptionError, match=r"`learning_rate`\n  expected: a number >= 0"):
        descent.set_rate(rate)


def test_numbers_are_checked_by_name() -> None:
    check_finite("a ratio", torch.tensor([1.0, 2.0]))
    with pytest.raises(LearningFault, match=r"a ratio is not finite\n(.*\n)*  got:      -inf in 2 of 3 entries"):
        check_finite("a ratio", torch.tensor([1.0, -torch.inf, torch.nan]))


def test_parameters_have_the_names_of_the_policy() -> None:
    last = nn.Linear(3, 1)
    policy = nn.Sequential(nn.Linear(2, 3), last)
    stranger = nn.Parameter(torch.zeros(1))
    named = named_among(policy, [next(iter(last.parameters())), stranger])
    assert list(named) == ["1.weight", "parameter 1"] and named["1.weight"] is last.weight


def test_two_losses_together_move_as_one_after_the_other() -> None:
    """Each by its own rate and clip, and the state afterwards is the same too."""
    torch.manual_seed(0)
    starts = [torch.randn(3), torch.randn(2, 2)]
    ends = []
    for together in (False, True):
        mine = [nn.Parameter(start.clone()) for start in starts]
        parts = (
            Descent({"a": mine[0]}, learning_rate=0.1, max_grad_norm=0.5),
            Descent({"b": mine[1]}, learning_rate=0.03),
        )
        norms: tuple[float, ...] = ()
        for _ in range(3):
            losses = ((mine[0] ** 4).sum(), (mine[1] - 1).square().sum())
            pairs = tuple(zip(parts, losses, strict=True))
            norms = step_together(*pairs) if together else tuple(part.step(loss) for part, loss in pairs)
        ends.append([*norms, *mine, *parts[0].state().values(), *parts[1].state().values()])
    for one, other in zip(*ends, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("bad", [0, 1])
@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_of_two_losses_together_neither_moves_if_one_is_bad(bad: int, what: str) -> None:
    mine = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    parts = [Descent({name: each}, learning_rate=0.1) for name, each in zip("ab", mine, strict=True)]
    # the square root's slope at zero is infinite, its value is not
    losses = [((each.sqrt() if place == bad else each + 1) * 1.0).sum() for place, each in enumerate(mine)]
    if what == "loss":
        losses[bad] = losses[bad] + float("nan")
    with pytest.raises(LearningFault, match="the loss" if what == "loss" else f"gradient of {'ab'[bad]}"):
        step_together((parts[0], losses[0]), (parts[1], losses[1]))
    assert all(not each.any() for each in mine) and not parts[0].state() and not parts[1].state()


def test_an_empty_set_of_parameters_leaves_the_other_loss_to_itself() -> None:
    weight = nn.Parameter(torch.ones(2))
    none, some = Descent({}, learning_rate=0.1), Descent({"weight": weight}, learning_rate=0.1)
    slope = torch.tensor([3.0, 4.0])
    assert step_together((none, torch.tensor(1.0)), (some, (slope * weight).sum())) == (0.0, 5.0)
    assert step_together((some, (slope * weight).sum()), (none, torch.tensor(1.0))) == (5.0, 0.0)
