"""Annealing: unbiased by exact sums, right against closed forms, and a sandwich that holds the truth."""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from latentpg.errors import EstimatorError, OptionError, ShapeError, SiteError, WeightError
from latentpg.estimators import Guide, Prior
from latentpg.evaluation.ais import Annealing, Tuning, annealed_likelihood, backward, forward, pilot, sandwich
from latentpg.evaluation.kernels import HMC, Bridge, Independence, Kernel, Moved, RandomWalk, State
from latentpg.evaluation.report import LOWER_BOUND
from latentpg.numerics.rng import seeded
from latentpg.oracles.enumeration import enumerate_draws
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.policies import TwoLevelPolicy
from latentpg.programs import act


def tabular(num_latents: int = 2) -> TabularLatentPolicy:
    with seeded(0):
        return TabularLatentPolicy.random(num_states=2, num_latents=num_latents, num_actions=2, scale=1.5)


def gaussian(latent: int = 3, rows: int = 12) -> tuple[LinearGaussianPolicy, Tensor, Tensor]:
    with seeded(1):
        policy = LinearGaussianPolicy.random(num_states=3, latent_size=latent, action_size=2)
        obs = torch.arange(rows) % 3
        return policy, obs, act(policy, obs).action


def untuned(annealing: Annealing, bridge: Bridge, rows: int) -> Tuning:
    step = (torch.ones(rows, dtype=torch.float64),) * len(annealing.kernels)
    inside = annealing.num_temperatures - 1
    return Tuning((step,) * inside, ({},) * inside)


@dataclass(frozen=True)
class Stuck:
    """A kernel that is none of the bridge's: it moves every chain to a fresh draw, always."""

    target_acceptance: None = None

    def sites(self, bridge: Bridge) -> frozenset[str]:
        return bridge.sites

    def move(self, bridge: Bridge, state: State, beta: float | int, *, step: Tensor, spread: object) -> Moved:
        moved = Independence().move(bridge, state, beta, step=step, spread={})
        return Moved(bridge.begin(len(state.log_joint)), moved.acceptance)


OBS, ACTION = torch.tensor([0, 1]), torch.tensor([1, 0])


def expected_weight(kernels: tuple[Kernel, ...], temperatures: int = 3) -> Tensor:
    """Sum E w over every draw of the real code, one chain and T temperatures, for two rows."""
    policy = tabular()
    annealing = Annealing(
        num_temperatures=temperatures, num_chains=1, kernels=kernels, schedule="linear", start=Prior()
    )

    def program(index: Tensor) -> Tensor:
        bridge = Bridge.between(Prior(), policy, OBS[index], ACTION[index])
        return forward(annealing, bridge, untuned(annealing, bridge, len(index)))[0]

    with torch.no_grad():
        every = enumerate_draws(program, num_rows=2)
        return every.expectation(every.result.exp())


def test_the_weight_is_unbiased_by_summing_over_every_draw() -> None:
    exact = tabular().log_pi()[OBS, ACTION].detach().exp()
    assert torch.allclose(expected_weight((Independence(),)), exact, atol=1e-10)
    assert torch.allclose(expected_weight((Independence(), Independence()), temperatures=2), exact, atol=1e-10)


def test_a_kernel_that_moves_the_law_is_found_out() -> None:
    exact = tabular().log_pi()[OBS, ACTION].detach().exp()
    assert (
        float((expected_weight((Stuck(),)) - exact).abs().min()) > 1e-4
    )  # a million times the rounding of the right kernel


def test_the_way_back_is_unbiased_for_the_inverse_and_the_bounds_hold() -> None:
    """Over every draw: E 1 / w_hat = 1 / pi from exact posterior draws beside a forward chain, and E log w_hat >=."""
    policy = tabular()
    annealing = Annealing(num_temperatures=2, num_chains=1, kernels=(Independence(),), schedule="linear", start=Prior())

    def program(index: Tensor) -> Tensor:
        bridge = Bridge.between(Prior(), policy, OBS[index], ACTION[index])
        tuning = untuned(annealing, bridge, len(index))
        ahead = forward(annealing, bridge, tuning)[0]
        back = [
            backward(annealing, bridge, tuning, {"z": torch.full_like(index, z)}) for z in range(2)
        ]  # from each latent, weighed by its posterior below
        return torch.stack([ahead, *back], -1)

    with torch.no_grad():
        every = enumerate_draws(program, num_rows=2)
        exact = policy.log_pi()[OBS, ACTION]
        posterior = policy.log_posterior()[OBS, ACTION].exp()[every.row]
        ahead, back = every.result[:, :1], every.result[:, 1:]
        mean = torch.logaddexp(ahead, back) - math.log(2)
        inverse = every.expectation((posterior * (-mean).exp()).sum(-1))
        upper = every.expectation((posterior * mean).sum(-1))
        lower = every.expectation(ahead[:, 0])
        alone = every.expectation((posterior * (-back).exp()).sum(-1))
    assert torch.allclose(inverse, (-exact).exp(), rtol=1e-10)
    assert torch.allclose(alone, (-exact).exp(), rtol=1e-10)
    assert bool((lower < exact).all()) and bool((exact < upper).all())


