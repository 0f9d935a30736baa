"""A prior that is matched instead of climbed, and noise that minibatches alone see."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.imitation import (
    Cloner,
    ExpectationMaximization,
    FitOptions,
    FitRows,
    MaximumLikelihood,
    VariationalBound,
    fit,
    guide_terms,
    with_noise,
)
from latentpg.numerics.rng import seeded
from latentpg.policies import EpisodePolicy, GaussianLatent
from latentpg.programs import Span, draw_guide, score_prior
from tests.imitation.small import BOX, made_policy, tabular, whole_episodes

EPISODES = 8
MATCHED = FitOptions(num_epochs=5, batch_size=4, learning_rate=0.01, match_prior_every=2, evaluate_every=3)


def episodes(*, components: int = EPISODES) -> EpisodePolicy:
    with seeded(4):
        latent = GaussianLatent(2, "mixture", num_components=components)
        return EpisodePolicy(*BOX, latent=latent, hidden=(6,), initial_guide_log_std=-2.0).double()


def prior_of(policy: EpisodePolicy) -> list[Tensor]:
    return [each.detach().clone() for each in policy.prior_parameters()]


def is_matched(policy: EpisodePolicy, rows: FitRows) -> bool:
    """Say whether the components are the guide's posteriors of the rows as they are."""
    with torch.no_grad():
        q = draw_guide(policy, rows.obs, rows.action, num_particles=1).distributions["z"]
    loc = getattr(policy.prior, "loc", None)
    assert isinstance(loc, Tensor)
    return bool(torch.allclose(q.mean.reshape(loc.shape), loc, atol=1e-12))


def test_phi_is_matched_when_it_should_be_and_never_climbed() -> None:
    """Before the first epoch, after every second, and before the measurements after the third and the last."""
    policy, rows = episodes(), whole_episodes(episodes=EPISODES)
    cloner = Cloner(policy, rows, objective=VariationalBound(), options=MATCHED, seed=0)
    assert not {name for name in cloner.model.names if name.startswith("prior.")}
    matched, moved = [], []
    for _ in range(5):
        before = prior_of(policy)
        cloner.update()
        matched.append(is_matched(policy, rows))
        moved.append(any(not torch.equal(a, b) for a, b in zip(before, prior_of(policy), strict=True)))
    assert matched == [False, True, True, True, True]
    assert moved == [True, True, True, True, True]  # by the first match in the first epoch


def test_a_matched_prior_costs_at_most_the_logarithm_of_the_episodes() -> None:
    policy, rows = episodes(), whole_episodes(episodes=EPISODES)
    fit(policy, rows, objective=VariationalBound(), options=MATCHED, seed=0)
    with seeded(1), torch.no_grad():
        q = draw_guide(policy, rows.obs, rows.action, num_particles=400)
        nats = float((q.log_prob - score_prior(policy, rows.obs, q.latents).log_prob).mean())
    assert 0 < nats < math.log(EPISODES)


def test_matching_is_coordinate_ascent_of_the_bound() -> None:
    """Wherever a prior without a state was, the bound on the same draws is higher once it is matched."""
    policy, rows = episodes(), whole_episodes(episodes=EPISODES)

    def bound() -> float:
        with seeded(3), torch.no_grad():
            return float(guide_terms(policy, rows.obs, rows.action, num_particles=400).log_bound.mean())

    policy.prior.place(torch.zeros(EPISODES, 2), torch.zeros(EPISODES, 2))  # type: ignore[operator]
    before = bound()
    policy.match_prior(rows.obs, rows.action)
    assert bound() > before


