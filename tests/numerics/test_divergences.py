"""k1, k2 and k3: the table of their module's docstring, by exact sums over the actions of softmax policies."""

from math import log

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from latentpg.errors import ShapeError
from latentpg.numerics.divergences import k1, k2, k3, kl_old_new

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


@given(tables, tables)
def test_from_the_old_policys_actions(logits: Tensor, old: Tensor) -> None:
    """KL(old || new) in value and gradient, -E_old[∇log pi_new], at any new policy."""
    logits.requires_grad_()
    log_new, log_old = logits.log_softmax(-1), old.log_softmax(-1)
    mean = (log_old.exp() * kl_old_new(log_old.unsqueeze(0), log_new.unsqueeze(0))).sum()
    exact = divergence(log_old, log_new)
    assert off_by(mean, exact) < 1e3 * EXACT
    (value,) = torch.autograd.grad(mean, logits, retain_graph=True)
    for expected in (exact, -(log_old.exp() * log_new).sum()):
        assert off_by(value, torch.autograd.grad(expected, logits, retain_graph=True)[0]) < 1e3 * EXACT


def test_kl_old_new_golden() -> None:
    """Old (1/2, 1/2), new (1/4, 3/4): 1/2 - 1 + log 2 and 3/2 - 1 - log 3/2, their mean (log 4/3)/2; slopes ρ - 1."""
    old, new = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    each = [log(2) - 0.5, 0.5 - log(1.5)]
    assert kl_old_new(old.unsqueeze(0), new.unsqueeze(0)).tolist() == pytest.approx(each)
    at = new.clone().requires_grad_()
    mean = kl_old_new(old, at)
    assert float(mean.detach()) == pytest.approx(log(4 / 3) / 2)
    mean.backward()
    assert at.grad is not None and at.grad.tolist() == pytest.approx([-0.25, 0.25])


def test_where_new_is_old_no_sample_of_kl_old_new_has_a_gradient() -> None:
    """Not only their mean: ρ - 1 = 0; and none goes to the old log-probabilities."""
    new, old = torch.tensor([[-1.0], [-2.0]], requires_grad=True), torch.tensor([[-1.0], [-2.0]], requires_grad=True)
    kl_old_new(old, new).sum().backward()
    assert new.grad is not None and new.grad.tolist() == [[0.0], [0.0]]
    assert old.grad is None


@pytest.mark.production
def test_shapes_of_kl_old_new() -> None:
    with pytest.raises(ShapeError, match=r"`log_prob_new`[\s\S]*\[2, 3\]"):
        kl_old_new(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ShapeError, match=r"`log_prob_old`[\s\S]*M >= 1"):
        kl_old_new(torch.zeros(0, 3), torch.zeros(0, 3))
