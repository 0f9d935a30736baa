"""The fit: every objective on every kind of row, what moves what, stopping, the best, and going on bit for bit."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.estimators import Exact, PosteriorIS
from latentpg.imitation import (
    ClassicWakeSleep,
    Cloner,
    ExpectationMaximization,
    FitOptions,
    FitRows,
    ImportanceBound,
    Losses,
    MaximumLikelihood,
    Objective,
    PerDatum,
    ReweightedWakeSleep,
    ScoreClimbing,
    VariationalBound,
    fit,
    mean_log_prob,
    step_rows,
    support_size,
)
from latentpg.learners import Learner, LearningFault
from latentpg.numerics.rng import seeded
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.policies import PlainPolicy
from latentpg.programs import LatentPolicy, Latents, Observations, model_parameters
from tests.imitation.small import BOX, gaussian, made_policy, tabular, two_ways, whole_episodes

DISCRETE: list[Objective] = [
    MaximumLikelihood(),
    ExpectationMaximization(),
    VariationalBound(4),
    ImportanceBound(4, "vimco"),
    ReweightedWakeSleep(4),
    ReweightedWakeSleep(4, "both"),
    ClassicWakeSleep(),
    ScoreClimbing(4),
]
CONTINUOUS: list[Objective] = [
    VariationalBound(),
    VariationalBound(2, anneal="linear", free_nats=0.1),
    ImportanceBound(4),
    ReweightedWakeSleep(4),
    ClassicWakeSleep(),
    ScoreClimbing(4),
]
BRIEF = FitOptions(num_epochs=3, batch_size=4, valid_particles=8)


@pytest.mark.parametrize("objective", DISCRETE, ids=repr)
def test_every_objective_comes_near_the_best_law_of_a_table(objective: Objective) -> None:
    """At least nine tenths of the way from a bad start to minus the entropy of what was seen, the highest there is."""
    with seeded(0):
        policy = TabularLatentPolicy.random(num_states=1, num_latents=3, num_actions=4, scale=2.0)
    count = torch.tensor([1, 2, 5, 32])
    action = torch.arange(4).repeat_interleave(count)
    rows = FitRows(torch.zeros(40, dtype=torch.int64), action, torch.arange(40))
    best = float((count * (count / 40).log()).sum() / 40)
    begun = float(mean_log_prob(policy, rows, Exact()))
    options = FitOptions(num_epochs=40, batch_size=20, learning_rate=0.15, evaluate_every=20)
    fitted = fit(policy, rows, objective=objective, options=options, seed=1)
    assert begun < best - 0.5
    assert 0.9 < (fitted.best - begun) / (best - begun) <= 1 + 1e-12
    assert float(mean_log_prob(policy, rows, Exact())) == pytest.approx(fitted.best)


@pytest.mark.parametrize("rows", ["steps", "episodes"])
@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        *[("mixture", objective) for objective in DISCRETE],
        *[("gaussian", objective) for objective in CONTINUOUS],
        ("two-level", VariationalBound(2)),
        ("two-level", ImportanceBound(4, "vimco")),
        ("two-level", ReweightedWakeSleep(4)),
        ("two-level", ScoreClimbing(4)),
    ],
    ids=repr,
)
def test_every_objective_runs_on_every_kind_of_row(kind: str, objective: Objective, rows: str) -> None:
    policy = made_policy(kind)
    data = whole_episodes() if rows == "episodes" else step_rows(two_ways())
    before = [p.detach().clone() for p in policy.parameters()]
    fitted = fit(policy, data, objective=objective, options=BRIEF, seed=0, validation=data.take(slice(0, 5)))
    assert len(fitted.history) == 3
    assert {"train/log_prob", "valid/log_prob", "valid/kl", "valid/best"} <= set(fitted.history[-1])
    assert all(torch.tensor(list(row.values())).isfinite().all() for row in fitted.history)
    moved = [not torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True)]
    assert all(moved)


def test_a_policy_without_a_latent_is_cloned_alike() -> None:
    with seeded(0):
        policy = PlainPolicy(*BOX, hidden=(4,)).double()
    fitted = fit(policy, whole_episodes(), objective=MaximumLikelihood(), options=BRIEF, seed=0)
    assert fitted.history[-1]["train/log_prob"] > fitted.history[0]["train/log_prob"]
    assert "valid/kl" not in fitted.history[-1]


@pytest.mark.parametrize("objective", [MaximumLikelihood(), ImportanceBound(4, "vimco"), VariationalBound(4)], ids=repr)
def test_neither_loss_leaks_into_the_others_parameters(objective: Objective) -> None:
    for rate, guide_rate in ((1e-300, 0.1), (0.1, 1e-300)):
        policy, rows = tabular()
        assert isinstance(policy, TabularLatentPolicy)
        model, guide = model_parameters(policy), policy.guide_parameters()
        still, moving = (model, guide) if rate < guide_rate else (guide, model)
        before = [p.detach().clone() for p in [*still, *moving]]
        options = FitOptions(num_epochs=1, schedule="constant", learning_rate=rate, guide_learning_rate=guide_rate)
        fit(policy, rows, objective=objective, options=options, seed=0)
        after = [*still, *moving]
        changed = [float((a - b.detach()).abs().max()) for a, b in zip(before, after, strict=True)]
        assert max(changed[: len(still)]) < 1e-200 and min(changed[len(still) :]) > 1e-3


@pytest.mark.parametrize(
    ("kind", "objective"),
    [
        ("mixture", MaximumLikelihood()),
        ("mixture", ExpectationMaximization(3)),
        ("gaussian", VariationalBound(anneal="linear")),
        ("two-level", ScoreClimbing(4)),
        ("per-datum", VariationalBound(2)),
    ],
    ids=repr,
)
def test_two_halves_are_one_whole_bit_for_bit(kind: str, objective: Objective) -> None:
    options = FitOptions(num_epochs=4, batch_size=4, valid_particles=8)

    def begin() -> Cloner:
        policy, rows = made_policy("gaussian" if kind == "per-datum" else kind), whole_episodes()
        with seeded(9):
            own = PerDatum(policy, rows) if kind == "per-datum" else None
        return Cloner(policy, rows, objective=objective, options=options, seed=3, per_datum=own)

    whole, first = begin(), begin()
    rows = [whole.update() for _ in range(4)]
    early = [first.update() for _ in range(2)]
    with seeded(11):
        second = begin()
        torch.randn(7)
    second.restore({name: value.clone() for name, value in first.state().items()})
    late = [second.update() for _ in range(2)]
    assert [*early, *late] == rows
    state, other = whole.state(), second.state()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)
    assert isinstance(whole, Learner) and whole.finished and whole.num_timesteps == 4 * 8
    assert all(isinstance(value, Tensor) for value in state.values())


def test_each_row_has_a_chain_that_an_epoch_moves() -> None:
    """Without sweeps the chains stay; with them they move, to the state that the next epoch starts from."""
    for sweeps in (0, 2):
        policy, rows = tabular()
        cloner = Cloner(policy, rows, objective=ScoreClimbing(8, sweeps), options=BRIEF, seed=0)
        before = cloner.chain["z"].clone()
        cloner.update()
        moved = int((cloner.chain["z"] != before).sum())
        assert before.shape == (rows.size,) and (moved > rows.size // 4 if sweeps else moved == 0)
        assert torch.equal(cloner.state()["chain.z"], cloner.chain["z"])


def test_a_fit_goes_on_from_a_state() -> None:
    options = FitOptions(num_epochs=4, batch_size=8)
    first = fit(made_policy("mixture"), whole_episodes(), objective=MaximumLikelihood(), options=options, seed=3)
    cloner = Cloner(made_policy("mixture"), whole_episodes(), objective=MaximumLikelihood(), options=options, seed=3)
    cloner.update()
    again = fit(
        made_policy("mixture"),
        whole_episodes(),
        objective=MaximumLikelihood(),
        options=options,
        seed=3,
        saved=cloner.state(),
    )
    assert again.history == first.history[1:] and again.best == first.best


@dataclass(frozen=True)
class Overfitting:
    """Climb the likelihood by its own gradient until an epoch, and descend it from there on."""

    turn: float

    def losses(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        latents: Latents | None = None,
        progress: float = 0.0,
    ) -> Losses:
        found = MaximumLikelihood().losses(policy, obs, action)
        return found if progress < self.turn else Losses(-found.model, None, found.info)


def test_the_best_is_kept_and_patience_ends_the_fit() -> None:
    """Up for 5 epochs, down from then on: the best is of epoch 5, and patience of 3 stops after 8 of 20."""
    policy, rows = tabular()
    options = FitOptions(num_epochs=20, batch_size=24, learning_rate=0.05, schedule="constant", patience=3)
    seen: list[Mapping[str, float]] = []
    fitted = fit(policy, rows, objective=Overfitting(0.249), options=options, seed=0, show=seen.append)
    # momentum carries on a little after the turn
    assert fitted.stopped_early and fitted.best_epoch + 3 == len(fitted.history) < 20
    assert 5 <= fitted.best_epoch <= 8
    assert float(mean_log_prob(policy, rows, Exact())) == pytest.approx(fitted.best)
    assert list(fitted.history) == seen
    assert fitted.history[-1]["valid/log_prob"] < fitted.best == fitted.history[-1]["valid/best"]


def test_a_gain_below_the_least_one_counts_as_none() -> None:
    policy, rows = tabular()
    options = FitOptions(num_epochs=9, batch_size=24, patience=2, min_gain=10.0)
    assert fit(policy, rows, objective=MaximumLikelihood(), options=options, seed=0).best_epoch == 1


def test_it_is_measured_as_often_as_asked_and_at_the_end() -> None:
    policy, rows = tabular()
    options = FitOptions(num_epochs=5, evaluate_every=2)
    history = fit(policy, rows, objective=MaximumLikelihood(), options=options, seed=0).history
    assert ["valid/log_prob" in row for row in history] == [False, True, False, True, True]
    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5]


def test_held_out_rows_are_what_is_measured() -> None:
    policy, rows = tabular()
    held = rows.take(torch.tensor([0]))
    cloner = Cloner(policy, rows, objective=MaximumLikelihood(), seed=0, validation=held)
    told = cloner.update()
    assert told["valid/log_prob"] == pytest.approx(float(mean_log_prob(policy, held, Exact())))


def test_rates_follow_their_schedule() -> None:
    cosine = FitOptions(schedule="cosine", final_rate=0.1)
    assert [cosine.rate(p) for p in (0.0, 0.5, 1.0)] == pytest.approx([1.0, 0.55, 0.1])
    assert [FitOptions(schedule="constant", warmup=0.1).rate(p) for p in (0.05, 0.1, 1.0)] == [0.5, 1.0, 1.0]
    assert FitOptions(warmup=1.0).rate(1.0) == pytest.approx(0.0)
    policy, rows = tabular()
    options = FitOptions(num_epochs=2, batch_size=24, schedule="linear", learning_rate=0.1)
    history = fit(policy, rows, objective=MaximumLikelihood(), options=options, seed=0).history
    assert [row["train/learning_rate"] for row in history] == pytest.approx([0.1, 0.05])


def test_what_is_not_finite_moves_nothing() -> None:
    policy, rows = gaussian()
    with torch.no_grad():
        policy.log_noise.fill_(-400.0)  # the decoder's density overflows
    before = [p.detach().clone() for p in policy.parameters()]
    cloner = Cloner(policy, rows, objective=VariationalBound(kl="sampled"), seed=0)
    with pytest.raises((LearningFault, ValueError), match=r"not finite|log-weights are"):
        cloner.update()
    assert all(torch.equal(a, b) for a, b in zip(before, policy.parameters(), strict=True))


def test_supports_are_counted() -> None:
    table, rows = tabular(5)
    assert isinstance(table, TabularLatentPolicy)
    assert support_size(table, rows.obs) == 5
    assert support_size(gaussian()[0], gaussian()[1].obs) == 0
    assert support_size(made_policy("two-level"), torch.zeros(2, 2).double()) == 0
    assert support_size(PlainPolicy(*BOX, hidden=(4,)), torch.zeros(2, 2)) == 1


def test_a_mean_over_blocks_is_the_mean() -> None:
    policy, rows = gaussian()
    with seeded(2):
        found = mean_log_prob(policy, rows, PosteriorIS(4))
    with seeded(2):
        particles = PosteriorIS(4).propose(policy, rows.obs, rows.action)
        expected = PosteriorIS(4).estimate(policy, rows.obs, rows.action, particles).log_prob
    assert float(found) == pytest.approx(float(expected.detach().mean()))


def option(**values: Any) -> Callable[[], object]:  # noqa: ANN401 (handed on)
    return lambda: FitOptions(**values)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (option(num_epochs=0), "`num_epochs`"),
        (option(batch_size=0), "`batch_size`"),
        (option(patience=-1), "`patience`"),
        (option(evaluate_every=0), "`evaluate_every`"),
        (option(valid_particles=0), "`valid_particles`"),
        (option(learning_rate=0.0), "`learning_rate`"),
        (option(guide_learning_rate=float("inf")), "`guide_learning_rate`"),
        (option(max_grad_norm=0.0), "`max_grad_norm`"),
        (option(schedule="step"), "`schedule`"),
        (option(warmup=1.5), "`warmup`"),
        (option(final_rate=-0.1), "`final_rate`"),
        (option(min_gain=-1.0), "`min_gain`"),
        (lambda: Cloner(NoModule(), tabular()[1], objective=MaximumLikelihood(), seed=0), "an nn.Module"),
        (lambda: with_per_datum(slice(0, 5), VariationalBound()), "a density for each of the 12 rows"),
        (lambda: with_per_datum(slice(0, 12), ClassicWakeSleep()), "a bound as objective"),
    ],
)
def test_choices_out_of_range_are_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        call()


class NoModule:
    """A policy in everything but its parameters' home."""

    def model(self, obs: Tensor, action: Tensor | None = None) -> None: ...

    def guide(self, obs: Tensor, action: Tensor | None) -> None: ...

    def prior_parameters(self) -> list[nn.Parameter]:
        return []

    decoder_parameters = guide_parameters = prior_parameters


def with_per_datum(part: slice, objective: Objective) -> Cloner:
    policy, rows = gaussian()
    return Cloner(policy, rows, objective=objective, seed=0, per_datum=PerDatum(policy, rows.take(part)))
