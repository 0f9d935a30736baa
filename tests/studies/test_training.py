"""The training loop of studies: which gradients move what, in which order, and what is carried on."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat
from typing import cast

import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn

from latentpg.errors import OptionError
from latentpg.estimators import Estimate, Estimator, Exact, MarkovianIS, Particles, Prior, WakeSleep, log_weights
from latentpg.estimators.guides import GuideObjective, Wake
from latentpg.numerics.rng import seeded
from latentpg.policies import MixturePolicy
from latentpg.programs import LatentPolicy, Latents, Observations, act, score_guide
from latentpg.studies.gaussian_mixture import MULTIPLIER, SCALE, MixtureModel, endless_batches, true_weights
from latentpg.studies.problem import Rows
from latentpg.studies.skew_normal import SkewNormalModel
from latentpg.studies.training import Recorded, fit


@dataclass(frozen=True)
class Touching:
    """An estimator and an objective in one, whose rows depend on every parameter that either may move."""

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        return Exact().propose(policy, obs, action)

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        guide = score_guide(policy, obs, action, particles.latents).log_prob
        return Estimate((log_weights(policy, obs, action, particles) + guide)[0])

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Tensor:
        assert particles is not None
        return -self.estimate(policy, obs, action, particles).log_prob


@dataclass(frozen=True)
class Watched:
    """A chain that notes the state it was asked to go on from, and an objective that notes what it was handed."""

    asked: list[Latents | None] = field(default_factory=list)
    handed: list[Latents | None] = field(default_factory=list)
    retained: list[Tensor] = field(default_factory=list)

    def propose(
        self, policy: LatentPolicy, obs: Observations, action: Tensor, latents: Latents | None = None
    ) -> Particles:
        self.asked.append(latents)
        particles = MarkovianIS(3, proposal=Prior()).propose(policy, obs, action, latents)
        self.retained.append(particles.latents["z"][0])
        return particles

    def estimate(self, policy: LatentPolicy, obs: Observations, action: Tensor, particles: Particles) -> Estimate:
        return MarkovianIS(3).estimate(policy, obs, action, particles)

    def loss(
        self,
        policy: LatentPolicy,
        obs: Observations,
        action: Tensor,
        *,
        particles: Particles | None = None,
        latents: Latents | None = None,
    ) -> Tensor:
        self.handed.append(latents)
        return Wake().loss(policy, obs, action, particles=particles)


def nothing() -> dict[str, float]:
    return {}


def mixture(start: str = "reversed") -> MixtureModel:
    return MixtureModel(num_components=3, start=start, hidden=(4,)).double()


def points(per_weight: int = 50) -> Rows:
    """Spread points over three components as their weights say, at each one's quantiles: data without noise."""
    means = []
    for component, weight in enumerate((5, 6, 7)):
        chance = (torch.arange(weight * per_weight, dtype=torch.float64) + 0.5) / (weight * per_weight)
        means.append(10.0 * component + SCALE * torch.special.ndtri(chance))
    action = torch.cat(means)
    return torch.zeros(len(action), 1, dtype=torch.float64), action


def run(
    policy: LatentPolicy,
    batches: Rows | Iterator[Rows],
    estimator: Estimator,
    objective: GuideObjective,
    *,
    num_steps: int = 3,
    learning_rate: float | int = 0.1,
) -> None:
    fit(
        policy,
        batches,
        estimator=estimator,
        objective=objective,
        num_steps=num_steps,
        learning_rate=learning_rate,
        record_every=num_steps,
        record=nothing,
    )


