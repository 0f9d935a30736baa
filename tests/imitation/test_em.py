"""EM: a likelihood that never falls, over a thousand models, and what makes it so."""

import itertools
import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from latentpg.errors import EstimatorError, OptionError, SiteError
from latentpg.estimators import Exact
from latentpg.imitation import (
    Ascent,
    ClosedFormMaximizer,
    EMFit,
    ExpectationMaximization,
    FitRows,
    GaussianMixture,
    em_step,
    fit_em,
    point_rows,
)
from latentpg.numerics.rng import seeded
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.programs import Observations
from tests.imitation.small import gaussian, made_policy, observed, tabular, whole_episodes

ROUNDING = 1e-11
"""What a mean of a few float64 log-likelihoods of order one may lose without having fallen."""


def falls(options: ExpectationMaximization, *, num_models: int) -> int:
    """Count the models, of all sizes and scales, whose likelihood fell in an EM step."""
    fallen = 0
    for seed in range(num_models):
        with seeded(seed):
            latents, actions = (int(n) for n in torch.randint(2, 5, (2,)))
            scale = 4 * float(torch.rand(()))
            policy = TabularLatentPolicy.random(num_states=1, num_latents=latents, num_actions=actions, scale=scale)
            action = torch.randint(actions, (6,))
        before = float(policy.log_pi().detach()[0, action].mean())
        taken = em_step(policy, FitRows(torch.zeros(6, dtype=torch.int64), action, torch.arange(6)), options=options)
        assert taken.log_prob == pytest.approx(before)
        fallen += float(policy.log_pi().detach()[0, action].mean()) < before - ROUNDING
    return fallen


