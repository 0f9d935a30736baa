"""k1, k2 and k3: the table of their module's docstring, by exact sums over the actions of softmax policies."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from latentpg.numerics.divergences import k1, k2, k3

EXACT = 1e-12
ESTIMATORS = {"k1": k1, "k2": k2, "k3": k3}

tables = hnp.arrays(float, 4, elements=st.floats(-3, 3, width=16)).map(torch.from_numpy)


def divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum()


def off_by(value: Tensor, expected: Tensor) -> float:
    return float((value - expected).detach().abs().max())


@given(tables, tables)
def test_values(logits: Tensor, reference: Tensor) -> None:
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    kl, log_ratio = divergence(log_pi, log_ref), log_pi - log_ref
    assert off_by((log_pi.exp() * k1(log_ratio)).sum(), kl) < EXACT
    assert off_by((log_pi.exp() * k3(log_ratio)).sum(), kl) < 1e3 * EXACT  # e^-x is up to e^9 here
    assert bool((k3(log_ratio) >= -EXACT).all()) and bool((k2(log_ratio) >= 0).all())


def test_k2_is_biased() -> None:
    log_pi, log_ref = torch.tensor([0.9, 0.1]).log(), torch.tensor([0.1, 0.9]).log()
    kl = float(divergence(log_pi, log_ref))
    assert abs(float((log_pi.exp() * k2(log_pi - log_ref)).sum()) - kl) > 0.1


@given(tables, tables)
def test_gradients_in_the_loss_without_a_ratio(logits: Tensor, reference: Tensor) -> None:
    """k1: zero; k2: that of KL(pi || ref); k3: that of KL(ref || pi). The samples are constants."""
    logits.requires_grad_()
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    chance, log_ratio = log_pi.exp().detach(), log_pi - log_ref
    forward, reverse = divergence(log_pi, log_ref), divergence(log_ref, log_pi)
    expected = {
        "k1": torch.zeros_like(logits),
        "k2": torch.autograd.grad(forward, logits, retain_graph=True)[0],
        "k3": torch.autograd.grad(reverse, logits, retain_graph=True)[0],
    }
    for name, estimator in ESTIMATORS.items():
        (value,) = torch.autograd.grad((chance * estimator(log_ratio)).sum(), logits, retain_graph=True)
        assert off_by(value, expected[name]) < 1e3 * EXACT, name


@given(tables, tables)
def test_gradients_times_a_differentiated_ratio(logits: Tensor, reference: Tensor) -> None:
    """Both k1 and k3 have that of KL(pi || ref) then; the ratio is 1 in value and carries grad log pi."""
    logits.requires_grad_()
    log_pi, log_ref = logits.log_softmax(-1), reference.log_softmax(-1)
    chance, ratio = log_pi.exp().detach(), (log_pi - log_pi.detach()).exp()
    (expected,) = torch.autograd.grad(divergence(log_pi, log_ref), logits, retain_graph=True)
    for estimator in (k1, k3):
        loss = (chance * ratio * estimator(log_pi - log_ref)).sum()
        (value,) = torch.autograd.grad(loss, logits, retain_graph=True)
        assert off_by(value, expected) < 1e3 * EXACT


def test_k2_times_a_differentiated_ratio_is_something_else() -> None:
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64, requires_grad=True)
    log_pi, log_ref = logits.log_softmax(-1), torch.tensor([-1.0, 0.5, 0.0], dtype=torch.float64).log_softmax(-1)
    ratio = (log_pi - log_pi.detach()).exp()
    loss = (log_pi.exp().detach() * ratio * k2(log_pi - log_ref)).sum()
    (value,) = torch.autograd.grad(loss, logits, retain_graph=True)
    for other in (divergence(log_pi, log_ref), divergence(log_ref, log_pi), 0 * log_pi.sum()):
        (expected,) = torch.autograd.grad(other, logits, retain_graph=True)
        assert off_by(value, expected) > 0.1


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_estimator_sees_a_difference_where_there_is_none(name: str) -> None:
    assert ESTIMATORS[name](torch.zeros(2, 3)).tolist() == torch.zeros(2, 3).tolist()


def test_k3_keeps_its_digits_near_zero() -> None:
    """x^2 / 2 to second order, where e^-x - 1 + x in so many words would be lost to rounding."""
    small = torch.tensor([1e-5], dtype=torch.float64)
    assert float(k3(small)) == pytest.approx(5e-11, rel=1e-4)
