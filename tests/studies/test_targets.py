"""What targets pose, against formulas written out from the tables, and what a cell measures of them."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from torch import Tensor

from latentpg.errors import OptionError
from latentpg.estimators import (
    ConditionalIS,
    Estimate,
    Estimator,
    Exact,
    Guide,
    JointScore,
    Particles,
    PosteriorIS,
    Prior,
    Proposal,
)
from latentpg.numerics.rng import seeded
from latentpg.oracles import TabularLatentPolicy
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.oracles.replay import replay
from latentpg.programs import Categorical, LatentPolicy, Latents, Observations, draw, model_parameters
from latentpg.studies import Cell, Line, Problem
from latentpg.studies.measures import measure_cell, once, pose
from latentpg.studies.targets import (
    GRPO,
    KL,
    MODEL_TARGETS,
    EntropyGradient,
    Gradient,
    PolicyGradient,
    PPOClip,
    Quantity,
    Ratio,
    RatioGradient,
    Target,
    Value,
    log_ratio,
    moved,
    rewards,
)
from latentpg.studies.toys import RandomToys

EXACT = 1e-10
"""Rounding: what float64 sums of some hundred terms of order one may be off by."""

DRIFT = 0.6
"""So far that ratios leave the clip's interval on both sides."""

SOURCE = RandomToys(num_rows=9, num_latents=3, num_actions=3)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return SOURCE.build(0)


@pytest.fixture(scope="module")
def two_rows() -> Problem:
    return replace(SOURCE, num_rows=2).build(5)


def tables(policy: LatentPolicy) -> TabularLatentPolicy:
    assert isinstance(policy, TabularLatentPolicy)
    return policy


def log_pi(policy: LatentPolicy, problem: Problem) -> Tensor:
    assert isinstance(problem.obs, Tensor)
    return tables(policy).log_pi()[problem.obs, problem.action]


def theta_phi(policy: LatentPolicy) -> list[Tensor]:
    """Return the tables whose entries a gradient is taken in, phi first."""
    return [tables(policy).prior_logits, tables(policy).decoder_logits]


