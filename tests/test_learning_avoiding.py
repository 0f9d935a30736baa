"""What the study of cloning counts and compares, held against arithmetic written out; nothing is trained for long."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from gymnasium import spaces

from benchmarks.learning import _avoiding_page, avoiding
from benchmarks.learning._demonstrated import Shown, demonstrations, told_likelihood
from latentpg.data import episode_rows
from latentpg.estimators import Exact
from latentpg.evaluation import action_scale_of
from latentpg.imitation import Cloner, VariationalBound, guide_terms
from latentpg.numerics.rng import seeded
from latentpg.policies import ChunkPolicy, GaussianLatent, PlainPolicy
from latentpg.programs import Span, conditionals


@pytest.fixture(scope="module")
def shown() -> Shown:
    return demonstrations(0)


def test_what_is_held_out_is_of_every_mode_and_was_not_learnt_from(shown: Shown) -> None:
    assert shown.train.mode is not None and shown.test.mode is not None
    assert torch.bincount(shown.train.mode).tolist() == [4] * 24
    assert torch.bincount(shown.test.mode).tolist() == [2] * 24
    last = shown.train.obs[shown.train.starts + shown.train.lengths - 1]
    other = shown.test.obs[shown.test.starts + shown.test.lengths - 1]
    assert float(torch.cdist(last.double(), other.double()).min()) > 0


def told() -> avoiding.ToldMode:
    with seeded(0):
        inner = PlainPolicy(spaces.Box(-1, 1, (28,)), spaces.Box(-1, 1, (2,)), hidden=(4,))
    return avoiding.ToldMode(inner)


def test_a_policy_that_was_told_the_mode_has_it_for_its_latent(shown: Shown) -> None:
    """The log-likelihood of an episode is the mean over 24 modes of the densities of all of its steps."""
    policy, rows = told(), episode_rows(shown.test).take(torch.tensor([3, 40]))
    with torch.no_grad():
        particles = Exact().propose(policy, rows.obs, rows.action)
        found = Exact().estimate(policy, rows.obs, rows.action, particles).log_prob
        each = []
        for mode in range(24):
            indicator = torch.zeros(*rows.obs.mask.shape, 24)
            indicator[..., mode] = 1
            seen = Span(torch.cat([rows.obs.obs, indicator], -1), rows.obs.mask)
            each.append(policy.policy.log_pi(seen, rows.action).double())
    assert torch.allclose(found.double(), torch.stack(each).logsumexp(0) - math.log(24), rtol=1e-5)


def test_the_absolute_error_is_written_as_it_is_often_used() -> None:
    """Row 0 has 2 of 3 steps, row 1 all: the mean of |a - mean| over those steps' entries, plus 10 KL."""
    with seeded(1):
        policy = ChunkPolicy(
            spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), horizon=3, latent=GaussianLatent(2, "standard")
        )
        mask = torch.tensor([[True, True, False], [True, True, True]])
        obs, action = Span(torch.randn(2, 3, 2), mask), torch.randn(2, 3, 2)
    with seeded(2):
        losses = avoiding.AbsoluteError(10.0).losses(policy, obs, action)
    with seeded(2), torch.no_grad():
        terms = guide_terms(policy, obs, action, num_particles=1)
        mean = conditionals(policy, obs, terms.drawn.latents)["action"].mean[0]
    error = [(action[0, :2] - mean[0, :2]).abs().sum() / 4, (action[1] - mean[1]).abs().sum() / 6]
    expected = torch.stack(error) + 10 * terms.kl.sum(-1)[0]
    assert torch.allclose(losses.model.detach(), expected, atol=1e-5)
    assert losses.guide is losses.model


def test_likelihoods_are_in_the_units_of_the_environment(shown: Shown) -> None:
    """A decoder whose mean is 0 and sigma 1 has the normal density of every action, less the scale's logarithm."""
    policy = told()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    found = told_likelihood(policy, shown, 0, span="episode")
    scale = action_scale_of(shown.spaces[1])
    assert scale is not None and found["kind"] == "exact"
    standard = -0.5 * math.log(2 * math.pi) - 0.5 * shown.test.action.double().square()
    expected = float(standard.mean()) - float(scale.log().mean())
    assert found["per_dimension"][0] == pytest.approx(expected, abs=1e-3)
    assert found["dimensions"] == shown.test.action.numel()


def test_a_prior_is_matched_where_the_study_says_so(shown: Shown) -> None:
    policy = avoiding._episode_policy(shown, 0, avoiding.NUM_EPISODES)
    options: Any = avoiding.CELLS["episode-matched"].keywords["options"]  # type: ignore[attr-defined]
    assert options.match_prior_every == 12 and options.num_epochs * 96 // options.batch_size == 4000
    clean: Any = avoiding.CELLS["episode-clean"].keywords["options"]  # type: ignore[attr-defined]
    assert clean == replace(options, observation_noise=0.0)
    rows = shown.episodes
    cloner = Cloner(policy, rows, objective=VariationalBound(), options=options, seed=0)
    assert not [name for name in cloner.model.names if name.startswith("prior.")]


def run(success: float, entropy: float | None, **more: Any) -> dict[str, Any]:  # noqa: ANN401 (of any kind)
    return {
        "behaviour": {
            "success": [success, success, success],
            "entropy": [entropy, entropy, entropy],
            "coverage": 0.5,
        },
        "likelihood": {"kind": "lower bound", "per_dimension": [4.5, 4.4, 4.6]},
        "fit_cpu_seconds": 80.0,
        **more,
    }


def test_tables_say_what_was_found() -> None:
    matched = {0: run(0.9, 0.8, kl=4.0, neighbours=1.0), 1: run(1.0, 0.9, kl=5.0, neighbours=1.0)}
    lines = _avoiding_page.table({"episode-matched": matched, "plain": {0: run(0.0, None)}})
    assert lines[2] == (
        "| z an episode, matched prior | 2 | 0.950 (0.900 to 1.000) | 0.850 (0.800 to 0.900) | 12.0 | "
        "≥ 4.500 (4.500 to 4.500) | 80 |"
    )
    assert "| Gaussian, no latent | 0 | 0.000 (0.000 to 0.000) | no success |" in lines
    assert lines[-1] == "| z an episode, matched prior | 4.50 (4.00 to 5.00) | 1.000 (1.000 to 1.000) |  |  |"


def test_every_contender_has_its_cell() -> None:
    assert {each.cell for each in _avoiding_page.CONTENDERS} == set(avoiding.CELLS)
    assert set(_avoiding_page.SHOWN) <= set(avoiding.CELLS)
    names = [each.name for each in _avoiding_page.CONTENDERS]
    assert len(set(names)) == len(names)