@pytest.mark.parametrize("kernel", [HMC(), HMC(num_leapfrog=1), RandomWalk()], ids=repr)
def test_a_kernel_leaves_the_tempered_law_as_it_is(kernel: Kernel) -> None:
    """At beta = 1 chains from the exact posterior stay there: means and variances of 4,000 within five errors."""
    policy, obs, action = gaussian(2, rows=3)
    with seeded(2), torch.no_grad():
        bridge = Bridge.between(Prior(), policy, obs, action)
        posterior = policy.posterior(obs, action)
        state = bridge.at({"z": posterior.sample((4000,))})
        step, spread = torch.ones(3, dtype=torch.float64), {"z": posterior.variance.sqrt().unsqueeze(0)}
        accepted = []
        for _ in range(4):
            moved = kernel.move(bridge, state, 1.0, step=step, spread=spread)
            state = moved.state
            accepted.append(float(moved.acceptance.mean()))
        z = (state.latents["z"] - posterior.mean) / posterior.variance.sqrt()
    assert float(z.mean(0).abs().max()) < 5 / math.sqrt(4000)
    assert float((z.var(0) - 1).abs().max()) < 5 * math.sqrt(2 / 4000)
    assert 0.2 < sum(accepted) / 4 < 0.9999  # it moves, and there is something to reject
    scored = bridge.at(state.latents)
    assert torch.allclose(scored.log_joint, state.log_joint) and torch.allclose(scored.log_start, state.log_start)


@pytest.mark.parametrize("kernels", [(HMC(),), (RandomWalk(), HMC(num_leapfrog=1))], ids=repr)
def test_the_real_path_is_unbiased_and_agrees_with_the_closed_form(kernels: tuple[Kernel, ...]) -> None:
    """Means of 12 x 200 weights w / pi within five of their standard errors of one; the bound within .1 nats below."""
    policy, obs, action = gaussian()
    annealing = Annealing(num_temperatures=12, num_chains=200, kernels=kernels, start=Prior())
    with seeded(3), torch.no_grad():
        bridge = Bridge.between(Prior(), policy, obs, action)
        exact = policy.log_pi(obs, action)
        relative = (forward(annealing, bridge, pilot(annealing, bridge)) - exact).exp()
    error = float(relative.std(0).square().mean().sqrt()) / math.sqrt(relative.numel())
    assert abs(float(relative.mean()) - 1) < 5 * error
    assert error < 0.1
    bound = relative.mean(0).log()
    assert -0.1 < float(bound.mean()) < 0.05


def test_annealing_gains_what_importance_sampling_lacks() -> None:
    """The same 8 chains of 6 dimensions: 15 temperatures between lose less than a quarter of what none do."""
    policy, obs, action = gaussian(6)
    exact = float(policy.log_pi(obs, action).detach().mean())
    cluster = torch.arange(12)
    lost, methods = [], []
    for temperatures in (1, 16):
        annealing = Annealing(num_temperatures=temperatures, num_chains=8, start=Prior())
        with seeded(4):
            found = annealed_likelihood(policy, obs, action, cluster, annealing=annealing)
        lost.append(exact - found.per_row.value)
        methods.append((found.kind, found.method))
    assert methods[1] == (LOWER_BOUND, "annealed importance sampling, T = 16, K = 8")
    assert lost[0] > 1.0
    assert abs(lost[1]) < 0.25 * lost[0]


def test_the_sandwich_holds_the_truth_and_closes() -> None:
    """On dreamed rows the mean of log pi lies between the bounds, and the gap is their difference."""
    policy, obs, _ = gaussian(3, rows=30)
    gaps = []
    for temperatures in (1, 12):
        annealing = Annealing(num_temperatures=temperatures, num_chains=8, start=Prior())
        with seeded(5):
            found = sandwich(policy, obs, torch.arange(30), annealing=annealing)
        with seeded(5):
            exact = policy.log_pi(obs, act(policy, obs).action).detach()  # the first draws of the same stream
        noise = 4 * float((found.upper - found.lower).std()) / math.sqrt(30)
        assert float((exact - found.lower).mean()) > -noise
        assert float((found.upper - exact).mean()) > -noise
        assert found.gap.value == pytest.approx(found.above.value - found.below.value)
        gaps.append(found.gap.value)
        assert "30 dreamed rows" in found.lines()[0]
    assert gaps[1] < 0.5 * gaps[0]