def flat_gradient(value: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    parts = torch.autograd.grad(value, parameters, allow_unused=True, materialize_grads=True, retain_graph=True)
    return torch.cat([part.flatten() for part in parts])


def mean(rows: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(rows)).sum() / len(rows)


def clipped(ratio: Tensor, advantage: float, epsilon: float) -> Tensor:
    """PPO's row in words: gains stop at the clip, losses do not."""
    at, most, least = float(ratio.detach()), 1 + epsilon, 1 - epsilon
    stopped = at > most if advantage > 0 else at < least
    return torch.tensor(advantage * (most if advantage > 0 else least)).double() if stopped else advantage * ratio


def ppo_by_hand(new: Tensor, old: Tensor, reward: list[float], *, epsilon: float, offset: float) -> Tensor:
    ratio = new.exp() / old.exp()
    return mean([clipped(each, r + offset, epsilon) for each, r in zip(ratio, reward, strict=True)])


def grpo_by_hand(new: Tensor, old: Tensor, reward: list[float], *, size: int, epsilon: float, beta: float) -> Tensor:
    rows = []
    for start in range(0, len(reward) - size + 1, size):
        group = reward[start : start + size]
        centre, spread = statistics.fmean(group), statistics.stdev(group) + 1e-6
        for row in range(start, start + size):
            back = old[row].exp() / new[row].exp()  # pi_ref / pi of the penalty
            gain = clipped(new[row].exp() / old[row].exp(), (reward[row] - centre) / spread, epsilon)
            rows.append(gain - beta * (back - back.log() - 1))
    return mean(rows)


Formula = Callable[[Tensor, Tensor, list[float]], Tensor]
"""Rows of log pi_new, rows of log pi_old (constant) and rewards in, a scalar out."""

VALUES: list[tuple[Target, Formula]] = [
    (Value(), lambda new, old, reward: mean(list(old))),
    (Ratio(DRIFT), lambda new, old, reward: mean([n.exp() / o.exp() for n, o in zip(new, old, strict=True)])),
    (KL("k1", DRIFT), lambda new, old, reward: mean(list(old)) - mean(list(new))),
    (KL("k2", DRIFT), lambda new, old, reward: ((new - old) ** 2).sum() / (2 * len(new))),
    (KL("k3", DRIFT), lambda new, old, reward: (new.exp() / old.exp() - 1 - new + old).sum() / len(new)),
]

GRADIENTS: list[tuple[Target, float, Formula]] = [
    (Gradient(), 0, lambda new, old, reward: mean(list(new))),
    (RatioGradient(DRIFT), DRIFT, lambda new, old, reward: (new.exp() / old.exp()).sum() / len(new)),
    (
        PolicyGradient(),
        0,
        lambda new, old, reward: mean([r * n for r, n in zip(reward, new, strict=True)]),
    ),
    (
        PolicyGradient(reward_offset=-2.5),
        0,
        lambda new, old, reward: mean([(r - 2.5) * n for r, n in zip(reward, new, strict=True)]),
    ),
    (PPOClip(DRIFT), DRIFT, lambda new, old, reward: ppo_by_hand(new, old, reward, epsilon=0.2, offset=0)),
    (
        PPOClip(DRIFT, epsilon=0.3, reward_offset=0.5),
        DRIFT,
        lambda new, old, reward: ppo_by_hand(new, old, reward, epsilon=0.3, offset=0.5),
    ),
    (
        GRPO(DRIFT, group_size=3, kl_coefficient=0.5),
        DRIFT,
        lambda new, old, reward: grpo_by_hand(new, old, reward, size=3, epsilon=0.2, beta=0.5),
    ),
    (  # two groups of four; the ninth row is left out
        GRPO(DRIFT, group_size=4),
        DRIFT,
        lambda new, old, reward: grpo_by_hand(new, old, reward, size=4, epsilon=0.2, beta=0.04),
    ),
    (EntropyGradient(), 0, lambda new, old, reward: -(old * new).sum() / len(new)),
    (EntropyGradient(value_particles=0), 0, lambda new, old, reward: -(old * new).sum() / len(new)),
]


def configured(part: object) -> str:
    return "" if callable(part) else repr(part)


@pytest.mark.parametrize(("target", "formula"), VALUES, ids=configured)
def test_a_value_is_the_formula_on_the_tables(problem: Problem, target: Target, formula: Formula) -> None:
    quantity = target.pose(problem, Exact())
    assert not quantity.parameters
    new, old = log_pi(quantity.policy, problem).detach(), log_pi(problem.policy, problem).detach()
    torch.testing.assert_close(once(quantity), formula(new, old, []).reshape(1), rtol=0, atol=EXACT)


@pytest.mark.parametrize(("target", "drift", "formula"), GRADIENTS, ids=configured)
def test_a_gradient_is_the_formula_on_the_tables(
    problem: Problem, target: Target, drift: float, formula: Formula
) -> None:
    quantity = target.pose(problem, Exact())
    policy = moved(problem, drift) if drift else problem.policy
    old, reward = log_pi(problem.policy, problem).detach(), rewards(problem).tolist()
    expected = flat_gradient(formula(log_pi(policy, problem), old, reward), theta_phi(policy))
    assert float(expected.norm()) > 0.01
    torch.testing.assert_close(once(quantity), expected, rtol=0, atol=EXACT)


def test_the_clip_bites_on_both_sides_of_these_rows(problem: Problem) -> None:
    """Otherwise the formulas of PPO and GRPO would hold for a surrogate without a clip."""
    ratio = (log_pi(moved(problem, DRIFT), problem) - log_pi(problem.policy, problem)).exp()
    for offset in (0, 0.5):
        gain = rewards(problem) + offset > 0
        assert bool(((ratio > 1.3) & gain).any()) and bool(((ratio > 1.3) & ~gain).any())
        assert bool(((ratio < 0.7) & ~gain).any())
    assert bool(((ratio > 0.8) & (ratio < 1.2)).any())


@pytest.mark.parametrize("kind", [Gradient, RatioGradient, PolicyGradient])
def test_theta_and_phi_are_parts_of_both(problem: Problem, kind: Callable[..., Target]) -> None:
    whole = once(kind().pose(problem, Exact()))
    phi = once(kind(parameters="phi").pose(problem, Exact()))
    theta = once(kind(parameters="theta").pose(problem, Exact()))
    assert (len(phi), len(theta)) == (9 * 3, 9 * 3 * 3)
    assert torch.equal(torch.cat([phi, theta]), whole)


@pytest.mark.parametrize("formula", ["k1", "k3"])
def test_the_divergence_is_that_of_the_new_policy_from_the_old(formula: Literal["k1", "k3"]) -> None:
    """Weighted by the old policy's chances of its actions, rows of k1 and of k3 sum to KL(old || new)."""
    start = replace(SOURCE, num_rows=1).build(1)
    old = tables(start.policy).log_pi()[0].detach()
    new = tables(moved(start, DRIFT)).log_pi()[0].detach()
    divergence, reverse = float((old.exp() * (old - new)).sum()), float((new.exp() * (new - old)).sum())
    assert abs(divergence - reverse) > 1e-3
    found = 0.0
    for action in range(3):
        row = replace(start, action=torch.tensor([action]))
        found += float(old[action].exp()) * float(once(KL(formula, DRIFT).pose(row, Exact())))
    assert found == pytest.approx(divergence, abs=EXACT)


def test_a_drift_is_noise_of_its_size_on_theta_and_phi_alone() -> None:
    many = replace(SOURCE, num_rows=800).build(0)
    noise = {
        drift: [a - b for a, b in zip(theta_phi(moved(many, drift)), theta_phi(many.policy), strict=True)]
        for drift in (0.5, 1.0)
    }
    for half, whole in zip(noise[0.5], noise[1.0], strict=True):
        torch.testing.assert_close(2 * half, whole)
    entries = torch.cat([part.detach().flatten() for part in noise[1.0]])
    assert abs(float(entries.mean())) < 4.5 / math.sqrt(len(entries))
    assert abs(float(entries.var()) - 1) < 4.5 * math.sqrt(2 / len(entries))
    assert torch.equal(tables(moved(many, 1.0)).guide_logits, tables(many.policy).guide_logits)


def test_rewards_are_standard_normal_one_a_row() -> None:
    many = replace(SOURCE, num_rows=4000).build(0)
    drawn = rewards(many)
    assert drawn.shape == (4000,) and drawn.dtype == torch.float64
    assert abs(float(drawn.mean())) < 4.5 / math.sqrt(4000)
    assert abs(float(drawn.var()) - 1) < 4.5 * math.sqrt(2 / 4000)


def test_every_estimator_is_asked_about_the_same_drift_and_rewards(problem: Problem) -> None:
    with seeded(1):
        first, reward = RatioGradient(0.2).pose(problem, Exact()), rewards(problem)
    with seeded(2):
        second, again = RatioGradient(0.2).pose(problem, PosteriorIS(3)), rewards(problem)
    elsewhere = replace(problem, seed=problem.seed + 1)
    third = RatioGradient(0.2).pose(elsewhere, Exact())
    for mine, same, other in zip(first.parameters, second.parameters, third.parameters, strict=True):
        assert torch.equal(mine, same) and not torch.equal(mine, other)
    assert torch.equal(reward, again) and not torch.equal(reward, rewards(elsewhere))


def test_posing_leaves_the_callers_random_stream_alone(problem: Problem) -> None:
    with seeded(7):
        expected = torch.rand(3)
    with seeded(7):
        GRPO(group_size=3).pose(problem, Exact())
        assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("estimator", [Exact(), PosteriorIS(2), ConditionalIS(3), JointScore()], ids=repr)
def test_without_drift_every_ratio_is_one(problem: Problem, estimator: Estimator) -> None:
    torch.testing.assert_close(once(Ratio(0.0).pose(problem, estimator)), torch.ones(1, dtype=torch.float64))
    for formula in ("k1", "k2", "k3"):
        found = once(KL(formula, 0.0).pose(problem, estimator))
        torch.testing.assert_close(found, torch.zeros(1, dtype=torch.float64))


@pytest.mark.parametrize("kind", [kind for kind in MODEL_TARGETS.values() if kind is not GRPO])
def test_the_policy_that_acted_is_not_moved(problem: Problem, kind: Callable[..., Target]) -> None:
    _check_not_moved(problem, kind())


def test_grpo_does_not_move_the_policy_that_acted(problem: Problem) -> None:
    _check_not_moved(problem, GRPO(group_size=3))


def _check_not_moved(problem: Problem, target: Target) -> None:
    before = [parameter.detach().clone() for parameter in tables(problem.policy).parameters()]
    quantity = target.pose(problem, ConditionalIS(2))
    once(quantity)
    after = list(tables(problem.policy).parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(parameter.grad is None for parameter in after)
    assert (quantity.policy is problem.policy) is not hasattr(target, "drift")
    own = {id(parameter) for parameter in model_parameters(quantity.policy)}
    assert all(id(parameter) in own for parameter in quantity.parameters)


@dataclass(frozen=True)
class Noted:
    """Conditional importance sampling that notes which policies proposed and estimated."""

    proposed: list[LatentPolicy]
    estimated: list[LatentPolicy]

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        self.proposed.append(policy)
        return ConditionalIS(2).propose(policy, obs, action, latents)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        self.estimated.append(policy)
        return ConditionalIS(2).estimate(policy, obs, action, particles)


@pytest.mark.parametrize("target", [Ratio(), RatioGradient(), KL(), PPOClip(), GRPO(group_size=3)], ids=repr)
def test_both_policies_are_estimated_on_what_the_acting_one_proposed(problem: Problem, target: Target) -> None:
    noted = Noted([], [])
    quantity = target.pose(problem, noted)
    once(quantity)
    assert [policy is problem.policy for policy in noted.proposed] == [True]
    assert [policy is problem.policy for policy in noted.estimated] == [True, False]
    assert noted.estimated[1] is quantity.policy


@dataclass(frozen=True, eq=False)
class Recording:
    """Rows of a problem with latents that are drawn from the exact posterior of each."""

    problem: Problem

    def rows(self, index: Tensor) -> Problem:
        whole, obs = self.problem, self.problem.obs
        assert isinstance(obs, Tensor)
        log_posterior = tables(whole.policy).log_posterior().detach()[obs, whole.action]
        latents = {"z": draw("recorded", Categorical(log_posterior[index]))}
        return replace(whole, obs=obs[index], action=whole.action[index], latents=latents)


def expected_ratio(problem: Problem, new: LatentPolicy, estimator: Estimator) -> Tensor:
    """Sum the ratio of each row over every outcome of the recorded latent and of the estimator's draws."""
    recording = Recording(problem)
    every = enumerate_draws(lambda row: log_ratio(recording.rows(row), new, estimator).exp(), num_rows=2)
    return every.expectation(every.result)


UNBIASED: list[Estimator] = [
    JointScore(),
    *(ConditionalIS(size, proposal) for size in (1, 2, 3) for proposal in (Prior(), Guide())),
]


@pytest.mark.parametrize("estimator", UNBIASED, ids=repr)
def test_a_retained_latent_makes_ratio_and_gradient_exact_in_expectation(
    two_rows: Problem, estimator: Estimator
) -> None:
    reference = RatioGradient(DRIFT).pose(two_rows, Exact())
    expected = expected_ratio(two_rows, reference.policy, estimator)
    true = (log_pi(reference.policy, two_rows) - log_pi(two_rows.policy, two_rows).detach()).exp()
    torch.testing.assert_close(expected, true, rtol=0, atol=EXACT)
    found = flat_gradient(expected.mean(), reference.parameters)
    torch.testing.assert_close(found, once(reference), rtol=0, atol=EXACT)


@pytest.mark.parametrize("proposal", [Prior(), Guide()], ids=repr)
def test_without_it_they_are_biased(two_rows: Problem, proposal: Proposal) -> None:
    reference = RatioGradient(DRIFT).pose(two_rows, Exact())
    expected = expected_ratio(two_rows, reference.policy, PosteriorIS(2, proposal))
    true = once(Ratio(DRIFT).pose(two_rows, Exact()))
    assert abs(float(expected.detach().mean() - true)) > 0.02
    assert float((flat_gradient(expected.mean(), reference.parameters) - once(reference)).norm()) > 0.02


def expected_quantity(quantity: Quantity) -> Tensor:
    """Run a posed quantity on every path of its draws."""
    paths = replay(lambda: once(quantity))
    assert len(paths) > 1
    return torch.stack([path.prob * path.result for path in paths]).sum(0)


@pytest.mark.parametrize(
    "target", [Gradient(), Gradient("phi"), PolicyGradient(1.5), Ratio(DRIFT), RatioGradient(DRIFT, "theta")], ids=repr
)
@pytest.mark.parametrize(
    "cell",
    [Cell(Line("joint-score")), Cell(Line("conditional-is", "guide"), settings=(("num_particles", 2),))],
    ids=lambda cell: cell.line.label,
)
def test_a_cell_of_a_retaining_estimator_is_unbiased_for_its_reference(
    two_rows: Problem, cell: Cell, target: Target
) -> None:
    """The recorded latent is drawn anew inside the posed quantity, and every path of it is summed."""
    posed = pose(cell, target, two_rows)
    assert posed.reference is not None and not posed.is_exact
    torch.testing.assert_close(expected_quantity(posed.quantity), once(posed.reference), rtol=0, atol=EXACT)


@pytest.mark.parametrize("target", [KL("k1", DRIFT), KL("k3", DRIFT), Value()], ids=repr)
def test_what_is_nonlinear_in_the_ratio_stays_biased(two_rows: Problem, target: Target) -> None:
    posed = pose(Cell(Line("conditional-is", "guide"), settings=(("num_particles", 2),)), target, two_rows)
    assert posed.reference is not None
    assert abs(float(expected_quantity(posed.quantity) - once(posed.reference))) > 1e-3


def test_an_entropy_value_from_the_same_particles_is_off_by_their_covariance() -> None:
    """With independent particles the expectation is a product; with the same ones it is not."""
    row = replace(SOURCE, num_rows=1).build(4)
    policy, action = tables(row.policy), row.action
    log_q = policy.log_guide()[0, action[0]].detach()
    weight = policy.log_joint()[0, :, action[0]] - log_q  # log w of each latent, a guide draw with chance q
    slopes = torch.stack([flat_gradient(weight[z], theta_phi(policy)) for z in range(3)])
    chance, value = log_q.exp(), weight.detach()
    product = -(chance @ value) * (chance @ slopes)
    same = -((chance * value) @ slopes)
    assert float((same - product).norm()) > 1e-2
    line = PosteriorIS(1, Guide())
    for particles, expected in ((1, product), (0, same)):
        found = expected_quantity(EntropyGradient(particles).pose(row, line))
        torch.testing.assert_close(found, expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", ["exact", "quadrature"])
def test_an_exact_line_of_the_entropy_gradient_draws_nothing(problem: Problem, name: str) -> None:
    """It claims to be without noise, and so its value may not come from particles."""
    found = {
        each.measure: each.interval.value
        for each in measure_cell(
            Cell(Line(name), "entropy"), EntropyGradient(2), problem, num_replicates=10, num_timings=4, seed=0
        )
    }
    assert found["bias"] < EXACT
    assert found["variance"] == 0


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (Value(), 6),
        (Gradient(), 6),
        (PolicyGradient(), 6),
        (Ratio(), 12),
        (RatioGradient(), 12),
        (PPOClip(), 12),
        (GRPO(), 12),
        (KL(), 12),
        (EntropyGradient(10), 16),
        (EntropyGradient(0), 6),
    ],
    ids=repr,
)
def test_evaluations_count_each_pass_over_the_particles(problem: Problem, target: Target, expected: int) -> None:
    assert isinstance(target, Target)
    assert target.evaluations(problem, ConditionalIS(6, Prior()), 6) == expected
    group = replace(target, group_size=3) if isinstance(target, GRPO) else target
    posed = pose(Cell(Line("conditional-is", "prior"), settings=(("num_particles", 6),)), group, problem)
    assert posed.per_row == expected


@pytest.mark.parametrize("where", [Cell(Line("exact")), Cell(Line("quadrature"))], ids=lambda where: where.line.label)
def test_no_evaluations_are_counted_for_a_value_that_is_not_drawn(problem: Problem, where: Cell) -> None:
    """A line without chance has its value from its own points: three latents, and for quadrature thrice as many."""
    posed, plain = (pose(where, target, problem) for target in (EntropyGradient(10), Gradient()))
    assert posed.per_row == plain.per_row == {"exact": 3, "quadrature": 9}[where.line.estimator]
    assert EntropyGradient(10).evaluations(replace(problem, exact=JointScore()), JointScore(), 1) == 1
    assert EntropyGradient(10).evaluations(problem, JointScore(), 1) == 11


@pytest.mark.production
def test_an_unknown_part_is_named(problem: Problem) -> None:
    with pytest.raises(OptionError, match=r"(?s)both, theta or phi.*'psi'"):
        Gradient("psi").pose(problem, Exact())  # type: ignore[arg-type]


def test_a_policy_without_phi_has_no_gradient_in_it(problem: Problem) -> None:
    class Fixed(TabularLatentPolicy):
        def prior_parameters(self) -> list[torch.nn.Parameter]:
            return []

    policy = Fixed(*(table.detach() for table in theta_phi(problem.policy)))
    without = replace(problem, policy=policy)
    with pytest.raises(OptionError, match="the policy has no phi"):
        Gradient("phi").pose(without, Exact())
    assert len(once(Gradient("both").pose(without, Exact()))) == 9 * 3 * 3


@pytest.mark.parametrize("size", [1, 10])
def test_a_group_size_that_the_rows_cannot_fill_is_refused(problem: Problem, size: int) -> None:
    with pytest.raises(OptionError, match=r"(?s)group_size.*number of rows, 9"):
        GRPO(group_size=size).pose(problem, Exact())


NO_REFERENCE = {"bias", "mse", "cosine", "reference_norm"}


def measured(cell: Cell, target: Target, problem: Problem) -> set[str]:
    found = measure_cell(cell, target, problem, num_replicates=10, num_timings=4, seed=0)
    return {each.measure for each in found}


PARTICLES = (("num_particles", 2),)
POSTERIOR = Cell(Line("posterior-is", "guide"), settings=PARTICLES)
RETAINING = [Cell(Line("joint-score")), Cell(Line("conditional-is", "guide"), settings=PARTICLES)]


@pytest.mark.parametrize("cell", RETAINING, ids=lambda cell: cell.line.label)
def test_no_bias_is_reported_where_the_posterior_cannot_be_redrawn(problem: Problem, cell: Cell) -> None:
    assert measured(cell, Gradient(), problem) >= NO_REFERENCE
    fixed = replace(problem, redraw=None)
    found = measured(cell, Gradient(), fixed)
    assert not found & NO_REFERENCE and "likelihood_evaluations" in found
    assert measured(POSTERIOR, Gradient(), fixed) >= NO_REFERENCE  # which retains nothing, and loses nothing


def test_no_bias_is_reported_without_a_reference(problem: Problem) -> None:
    found = measured(POSTERIOR, Gradient(), replace(problem, exact=None))
    assert not found & NO_REFERENCE
    assert found >= {"variance", "snr", "noise_floor", "ess", "seconds"}


@pytest.mark.parametrize("target", [Value(), Ratio(DRIFT), KL("k2", DRIFT)], ids=repr)
@pytest.mark.parametrize("cell", [POSTERIOR, Cell(Line("exact"))], ids=lambda cell: cell.line.label)
def test_a_value_has_no_direction_and_so_no_cosine(problem: Problem, cell: Cell, target: Target) -> None:
    found = measured(cell, target, problem)
    assert "cosine" not in found
    assert found >= {"bias", "mse", "reference_norm"}
