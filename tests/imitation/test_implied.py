"""The observation scale that a weighted loss implies, against the loss itself."""

import math
from collections.abc import Callable

import pytest
import torch
from torch.distributions import Laplace, Normal

from latentpg.errors import OptionError
from latentpg.imitation import effective_scale, implied_scale


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("error", ["l1", "l2"])
def test_the_loss_is_the_negative_bound_of_the_noise_it_implies(error: str, reduction: str) -> None:
    """Up to a factor and a constant: differences between any two reconstructions and divergences are proportional."""
    weight, size = 3.0, 7
    torch.manual_seed(0)
    data, first, second = torch.randn(3, size, dtype=torch.float64)
    kl = (0.4, 1.7)
    found = implied_scale(error, kl_weight=weight, dimensions=size, reduction=reduction)
    noise = (Laplace if error == "l1" else Normal)(torch.zeros(size, dtype=torch.float64), found.scale)
    losses, bounds = [], []
    for guess, divergence in zip((first, second), kl, strict=True):
        away = (data - guess).abs() ** (1 if error == "l1" else 2)
        losses.append(float(away.sum() if reduction == "sum" else away.mean()) + weight * divergence)
        bounds.append(float(noise.log_prob(data - guess).sum()) - divergence)
    assert losses[1] - losses[0] == pytest.approx(-weight * (bounds[1] - bounds[0]))
    assert found.std == pytest.approx(float(noise.stddev[0]))


def test_ten_times_the_divergence_is_shown_for_what_it_is() -> None:
    """The mean of 100 x 2 absolute errors and 10 KL: noise 2,000 times as wide as a unit of the error."""
    found = implied_scale("l1", kl_weight=10.0, dimensions=200)
    assert (found.family, found.scale) == ("laplace", 2000.0)
    assert found.std == pytest.approx(2000 * math.sqrt(2))
    assert "l1 (mean of 200) + 10 KL" in found.lines()[0] and "b = 2000" in found.lines()[0]
    assert "sigma = 1," in implied_scale("l2", kl_weight=4.0, error_weight=2.0, reduction="sum").lines()[0]


def test_beta_widens_the_scale_by_its_root() -> None:
    """Both weighings have the same ratio of error to divergence."""
    sigma, beta = 0.3, 5.0
    wide = effective_scale(sigma, beta=beta)
    assert (1 / (2 * sigma**2)) / beta == pytest.approx(1 / (2 * wide**2))
    assert implied_scale("l2", kl_weight=2 * sigma**2 * beta, reduction="sum").scale == pytest.approx(wide)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: implied_scale("l3", kl_weight=1.0), "`error`"),
        (lambda: implied_scale("l1", kl_weight=0.0), "`kl_weight`"),
        (lambda: implied_scale("l1", kl_weight=1.0, error_weight=-1.0), "`error_weight`"),
        (lambda: implied_scale("l1", kl_weight=1.0, reduction="max"), "`reduction`"),
        (lambda: implied_scale("l1", kl_weight=1.0, dimensions=0), "`dimensions`"),
        (lambda: effective_scale(0.0, beta=1.0), "`scale` and `beta`"),
    ],
)
def test_choices_out_of_range_are_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        call()
