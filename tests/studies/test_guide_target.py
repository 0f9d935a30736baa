"""The gradient of a guide objective: its reference as direct sums over the tables, and how a cell measures it."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from latentpg.errors import OptionError
from latentpg.estimators import (
    GUIDE_OBJECTIVES,
    ConditionalIS,
    Guide,
    Particles,
    Prior,
    Proposal,
    make_guide_objective,
)
from latentpg.estimators.guides import VIMCO, ConditionalWake, GuideObjective, Recorded, ScoreELBO, Sleep, Wake
from latentpg.numerics.rng import seeded
from latentpg.oracles import TabularLatentPolicy
from latentpg.oracles.replay import replay
from latentpg.policies import GaussianPolicy
from latentpg.programs import LatentPolicy, Latents, Observations, act
from latentpg.studies import Cell, Line, Problem, guide_target
from latentpg.studies.guide_target import BOUND, INCLUSIVE, MULTI_SAMPLE, GuideGradient
from latentpg.studies.measures import measure_cell, once, pose
from latentpg.studies.targets import Quantity
from latentpg.studies.toys import RandomToys

EXACT = 1e-10
"""Rounding: what float64 sums of some hundred terms of order one may be off by."""

SOURCE = RandomToys(num_rows=5, num_latents=3, num_actions=2)
NO_REFERENCE = {"bias", "mse", "cosine", "reference_norm"}


@pytest.fixture(scope="module")
def problem() -> Problem:
    return SOURCE.build(2)


@pytest.fixture(scope="module")
def two_rows() -> Problem:
    return replace(SOURCE, num_rows=2).build(6)


@dataclass(frozen=True)
class Row:
    """One row's tables: log q(z|s,a), differentiable, and the constants log p(z,a|s) and p(z|s,a)."""

    log_q: Tensor
    log_joint: Tensor
    posterior: Tensor


def tables(policy: LatentPolicy) -> TabularLatentPolicy:
    assert isinstance(policy, TabularLatentPolicy)
    return policy


def rows_of(problem: Problem) -> list[Row]:
    policy, found = tables(problem.policy), []
    assert isinstance(problem.obs, Tensor)
    for state, action in zip(problem.obs.tolist(), problem.action.tolist(), strict=True):
        log_q = policy.guide_logits[state, action].log_softmax(-1)
        prior, decoder = policy.prior_logits[state].softmax(-1), policy.decoder_logits[state].softmax(-1)
        joint = (prior * decoder[:, action]).detach()
        found.append(Row(log_q, joint.log(), joint / joint.sum()))
    return found


def psi_gradient(rows: Sequence[Tensor], problem: Problem) -> Tensor:
    guide = tables(problem.policy).guide_logits
    return torch.autograd.grad(torch.stack(list(rows)).sum() / len(rows), guide)[0].flatten()


def inclusive(row: Row) -> Tensor:
    return -sum((row.posterior[z] * row.log_q[z] for z in range(3)), torch.zeros(()).double())


def multi_sample(row: Row, size: int) -> Tensor:
    """Minus the sum over tuples of prod q(z_k) log (1/K) sum w_k; at K = 1 minus the evidence lower bound."""
    total = torch.zeros(()).double()
    for chosen in itertools.product(range(3), repeat=size):
        chance = torch.stack([row.log_q[z].exp() for z in chosen]).prod()
        weight = torch.stack([(row.log_joint[z] - row.log_q[z]).exp() for z in chosen]).mean()
        total = total - chance * weight.log()
    return total


def reference(problem: Problem, name: str, size: int | None = None, only: tuple[str, ...] = ()) -> Quantity:
    found = GuideGradient(only).reference(problem, name, size)
    assert found is not None
    return found


def expected(quantity: Quantity) -> Tensor:
    """Run a posed quantity on every path of its draws."""
    paths = replay(lambda: once(quantity))
    assert len(paths) > 1
    return torch.stack([path.prob * path.result for path in paths]).sum(0)