def test_halves_with_matching_and_noise_are_one_whole_bit_for_bit() -> None:
    options = FitOptions(
        num_epochs=5,
        batch_size=4,
        valid_particles=8,
        match_prior_every=2,
        evaluate_every=3,
        observation_noise=0.1,
        warmup=0.1,
    )

    def begin() -> Cloner:
        rows = whole_episodes(episodes=EPISODES)
        return Cloner(episodes(), rows, objective=VariationalBound(), options=options, seed=3)

    whole, first = begin(), begin()
    rows = [whole.update() for _ in range(5)]
    early = [first.update() for _ in range(3)]
    with seeded(11):
        second = begin()
        torch.randn(7)
    second.restore({name: value.clone() for name, value in first.state().items()})
    assert [*early, *[second.update() for _ in range(2)]] == rows
    state, other = whole.state(), second.state()
    assert state.keys() == other.keys() and all(torch.equal(state[name], other[name]) for name in state)


class Watching(nn.Module):
    """Hand every observation on, and keep the training ones."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, obs: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.seen.append(obs.detach().clone())
        return obs


def test_minibatches_see_the_noise_and_measurements_do_not() -> None:
    """600 numbers: their mean square is known to 6 %, and the noise stands on the row that the minibatch holds."""
    with seeded(0):
        watching = Watching()
        policy = EpisodePolicy(
            *BOX, latent=GaussianLatent(2, "standard"), hidden=(4,), encoder=watching, activation=nn.Tanh
        ).double()
        rows = FitRows(torch.zeros(300, 2).double(), torch.zeros(300, 1).double(), torch.arange(300))
    measured: list[float] = []
    for scale in (0.0, 0.05):
        watching.seen.clear()
        options = FitOptions(num_epochs=1, batch_size=300, learning_rate=1e-300, observation_noise=scale)
        cloner = Cloner(policy, rows, objective=VariationalBound(), options=options, seed=0)
        measured.append(cloner.update()["valid/log_prob"])
        seen = torch.cat([each for each in watching.seen if len(each) == 300])
        assert float(seen.square().mean().sqrt()) == pytest.approx(scale, rel=0.12)
    assert measured[0] == measured[1]


def test_padding_and_masks_are_left_alone() -> None:
    span = Span(torch.zeros(2, 3, 1), torch.tensor([[True, True, False], [True, True, True]]))
    with seeded(0):
        noisy = with_noise(span, 0.5)
    assert isinstance(noisy, Span) and torch.equal(noisy.mask, span.mask)
    assert bool((noisy.obs[span.mask] != 0).all())
    assert with_noise(span, 0) is span


def cloning(options: FitOptions, *, em: bool = False) -> Cloner:
    objective = ExpectationMaximization() if em else MaximumLikelihood()
    return Cloner(*tabular(), objective=objective, options=options, seed=0)


def too_few() -> None:
    cloner = Cloner(episodes(components=3), whole_episodes(), objective=VariationalBound(), options=MATCHED, seed=0)
    cloner.update()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: FitOptions(match_prior_every=0), "`match_prior_every`"),
        (lambda: FitOptions(observation_noise=-0.1), "`observation_noise`"),
        (lambda: FitOptions(observation_noise=math.nan), "`observation_noise`"),
        (lambda: cloning(FitOptions(match_prior_every=1)), "has no `match_prior"),
        (lambda: cloning(FitOptions(observation_noise=0.1)).update(), "noise on observations that are no vectors"),
        (lambda: cloning(FitOptions(observation_noise=0.1), em=True), "`observation_noise` with expectation"),
        (lambda: cloning(FitOptions(match_prior_every=1), em=True), "`match_prior_every` with expectation"),
        (too_few, "a mixture of as many components as rows"),
    ],
)
def test_choices_that_do_not_go_together_are_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        call()


def test_a_policy_with_a_prior_by_gradient_moves_it() -> None:
    """The other side of matching: without the option phi is the optimiser's."""
    policy = made_policy("gaussian")
    before = [each.detach().clone() for each in policy.prior_parameters()]
    fit(policy, whole_episodes(), objective=VariationalBound(), options=FitOptions(num_epochs=1), seed=0)
    assert all(not torch.equal(a, b) for a, b in zip(before, policy.prior_parameters(), strict=True))
