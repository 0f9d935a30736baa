"""Stored particles stay, fresh ones are drawn anew by the policy that acted, and blocks change nothing."""

import copy
from typing import Any

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import ConditionalIS, Estimator, Exact, Guide, PosteriorIS, SplitIS
from latentpg.learners import Fresh, Rows, Stored, make_scorer
from latentpg.learners import scoring as scoring_module
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import Span, act, model_parameters

SEEN, ACTS = spaces.Box(-1, 1, (3,)), spaces.Discrete(4)
B = 24
ALL = torch.arange(B)
ESTIMATORS: dict[str, Estimator] = {
    "exact": Exact(),
    "conditional": ConditionalIS(5),
    "conditional-guide": ConditionalIS(5, Guide()),
    "posterior": PosteriorIS(5),
    "split": SplitIS(3, 2),
}


def acted_rows() -> tuple[MixturePolicy, Rows]:
    policy = MixturePolicy(SEEN, ACTS, num_components=3, hidden=(8,)).double()
    obs = torch.randn(B, 3).double()
    acted = act(policy, obs)
    return policy, Rows(obs, acted.action, acted.latents)


def move(policy: MixturePolicy, by: float = 0.3) -> None:
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(by * torch.randn_like(parameter))


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("use", ["stored", "fresh"])
def test_the_ratio_is_one_before_any_move(name: str, use: Any) -> None:  # noqa: ANN401
    policy, rows = acted_rows()
    scorer = make_scorer(policy, ESTIMATORS[name], rows, use=use)
    scored = scorer.score(policy, ALL)
    assert torch.equal(scored.log_ratio, torch.zeros(B).double())
    part = torch.tensor([7, 3, 20])
    torch.testing.assert_close(scorer.score(policy, part).log_ratio, torch.zeros(3).double(), rtol=0, atol=1e-12)
    assert scored.log_prob.requires_grad and not scored.old_log_prob.requires_grad


@pytest.mark.parametrize("name", ESTIMATORS)
def test_stored_particles_serve_all_epochs(name: str) -> None:
    policy, rows = acted_rows()
    scorer = make_scorer(policy, ESTIMATORS[name], rows, use="stored")
    assert isinstance(scorer, Stored)
    at_first = ESTIMATORS[name].estimate(policy, rows.obs, rows.action, scorer.particles).log_prob.detach()
    assert torch.equal(scorer.old_log_prob, at_first)
    before = scorer.score(policy, ALL)
    move(policy)
    after = scorer.score(policy, ALL)
    assert torch.equal(after.particles.latents["z"], before.particles.latents["z"])
    assert torch.equal(after.particles.log_proposal, before.particles.log_proposal)
    assert torch.equal(after.old_log_prob, at_first)
    again = ESTIMATORS[name].estimate(policy, rows.obs, rows.action, scorer.particles).log_prob
    assert torch.equal(after.log_prob, again) and not torch.equal(after.log_prob, before.log_prob)
    part = torch.tensor([5, 1])
    mine = scorer.score(policy, part)
    assert torch.equal(mine.particles.latents["z"], scorer.particles.latents["z"][:, part])
    torch.testing.assert_close(mine.log_ratio, after.log_ratio[part], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["conditional-guide", "posterior"])
def test_fresh_particles_are_new_and_the_behaviours_own(name: str) -> None:
    policy, rows = acted_rows()
    behaviour = copy.deepcopy(policy)
    scorer = make_scorer(policy, ESTIMATORS[name], rows, use="fresh")
    assert isinstance(scorer, Fresh)
    first, second = scorer.score(policy, ALL), scorer.score(policy, ALL)
    assert not torch.equal(first.particles.latents["z"], second.particles.latents["z"])
    with seeded(0):
        before = scorer.score(policy, ALL)
    move(policy, 2.0)
    with seeded(0):
        after = scorer.score(policy, ALL)
    with seeded(0):
        expected = ESTIMATORS[name].propose(behaviour, rows.obs, rows.action, rows.latents)
    for particles in (before.particles, after.particles):
        assert torch.equal(particles.latents["z"], expected.latents["z"])
        assert torch.equal(particles.log_proposal, expected.log_proposal)
    assert torch.equal(before.old_log_prob, after.old_log_prob)
    assert not torch.equal(before.log_prob, after.log_prob)
    assert all(p.grad is None for p in model_parameters(scorer.behaviour))


@pytest.mark.parametrize("name", ESTIMATORS)
def test_blocks_are_one_piece(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Draws differ by the stream's order; everything computed from them does not."""
    policy, rows = acted_rows()
    whole = scoring_module.store(policy, ESTIMATORS[name], rows)
    monkeypatch.setattr(scoring_module, "BLOCK", 16)
    parts = scoring_module.store(policy, ESTIMATORS[name], rows)
    assert parts.particles.num_rows == B and parts.particles.retained is whole.particles.retained
    assert parts.particles.num_particles == whole.particles.num_particles
    again = ESTIMATORS[name].estimate(policy, rows.obs, rows.action, parts.particles).log_prob
    torch.testing.assert_close(parts.old_log_prob, again.detach(), rtol=0, atol=1e-12)
    if name == "exact":
        torch.testing.assert_close(parts.old_log_prob, whole.old_log_prob, rtol=0, atol=1e-12)
        assert torch.equal(parts.particles.latents["z"], whole.particles.latents["z"])
    if whole.particles.retained:
        assert torch.equal(parts.particles.latents["z"][0], rows.latents["z"])


def test_rows_are_taken_of_spans_too() -> None:
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    span = Span(torch.arange(6.0).reshape(3, 2, 1), mask)
    rows = Rows(span, torch.arange(6).reshape(3, 2), {"z": torch.tensor([4, 5, 6])})
    mine = rows.take(torch.tensor([2, 0]))
    assert rows.size == 3 and mine.size == 2 and isinstance(mine.obs, Span)
    assert mine.obs.obs.flatten().tolist() == [4, 5, 0, 1]
    assert mine.action.tolist() == [[4, 5], [0, 1]] and mine.latents["z"].tolist() == [6, 4]


@pytest.mark.production
def test_another_use_of_particles_is_refused() -> None:
    policy, rows = acted_rows()
    use: Any = "kept"
    with pytest.raises(OptionError, match=r"`particles`\n  expected: stored or fresh\n  got:      'kept'"):
        make_scorer(policy, Exact(), rows, use=use)


def test_nothing_is_moved_by_scoring() -> None:
    policy, rows = acted_rows()
    before: list[Tensor] = [p.detach().clone() for p in policy.parameters()]
    for use in ("stored", "fresh"):
        make_scorer(policy, ConditionalIS(3), rows, use=use).score(policy, ALL)
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))