def test_discrete_latents_are_annealed_too() -> None:
    policy = tabular(5)
    obs = torch.arange(20) % 2
    with seeded(6):
        action = act(policy, obs).action
        annealing = Annealing(num_temperatures=6, num_chains=64, kernels=(Independence(),), start=Prior())
        found = annealed_likelihood(policy, obs, action, torch.arange(20), annealing=annealing)
    exact = policy.log_pi()[obs, action].detach()
    assert float((found.log_prob - exact).mean().abs()) < 0.05


def test_the_pilot_reaches_its_acceptance() -> None:
    """Kernels ten times too long are brought back; the step is fixed by row and temperature."""
    policy, obs, action = gaussian()
    annealing = Annealing(num_temperatures=12, num_chains=100, kernels=(HMC(step_size=3.0),), start=Guide())
    with seeded(7), torch.no_grad():
        bridge = Bridge.between(Guide(), policy, obs, action)
        tuning = pilot(annealing, bridge)
        assert float(tuning.step[-1][0].max()) < 0.7
        state = bridge.at({"z": policy.posterior(obs, action).sample((200,))})
        moved = annealing.kernels[0].move(bridge, state, 1.0, step=tuning.step[-1][0], spread=tuning.spread[-1])
    assert 0.5 < float(moved.acceptance.mean()) < 0.99
    assert (len(tuning.step), len(tuning.spread)) == (11, 11)


def test_temperatures_run_from_zero_to_one() -> None:
    for schedule in ("linear", "sigmoid"):
        betas = Annealing(num_temperatures=9, schedule=schedule).temperatures()
        assert (betas[0], betas[-1], len(betas)) == (0.0, 1.0, 10)
        assert all(b > a for a, b in itertools.pairwise(betas))
    bent = Annealing(num_temperatures=2, schedule="sigmoid").temperatures()
    assert bent[1] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (lambda: Annealing(num_temperatures=0), "`num_temperatures`"),
        (lambda: Annealing(num_chains=0), "`num_chains`"),
        (lambda: Annealing(kernels=()), "`kernels`"),
        (lambda: Annealing(pilot_chains=1), "`pilot_chains`"),
        (lambda: Annealing(schedule="steep"), "`schedule`"),
        (lambda: HMC(step_size=0.0), "`step_size`"),
        (lambda: HMC(num_leapfrog=0), "`num_leapfrog`"),
        (lambda: RandomWalk(step_size=math.inf), "`step_size`"),
    ],
)
def test_choices_out_of_range_are_refused(call: Callable[[], object], told: str) -> None:
    with pytest.raises(OptionError, match=told):
        call()


def test_a_trajectory_that_leaves_the_numbers_is_rejected() -> None:
    policy, obs, action = gaussian()
    with seeded(8), torch.no_grad():
        bridge = Bridge.between(Prior(), policy, obs, action)
        state = bridge.begin(4)
        spread = {"z": torch.full((1, 12, 3), 1e200, dtype=torch.float64)}
        moved = HMC().move(bridge, state, 0.5, step=torch.ones(12, dtype=torch.float64), spread=spread)
    assert torch.equal(moved.state.latents["z"], state.latents["z"])
    assert float(moved.acceptance.max()) == 0.0


@pytest.mark.production
def test_latents_that_no_kernel_moves_are_refused() -> None:
    policy = tabular()
    with pytest.raises(SiteError, match=r"no latent takes any real value[\s\S]*Independence"):
        annealed_likelihood(policy, OBS, ACTION, torch.arange(2))


def test_a_category_beside_a_gaussian_needs_a_kernel_of_its_own() -> None:
    policy = TwoLevelPolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), num_modes=2, hidden=(4,))
    with seeded(9):
        obs = torch.zeros(4, 2)
        action = act(policy, obs).action
        with pytest.raises(EstimatorError, match=r"no kernel moves some[\s\S]*\['mode', 'style'\]"):
            annealed_likelihood(policy, obs, action, torch.arange(4))
        annealing = Annealing(num_temperatures=3, num_chains=4, kernels=(Independence(), HMC()))
        assert annealed_likelihood(policy, obs, action, torch.arange(4), annealing=annealing).log_prob.shape == (4,)


def test_an_impossible_action_is_told() -> None:
    policy = TabularLatentPolicy(torch.zeros(1, 2), torch.tensor([[[0.0, -torch.inf], [0.0, -torch.inf]]]))
    annealing = Annealing(num_temperatures=2, kernels=(Independence(),), start=Prior())
    with pytest.raises(WeightError, match="no latent can produce"):
        annealed_likelihood(policy, torch.tensor([0]), torch.tensor([1]), torch.tensor([0]), annealing=annealing)


@pytest.mark.production
def test_episodes_are_checked() -> None:
    policy, obs, _ = gaussian()
    with pytest.raises(ShapeError, match="one integer a row"):
        sandwich(policy, obs, torch.zeros(12))