@pytest.mark.parametrize("num_models", [150, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_likelihood_never_falls_over_many_models(num_models: int) -> None:
    """A first step of 8 units, too long for most: only the rule of acceptance keeps the likelihood from falling.

    A thousand mixtures at once are in test_density.py, for the closed form.
    """
    assert falls(ExpectationMaximization(1, initial_rate=8.0), num_models=num_models) == 0


def test_without_backtracking_it_falls(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test of the test above: the first 60 of the same models with every step accepted."""
    monkeypatch.setattr(Ascent, "accepts", staticmethod(lambda before, after, promised: True))
    assert falls(ExpectationMaximization(1, initial_rate=8.0), num_models=60) > 10


def test_the_gain_is_at_least_that_of_the_expected_complete_likelihood() -> None:
    policy, rows = tabular()
    options = ExpectationMaximization(5)
    ascent = options.ascent(policy)
    steps = [em_step(policy, rows, options=options, ascent=ascent) for _ in range(6)]
    for before, after in itertools.pairwise(steps):
        assert before.gain > 0 and before.num_moves >= 1 and not before.closed_form
        assert after.log_prob - before.log_prob >= before.gain - ROUNDING


def test_it_comes_to_the_maximum_of_a_table() -> None:
    """Three latents can make any law of four actions, so the maximum is minus the entropy of what was seen."""
    policy, rows = tabular(3, rows=40)
    counts = torch.zeros(2, 4, dtype=torch.float64).index_put_(
        (observed(rows), rows.action), torch.ones(40, dtype=torch.float64), accumulate=True
    )
    share = counts / counts.sum(1, keepdim=True)
    best = float((counts * share.clamp_min(1e-300).log()).sum() / 40)
    found = fit_em(policy, rows, options=ExpectationMaximization(20), num_steps=200, tolerance=1e-9)
    assert found.log_prob == pytest.approx(best, abs=1e-3)
    assert found.log_prob <= best + 1e-12
    assert len(found.trace) == len(found.steps) + 1


def test_networks_and_whole_episodes_climb_too() -> None:
    policy, rows = made_policy("mixture"), whole_episodes()
    found = fit_em(policy, rows, num_steps=8, tolerance=-math.inf)
    assert isinstance(found, EMFit) and not found.converged
    assert all(after >= before - ROUNDING for before, after in itertools.pairwise(found.trace))
    assert found.log_prob > found.trace[0] + 1.0
    particles = Exact().propose(policy, rows.obs, rows.action)
    exact = Exact().estimate(policy, rows.obs, rows.action, particles).log_prob.mean()
    assert found.log_prob == pytest.approx(float(exact.detach()))


def test_it_says_when_it_has_settled() -> None:
    policy, rows = tabular()
    found = fit_em(policy, rows, num_steps=500, tolerance=1e-4)
    assert found.converged and len(found.steps) < 500
    assert found.trace[-2] - found.trace[-3] <= 1e-4


def test_a_step_that_no_halving_mends_is_not_taken() -> None:
    x = nn.Parameter(torch.tensor([0.0], dtype=torch.float64))
    ascent = Ascent({"x": x}, rate=1.0, max_halvings=3)
    # the slope says up, but every point away from zero lies below it
    moved = ascent.climb(lambda: x.sum() - 100 * x.detach().abs().sum())
    assert not moved.moved and moved.halvings == 4 and float(x.detach()) == 0.0
    nothing = ascent.climb(lambda: (x * 0.0).sum())
    assert not nothing.moved and nothing.halvings == 0


def test_a_value_that_is_no_number_is_halved_away() -> None:
    """The logarithm's domain ends at zero; a step of 8 leaves it, one of 0.5 does not."""
    x = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))
    found = Ascent({"x": x}, rate=8.0).climb(lambda: (x.log() - 2 * x).sum())
    assert found.moved and found.after > found.before and 0 < float(x.detach()) < 1


def test_an_ascent_goes_on_where_it_was() -> None:
    def climbs(first: int, second: int) -> float:
        x = nn.Parameter(torch.tensor([3.0, -1.0], dtype=torch.float64))

        def value() -> Tensor:
            return -(x**2 * torch.tensor([1.0, 30.0])).sum()

        ascent = Ascent({"x": x}, rate=0.7)
        for _ in range(first):
            ascent.climb(value)
        later = Ascent({"x": x}, rate=99.0)
        later.restore(ascent.state())
        for _ in range(second):
            later.climb(value)
        return float(x.detach().sum())

    assert climbs(4, 4) == climbs(8, 0) != climbs(4, 0)


class Wrong(TabularLatentPolicy):
    """A table whose closed form is none."""

    def maximize(self, obs: Observations, action: Tensor, responsibilities: Tensor) -> None:
        self.decoder_logits.copy_(-5 * self.decoder_logits - 3.0 * torch.arange(4))


def test_a_closed_form_that_lowers_its_own_measure_is_refused_and_undone() -> None:
    made, rows = tabular()
    assert isinstance(made, TabularLatentPolicy)
    policy = Wrong(made.prior_logits, made.decoder_logits)
    assert isinstance(policy, ClosedFormMaximizer)
    with pytest.raises(EstimatorError, match=r"lowered the expected complete log-likelihood[\s\S]*as they were"):
        em_step(policy, rows)
    assert torch.equal(policy.decoder_logits, made.decoder_logits)


def test_a_row_that_no_latent_can_produce_is_told() -> None:
    policy = TabularLatentPolicy(torch.zeros(1, 2), torch.tensor([[[0.0, -torch.inf], [0.0, -torch.inf]]]))
    rows = FitRows(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), torch.arange(2))
    with pytest.raises(EstimatorError, match="no latent can produce"):
        em_step(policy, rows)


def test_an_impossible_component_has_no_share() -> None:
    """Of two components one cannot make the action: Q is finite, and so is its gradient."""
    policy = TabularLatentPolicy(torch.zeros(1, 2), torch.tensor([[[0.0, -torch.inf], [0.0, 1.0]]]))
    rows = FitRows(torch.zeros(2, dtype=torch.int64), torch.tensor([0, 1]), torch.arange(2))
    taken = em_step(policy, rows)
    assert math.isfinite(taken.expected_before)


@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: ExpectationMaximization(0), OptionError, "`num_gradient_steps`"),
        (lambda: ExpectationMaximization(max_halvings=-1), OptionError, "`max_halvings`"),
        (lambda: ExpectationMaximization(initial_rate=0.0), OptionError, "`initial_rate`"),
        (lambda: fit_em(*tabular(), num_steps=0), OptionError, "`num_steps`"),
        (lambda: em_step(*gaussian()), SiteError, "is continuous"),
    ],
)
def test_what_cannot_be_done_is_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()


def test_a_closed_form_needs_no_step_size() -> None:
    points = torch.tensor([[-1.0], [-1.2], [1.0], [1.4]], dtype=torch.float64)
    mixture = GaussianMixture(torch.tensor([[-0.5], [0.5]], dtype=torch.float64))
    taken = em_step(mixture, point_rows(points))
    assert taken.closed_form and (taken.num_moves, taken.num_halvings) == (0, 0) and taken.gain > 0