def test_steps_are_adams_on_gradients_written_out_by_hand() -> None:
    """Posterior minus prior for the model; then, at the model as it has moved, q minus posterior for the guide."""
    obs, action = points(1)
    policy, reference = mixture(), mixture()
    reference.load_state_dict(policy.state_dict())
    run(policy, (obs, action), Exact(), Wake(), num_steps=4, learning_rate=0.05)

    def posterior() -> Tensor:
        squared = (action.unsqueeze(-1) - 10.0 * torch.arange(3)).square() / (2 * SCALE**2)
        return (MULTIPLIER * reference.logits.detach() - squared).softmax(-1)

    model = torch.optim.Adam([reference.logits], lr=0.05)
    guide = torch.optim.Adam(reference.guide_net.parameters(), lr=0.05)
    for _ in range(4):
        reference.logits.grad = -MULTIPLIER * (posterior() - reference.weights().detach()).mean(0)
        model.step()
        guide.zero_grad()
        scores = reference.guide_net(action.unsqueeze(-1))
        scores.backward((scores.detach().softmax(-1) - posterior()) / len(action))
        guide.step()
    for ours, theirs in zip(policy.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("frozen", ["prior", "decoder", "guide"])
def test_no_objective_reaches_into_anothers_parameters(frozen: str) -> None:
    """What an estimator says of psi, and an objective of theta and phi, moves nothing."""
    policy = MixturePolicy(spaces.Box(-1, 1, (2,)), spaces.Discrete(2), num_components=3, hidden=(4,)).double()
    obs = torch.randn(5, 2, dtype=torch.float64)
    action = act(policy, obs).action
    before = {name: value.clone() for name, value in policy.state_dict().items()}
    # A policy that claims to have no such parameters: then nobody else may move them either.
    setattr(policy, f"{frozen}_parameters", lambda: [])
    run(policy, (obs, action), Touching(), Touching())
    moved = {name.split(".")[0] for name, value in policy.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"prior", "decoder", "guide_net"} - {frozen, f"{frozen}_net"}
    assert all(parameter.grad is None for parameter in policy.parameters())


def test_exact_training_finds_the_true_weights_of_three_components() -> None:
    rows = points()
    policy = mixture()
    fit(
        policy,
        rows,
        estimator=Exact(),
        objective=Wake(),
        num_steps=450,
        learning_rate=lambda step: 0.2 * 0.985**step,
        record_every=450,
        record=nothing,
    )
    likelihood = (-(rows[1].unsqueeze(-1) - policy.means).square() / (2 * SCALE**2)).exp()
    weights = torch.full((3,), 1 / 3, dtype=torch.float64)
    for _ in range(1000):  # expectation-maximisation, another way to the same maximum of the likelihood
        weights = (weights * likelihood / (likelihood @ weights).unsqueeze(-1)).mean(0)
    torch.testing.assert_close(policy.weights(), weights, rtol=0, atol=1e-5)
    torch.testing.assert_close(weights, true_weights(3).double(), rtol=0, atol=1e-3)


def test_a_seed_is_a_result() -> None:
    def result(seed: int) -> list[Tensor]:
        with seeded(seed):
            policy = MixtureModel(num_components=3)
            run(policy, endless_batches(10, 3), WakeSleep(4), Wake(4))
        return [parameter.detach().clone() for parameter in policy.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(result(1), result(1), strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(result(1), result(2), strict=True))


def test_a_fixed_batch_carries_its_chain_and_fresh_ones_do_not() -> None:
    rows = points(1)
    watched = Watched()
    run(mixture(), rows, watched, watched)
    assert watched.asked[0] is None
    for step in range(3):
        assert torch.equal(cast(Latents, watched.handed[step])["z"], watched.retained[step])
    for step in (1, 2):
        assert torch.equal(cast(Latents, watched.asked[step])["z"], watched.retained[step - 1])

    watched = Watched()
    run(mixture(), repeat(rows), watched, watched)
    assert watched.asked == [None, None, None]
    assert all(latents is not None for latents in watched.handed)


def test_records_come_with_their_steps_and_the_schedule_with_its() -> None:
    rates: list[int] = []
    policy = mixture()
    start = policy.logits.detach().clone()

    def rate(step: int) -> float:
        rates.append(step)
        return 0.0 if step < 2 else 0.1

    recorded = fit(
        policy,
        points(1),
        estimator=Exact(),
        objective=Wake(),
        num_steps=5,
        learning_rate=rate,
        record_every=2,
        record=lambda: {"moved": float((policy.logits.detach() - start).abs().max())},
    )
    assert [row.step for row in recorded] == [0, 2, 4]
    assert recorded[0].values["moved"] == recorded[1].values["moved"] == 0.0 < recorded[2].values["moved"]
    assert rates == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert recorded[0] == Recorded(0, {"moved": 0.0})


def test_a_policy_may_have_nothing_but_a_guide() -> None:
    policy = SkewNormalModel(2)
    start: list[nn.Parameter] = [nn.Parameter(parameter.detach().clone()) for parameter in policy.parameters()]
    run(policy, policy.rows(), WakeSleep(4), Wake(4))
    assert all(bool((now != then).all()) for now, then in zip(policy.parameters(), start, strict=True))


@pytest.mark.parametrize("name", ["num_steps", "record_every"])
@pytest.mark.parametrize("count", [0, -1, True])
def test_counts_are_checked(name: str, count: int) -> None:
    counts = {"num_steps": 1, "record_every": 1, name: count}
    with pytest.raises(OptionError, match=rf"`{name}`"):
        fit(
            mixture(),
            points(1),
            estimator=Exact(),
            objective=Wake(),
            learning_rate=0.1,
            record=nothing,
            **counts,
        )
