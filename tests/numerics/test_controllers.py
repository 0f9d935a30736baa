"""The adaptive coefficient of PPO's KL penalty: the paper's rule, its limits, and its mistakes."""

import dataclasses

import pytest

from latentpg.errors import OptionError
from latentpg.numerics.controllers import AdaptiveBeta


def test_the_rule_golden() -> None:
    """Target 6, tolerance 3/2: up beyond 9, down below 4, at the bounds and between them nothing."""
    controller = AdaptiveBeta(target=6)
    kls, expected = (0.0, 3.99, 4.0, 6.0, 9.0, 9.01, 100.0), [4.0, 4.0, 8.0, 8.0, 8.0, 16.0, 16.0]
    assert [controller.next(8.0, kl=kl) for kl in kls] == expected
    assert controller.next(8, kl=-0.5) == 4.0  # a noisy estimate


def test_other_steps() -> None:
    controller = AdaptiveBeta(target=1, tolerance=2, factor=10)
    assert [controller.next(5.0, kl=kl) for kl in (0.4, 0.6, 1.9, 2.1)] == [0.5, 5.0, 5.0, 50.0]


def test_it_stays_within_its_bounds() -> None:
    """And can always come back from them."""
    controller = AdaptiveBeta(target=1, smallest=0.5, largest=4)
    beta, seen = 1.0, []
    for kl in (0.0, 0.0, 0.0, 9.0, 9.0, 9.0, 9.0):
        beta = controller.next(beta, kl=kl)
        seen.append(beta)
    assert seen == [0.5, 0.5, 0.5, 1.0, 2.0, 4.0, 4.0]


def test_it_keeps_no_state() -> None:
    controller = AdaptiveBeta(target=1)
    assert controller.next(1.0, kl=9.0) == controller.next(1.0, kl=9.0) == 2.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        controller.target = 2  # type: ignore[misc]


@pytest.mark.parametrize("kl", [float("nan"), float("inf"), -float("inf")])
def test_a_divergence_that_is_not_finite_is_an_error(kl: float) -> None:
    with pytest.raises(OptionError, match=r"`kl`[\s\S]*finite[\s\S]*diverged"):
        AdaptiveBeta(target=1).next(1.0, kl=kl)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan"), float("inf")])
def test_the_coefficient_is_positive(beta: float) -> None:
    with pytest.raises(OptionError, match="`beta`"):
        AdaptiveBeta(target=1).next(beta, kl=1.0)


@pytest.mark.parametrize("name", ["target", "smallest", "largest", "tolerance", "factor"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_options_are_checked(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=rf"`{name}`"):
        dataclasses.replace(AdaptiveBeta(target=1), **{name: value})


def test_options_that_would_not_steer() -> None:
    for name in ("tolerance", "factor"):
        with pytest.raises(OptionError, match=rf"`{name}`[\s\S]*above 1"):
            dataclasses.replace(AdaptiveBeta(target=1), **{name: 1.0})
    with pytest.raises(OptionError, match=r"smallest <= largest[\s\S]*2 and 1"):
        AdaptiveBeta(target=1, smallest=2, largest=1)