def close(found: Tensor, direct: Tensor) -> None:
    assert float(direct.norm()) > 0.01
    torch.testing.assert_close(found, direct, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", sorted(INCLUSIVE))
def test_the_inclusive_reference_is_a_sum_over_the_posterior(problem: Problem, name: str) -> None:
    close(once(reference(problem, name, 4)), psi_gradient([inclusive(row) for row in rows_of(problem)], problem))


@pytest.mark.parametrize("name", sorted(BOUND))
def test_the_bounds_reference_is_a_sum_over_the_guide(problem: Problem, name: str) -> None:
    direct = psi_gradient([multi_sample(row, 1) for row in rows_of(problem)], problem)
    close(once(reference(problem, name, 4)), direct)


@pytest.mark.parametrize("name", sorted(MULTI_SAMPLE))
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_many_particle_reference_is_a_sum_over_tuples(problem: Problem, name: str, size: int) -> None:
    losses = [multi_sample(row, size) for row in rows_of(problem)]
    quantity = reference(problem, name, size)
    close(quantity.pieces[0]().detach(), torch.stack(losses).detach().mean())
    close(once(quantity), psi_gradient(losses, problem))


def test_the_three_aims_are_three_different_gradients(problem: Problem) -> None:
    found = [once(reference(problem, *aim)) for aim in (("wake", 2), ("elbo", 2), ("vimco", 2), ("vimco", 3))]
    for first, second in itertools.combinations(found, 2):
        assert float((first - second).norm()) > 0.01


@pytest.mark.parametrize("objective", [ScoreELBO(2), VIMCO(2), VIMCO(3), Recorded()], ids=repr)
def test_an_unbiased_objective_has_its_reference_for_expectation(two_rows: Problem, objective: GuideObjective) -> None:
    name = {ScoreELBO: "elbo-score", VIMCO: "vimco", Recorded: "recorded"}[type(objective)]
    size = getattr(objective, "num_particles", None)
    row = replace(SOURCE, num_rows=1).build(6) if size == 3 else two_rows
    close(expected(GuideGradient().pose(row, objective)), once(reference(row, name, size)))


@pytest.mark.parametrize("proposal", [Prior(), Guide()], ids=repr)
@pytest.mark.parametrize("size", [1, 2])
def test_conditional_wake_on_stored_particles_is_unbiased(two_rows: Problem, size: int, proposal: Proposal) -> None:
    quantity = GuideGradient().pose(two_rows, ConditionalWake(), ConditionalIS(size, proposal))
    close(expected(quantity), once(reference(two_rows, "conditional-wake", size)))


def test_wake_is_biased(two_rows: Problem) -> None:
    error = expected(GuideGradient().pose(two_rows, Wake(2))) - once(reference(two_rows, "wake", 2))
    assert float(error.norm()) > 0.01


@dataclass(frozen=True)
class Seen:
    """Notes how many rows and which latents each call had, and returns the log q of latent 0."""

    rows: list[int]
    latents: list[Tensor | None]

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Tensor:
        assert isinstance(obs, Tensor)
        self.rows.append(len(obs))
        self.latents.append(None if latents is None else latents["z"])
        return -tables(policy).log_guide()[obs, action, 0]


@pytest.mark.parametrize("group", [1, 2, 4, 100])
def test_rows_in_groups_have_the_same_gradient(problem: Problem, group: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five rows in groups of one, of two and a rest, of four and a rest, and all at once."""
    monkeypatch.setattr(guide_target, "GROUP", group)
    seen = Seen([], [])
    found = once(GuideGradient().pose(problem, seen))
    assert seen.rows == {1: [1] * 5, 2: [2, 2, 1], 4: [4, 1], 100: [5]}[group]
    close(found, psi_gradient([-row.log_q[0] for row in rows_of(problem)], problem))
    assert problem.latents is not None
    kept = [latents for latents in seen.latents if latents is not None]
    assert torch.equal(torch.cat(kept), problem.latents["z"])  # each group has its own rows' latents


@pytest.mark.parametrize("objective", [ScoreELBO(2), VIMCO(2), Recorded(), ConditionalWake()], ids=repr)
def test_grouping_does_not_change_the_expectation(
    two_rows: Problem, objective: GuideObjective, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = ConditionalIS(2, Guide()) if isinstance(objective, ConditionalWake) else None
    whole = GuideGradient().pose(two_rows, objective, stored)
    monkeypatch.setattr(guide_target, "GROUP", 2)
    grouped = GuideGradient().pose(two_rows, objective, stored)
    if isinstance(objective, Recorded):  # one latent a row: two rows still fit
        monkeypatch.setattr(guide_target, "GROUP", 1)
        grouped = GuideGradient().pose(two_rows, objective)
    assert (len(whole.pieces), len(grouped.pieces)) == (1, 2)
    by_piece = [expected(replace(grouped, pieces=[piece])) for piece in grouped.pieces]
    close(torch.stack(by_piece).sum(0), expected(whole))


def test_the_groups_size_counts_the_stored_particles(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide_target, "GROUP", 12)
    assert len(GuideGradient().pose(problem, VIMCO(6)).pieces) == 3
    assert len(GuideGradient().pose(problem, ConditionalWake(), ConditionalIS(4, Prior())).pieces) == 2
    assert len(GuideGradient().pose(problem, Recorded()).pieces) == 1


def test_the_groups_size_counts_the_dreams(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide_target, "GROUP", 12)
    assert len(GuideGradient().pose(problem, Sleep(6)).pieces) == 3
    assert len(GuideGradient().pose(problem, Sleep(1)).pieces) == 1


COUNTED = {
    "elbo": 5,
    "elbo-score": 5,
    "elbo-stl": 5,
    "iwae": 5,
    "iwae-dreg": 5,
    "vimco": 5,
    "wake": 5,
    "sleep": 4,
    "recorded": 0,
    "conditional-wake": 5,
}
"""Evaluations of log p(z, a | s) a row with five particles or four dreams."""


@pytest.mark.parametrize("name", GUIDE_OBJECTIVES)
def test_evaluations_are_those_that_happen(name: str) -> None:
    """A hook on the decoder's head counts the actions that are scored."""
    with seeded(0):
        policy = GaussianPolicy(spaces.Box(-1.0, 1.0, (2,)), spaces.Discrete(3), hidden=(4,))
        obs = torch.randn(3, 2)
        acted = act(policy, obs)
    problem = Problem(policy, obs, acted.action, acted.latents)
    match name:
        case "sleep":
            where = cell(name, num_dreams=4)
        case "recorded":
            where = cell(name)
        case _:
            where = cell(name, "guide" if name == "conditional-wake" else None, num_particles=5)
    posed, counted = pose(where, GuideGradient(), problem), 0

    def count(module: nn.Module, arguments: object, output: Distribution) -> Distribution:
        def log_prob(value: Tensor) -> Tensor:
            nonlocal counted
            scored = score(value)
            counted += scored.numel()
            return scored

        score, output.log_prob = output.log_prob, log_prob  # type: ignore[method-assign]
        return output

    hook = policy.decoder.head.register_forward_hook(count)
    try:
        once(posed.quantity)
    finally:
        hook.remove()
    assert counted == posed.per_row * len(obs) == COUNTED[name] * len(obs)


def test_only_selects_parameters_in_its_own_order() -> None:
    span = RandomToys(num_rows=3, num_latents=3, num_actions=2, span=2).build(1)
    start, steps = span.policy.guide_parameters()
    whole = once(reference(span, "wake"))
    parts = {"guide_start": whole[: start.numel()], "guide_steps": whole[start.numel() :]}
    assert len(whole) == start.numel() + steps.numel()
    for only in (("guide_start",), ("guide_steps",), ("guide_steps", "guide_start")):
        wanted = torch.cat([parts[name] for name in only])
        assert float(wanted.norm()) > 0.01
        assert torch.equal(once(reference(span, "wake", only=only)), wanted)
        with seeded(0):
            sample = once(GuideGradient(only).pose(span, Wake(3)))
        with seeded(0):
            every = once(GuideGradient().pose(span, Wake(3)))
        by_name = {"guide_start": every[: start.numel()], "guide_steps": every[start.numel() :]}
        assert torch.equal(sample, torch.cat([by_name[name] for name in only]))


@pytest.mark.parametrize(
    ("name", "told"), [("guide_logit", "did you mean guide_logits"), ("prior_logits", r"(?s)some of guide_logits")]
)
def test_a_name_that_is_no_parameter_of_the_guide_is_refused(problem: Problem, name: str, told: str) -> None:
    """The second is a parameter of the policy, but of its prior."""
    with pytest.raises(OptionError, match=told):
        GuideGradient((name,)).pose(problem, Wake(2))
    with pytest.raises(OptionError, match=told):
        GuideGradient((name,)).reference(problem, "wake", 2)


def test_recorded_latents_are_drawn_anew_at_each_estimate(problem: Problem) -> None:
    assert problem.latents is not None and problem.redraw is not None
    recorded = problem.latents["z"]
    quantity = GuideGradient().pose(problem, Recorded())
    fixed = GuideGradient().pose(replace(problem, redraw=None), Recorded())
    by_hand = psi_gradient([-row.log_q[z] for row, z in zip(rows_of(problem), recorded.tolist(), strict=True)], problem)
    with seeded(0):
        found = [once(quantity) for _ in range(8)]
        close(once(fixed), by_hand)
    assert len({tuple(gradient.tolist()) for gradient in found}) > 1
    with seeded(3):
        drawn = problem.redraw()["z"].tolist()
    with seeded(3):
        again = once(quantity)
    close(again, psi_gradient([-row.log_q[z] for row, z in zip(rows_of(problem), drawn, strict=True)], problem))


def test_other_objectives_take_the_recorded_latents_as_they_are(problem: Problem) -> None:
    def never() -> Latents:
        raise AssertionError("nothing asked for a posterior draw")

    once(GuideGradient().pose(replace(problem, redraw=never), Wake(2)))


def test_there_is_no_reference_where_none_can_be_summed(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    target = GuideGradient()
    assert target.reference(problem, "sleep", None) is None
    assert target.reference(replace(problem, exact=None), "wake", 2) is None
    assert target.reference(problem, "vimco", 10) is None  # 59,049 tuples
    assert target.reference(problem, "vimco", 9) is not None  # 19,683
    monkeypatch.setattr(guide_target, "MAX_TUPLES", 9)
    assert target.reference(problem, "vimco", 2) is not None
    assert target.reference(problem, "vimco", 3) is None
    assert target.reference(problem, "elbo", 3) is not None  # one latent is summed, whatever K


def test_a_loss_that_the_source_knows_is_the_reference(problem: Problem) -> None:
    """Also where nothing can be enumerated, and where the sums would be there too."""
    guide = tables(problem.policy).guide_logits
    known = replace(problem, exact=None, guide_losses={"wake": lambda: (guide**3).sum() / 3})
    close(once(reference(known, "wake", 2)), guide.detach().square().flatten())
    assert GuideGradient().reference(known, "recorded", None) is None


def cell(name: str, proposal: str | None = None, size: int | None = None, **options: object) -> Cell:
    settings = () if size is None else (("num_particles", size),)
    return Cell(Line(name, proposal, options, role="objective"), "guide-gradient", settings)


def measured(where: Cell, problem: Problem) -> dict[str, float]:
    found = measure_cell(where, GuideGradient(), problem, num_replicates=20, num_timings=4, seed=0)
    return {each.measure: each.interval.value for each in found}


@pytest.mark.parametrize(
    "where",
    [cell("recorded"), cell("conditional-wake", "prior", 2), cell("wake", size=2), cell("vimco", size=2)],
    ids=lambda where: where.line.label,
)
def test_a_cell_has_errors_against_its_reference(problem: Problem, where: Cell) -> None:
    found = measured(where, problem)
    assert found.keys() >= NO_REFERENCE
    posed = pose(where, GuideGradient(), problem)
    assert posed.reference is not None
    assert found["reference_norm"] == pytest.approx(float(once(posed.reference).norm()))
    assert found["likelihood_evaluations"] == posed.per_row


def test_a_cell_has_none_without_a_reference(problem: Problem) -> None:
    for where, given in (
        (cell("sleep"), problem),
        (cell("vimco", size=10), problem),
        (cell("wake", size=2), replace(problem, exact=None)),
    ):
        found = measured(where, given)
        assert not found.keys() & NO_REFERENCE
        assert found.keys() >= {"variance", "snr", "seconds"}


@pytest.mark.parametrize(
    "where", [cell("recorded"), cell("conditional-wake", "guide", 2)], ids=lambda where: where.line.label
)
def test_a_cell_has_none_where_the_posterior_cannot_be_redrawn(problem: Problem, where: Cell) -> None:
    fixed = replace(problem, redraw=None)
    assert not measured(where, fixed).keys() & NO_REFERENCE
    assert measured(cell("wake", size=2), fixed).keys() >= NO_REFERENCE


@pytest.mark.parametrize("size", [2, 3])
def test_a_number_of_particles_beside_the_axis_is_that_of_the_reference(two_rows: Problem, size: int) -> None:
    """A line may say K itself; the bound aimed at, and the cost, are then of that K."""
    posed = pose(cell("vimco", num_particles=size), GuideGradient(), two_rows)
    assert posed.reference is not None
    direct = psi_gradient([multi_sample(row, size) for row in rows_of(two_rows)], two_rows)
    close(once(posed.reference), direct)
    assert posed.per_row == size


def test_the_names_of_the_aims_are_those_of_objectives() -> None:
    for name in INCLUSIVE | BOUND | MULTI_SAMPLE:
        make_guide_objective(name)
    assert not INCLUSIVE & BOUND and not BOUND & MULTI_SAMPLE and not INCLUSIVE & MULTI_SAMPLE
