"""Use of the latent: closed forms, bounds of the information against the exact one, priors that miss, and the hook."""

import math
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces

from latentpg.errors import EstimatorError, OptionError, ShapeError
from latentpg.evaluation.collapse import (
    LatentSource,
    act_with,
    draw_from_prior,
    from_bank,
    measure_information,
    measure_mismatch,
    measure_sensitivity,
    measure_units,
    prior_mean,
)
from latentpg.numerics.rng import seeded
from latentpg.numerics.statistics import Interval
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.policies import EpisodePolicy, GaussianLatent, TwoLevelPolicy
from latentpg.programs import act, draw_guide, score_prior
from tests.examiner.models import TwoSiteTables


def line(guide_weight: float, *, weight: float = 1.0, guide_loc: float = 0.0) -> LinearGaussianPolicy:
    """Two latents N(0, 1), of which the action ``weight * z_0`` + noise N(0, .25) sees the first alone."""
    return LinearGaussianPolicy(
        prior_loc=torch.zeros(1, 2),
        prior_log_scale=torch.zeros(1, 2),
        weight=torch.tensor([[[weight, 0.0]]]),
        bias=torch.zeros(1, 1),
        log_noise=torch.tensor([math.log(0.5)]),
        guide_weight=torch.tensor([[[guide_weight], [0.0]]]),
        guide_bias=torch.full((1, 2), guide_loc),
        guide_log_scale=torch.tensor([[math.log(0.5), 0.0]]),
    )


ROWS = 200
OBS = torch.zeros(ROWS, dtype=torch.int64)
EACH = torch.arange(ROWS)


def test_units_written_out() -> None:
    """KL(N(.8 a, .25) || N(0, 1)) averaged is (.25 + .64 mean a^2 - 1)/2 + ln 2; the activity is .64 var a."""
    policy = line(0.8)
    with seeded(0):
        action = act(policy, OBS).action
        found = measure_units(policy, OBS, action, num_particles=2)
    a = action.squeeze(-1)
    expected = 0.5 * (0.25 + 0.64 * float(a.square().mean()) - 1) + math.log(2)
    assert found.kl["z"].tolist() == pytest.approx([expected, 0.0])
    assert found.activity["z"].tolist() == pytest.approx([0.64 * float(a.var()), 0.0])
    assert found.active == 1
    assert found.whole["z"] == pytest.approx(expected)


def test_what_follows_from_the_observation_alone_is_no_activity() -> None:
    """A guide that repeats a prior which moves with s: its mean varies over the data, and no unit is active."""
    with seeded(1):
        policy = LinearGaussianPolicy(
            prior_loc=3 * torch.randn(8, 2),
            prior_log_scale=torch.zeros(8, 2),
            weight=torch.ones(8, 1, 2),
            bias=torch.zeros(8, 1),
            log_noise=torch.zeros(8),
        )
    found = measure_units(policy, torch.arange(8), torch.zeros(8, 1, dtype=torch.float64))
    assert found.active == 0 and float(found.kl["z"].abs().max()) < 1e-12


def test_a_category_is_one_unit_and_a_later_site_depends_on_it() -> None:
    policy = TwoLevelPolicy(
        spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), num_modes=3, style_size=2, hidden=(4,)
    ).double()
    obs = torch.zeros(6, 2, dtype=torch.float64)
    with seeded(2):
        found = measure_units(policy, obs, act(policy, obs).action)
    assert {name: len(value) for name, value in found.kl.items()} == {"mode": 1, "style": 2}
    assert list(found.activity) == ["style"]
    assert all(bool((value >= 0).all()) for value in found.kl.values())


def test_a_mixture_prior_is_held_against_by_draws() -> None:
    r"""Two far components, the guide on one of them: each coordinate whose marginal is a mixture costs ln 2.

    q is the component at (9, 0); p is that and one at (-9, 0). The first coordinate's marginal has half its mass there,
    ln 2 nats; the second's is q's own, none. Altogether ln 2: both coordinates tell of one choice.
    """
    policy = EpisodePolicy(
        spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)), latent=GaussianLatent(2, "mixture", 2), hidden=(4,)
    ).double()
    with torch.no_grad():
        policy.prior.place(torch.tensor([[9.0, 0.0], [-9.0, 0.0]]), torch.zeros(2, 2))  # type: ignore[operator]
        last = policy.guide_net.readout.layers[-1]
        for parameter in last.parameters():
            parameter.zero_()
        assert isinstance(last, torch.nn.Linear)
        last.bias[0] = 9.0
    obs, action = torch.randn(50, 2).double(), torch.randn(50, 1).double()
    with seeded(8):
        found = measure_units(policy, obs, action, num_particles=16)
    assert found.kl["z"].tolist() == pytest.approx([math.log(2), 0.0], abs=1e-9)
    assert found.whole["z"] == pytest.approx(math.log(2), abs=1e-9)
    assert found.activity["z"].tolist() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_a_site_without_a_closed_form_is_one_unit_by_draws() -> None:
    """KL(Laplace(0, 1) || N(0, 1)) = ln sqrt(2 pi) + E a^2 / 2 - 1 - ln 2, E a^2 = 2; 64,000 draws of spread 1.2."""
    with seeded(3):
        found = measure_units(Heavy(), torch.zeros(1000, 1), torch.zeros(1000, 1), num_particles=64)
    exact = 0.5 * math.log(2 * math.pi) + 1 - 1 - math.log(2)
    assert found.kl["z"].tolist() == pytest.approx([exact], abs=0.03)
    assert found.whole["z"] == found.kl["z"].item() and not found.activity


class Heavy:
    """A standard prior, and a Laplace guide whose divergence from it torch does not know."""

    def model(self, obs: torch.Tensor, action: torch.Tensor | None = None) -> torch.Tensor:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(obs)), 1.0))
        return pyro.sample("action", dist.Normal(z.unsqueeze(-1), 1.0).to_event(1), obs=action)

    def guide(self, obs: torch.Tensor, action: torch.Tensor | None) -> None:
        pyro.sample("z", dist.Laplace(torch.zeros(len(obs)), 1.0))

    def prior_parameters(self) -> list[torch.nn.Parameter]:
        return []

    decoder_parameters = guide_parameters = prior_parameters


def test_sites_in_another_order_have_no_divergence_of_their_own() -> None:
    policy = TwoSiteTables(
        *(torch.zeros(shape) for shape in ((1, 2), (1, 2, 2), (1, 2, 2, 2), (1, 2, 2), (1, 2, 2, 2)))
    )
    with pytest.raises(EstimatorError, match="another order"):
        measure_units(policy, torch.zeros(3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64))


def test_the_information_lies_between_its_bounds() -> None:
    """I(z; a) of a + noise: half the log of (1 + .25) / .25; 2,000 rows, 99.99 % intervals."""
    obs = torch.zeros(2000, dtype=torch.int64)
    exact = 0.5 * math.log(5)
    with seeded(3):
        found = measure_information(line(0.8), obs, torch.arange(2000), num_particles=64, level=0.9999)
    assert found.lower.low <= exact <= found.upper.high
    assert found.lower.value < found.upper.value < found.lower.value + 0.1
    assert not found.saturated


def test_the_information_of_a_table_is_bounded() -> None:
    with seeded(4):
        policy = TabularLatentPolicy.random(num_states=1, num_latents=4, num_actions=3, scale=2.0)
        obs = torch.zeros(2000, dtype=torch.int64)
        found = measure_information(policy, obs, torch.arange(2000), num_particles=256, level=0.9999)
    joint = policy.log_joint()[0].detach()
    exact = float((joint.exp() * (policy.log_decoder()[0].detach() - joint.logsumexp(0))).sum())
    assert found.lower.low <= exact <= found.upper.high
    assert found.upper.value - found.lower.value < 0.05


def test_a_decoder_that_ignores_its_latent_has_none() -> None:
    with seeded(5):
        found = measure_information(line(0.0, weight=0.0), OBS, EACH, num_particles=16)
    assert found.lower.value == pytest.approx(0.0, abs=1e-12) == found.upper.value


def test_the_cap_is_told() -> None:
    """ln(1 + 4e6) / 2 = 7.6 nats of information, of which 16 particles can show 2.77 and no more."""
    with seeded(6):
        found = measure_information(line(0.8, weight=1000.0), OBS, EACH, num_particles=16)
    assert found.cap == pytest.approx(math.log(16))
    assert found.lower.value <= found.cap and found.saturated
    assert found.upper.value > 7.6


def test_a_prior_that_matches_is_not_told_from_the_guide() -> None:
    """At the exact posterior of the policy's own actions the two are one law: p-values are spread over (0, 1)."""
    policy = line(0.8)  # .8 a with variance .2; .25 is near enough for nobody to see
    with torch.no_grad():
        policy.guide_log_scale.copy_(torch.tensor([[0.5 * math.log(0.2), 0.0]]))
    low = 0
    with seeded(7):
        for _ in range(60):
            action = act(policy, OBS[:60]).action
            low += measure_mismatch(policy, OBS[:60], action, EACH[:60] // 2, num_exchanges=60).p_value <= 0.05
    # 60 tests at .05: 3 expected, and 10 or more have a chance of one in a thousand
    assert low < 10


def test_a_guide_elsewhere_is_told() -> None:
    policy = line(0.8, guide_loc=1.0)
    with seeded(8):
        action = act(policy, OBS).action
        found = measure_mismatch(policy, OBS, action, EACH // 4)
    assert found.mmd > found.null > 0
    assert found.p_value == pytest.approx(1 / 201)


def test_categories_are_compared_as_indicators() -> None:
    """A guide that always says 0 beside an even prior of two."""
    guide = torch.tensor([[[9.0, -9.0], [9.0, -9.0]]])
    policy = TabularLatentPolicy(torch.zeros(1, 2), torch.zeros(1, 2, 2), guide)
    with seeded(9):
        found = measure_mismatch(policy, OBS, OBS, EACH)
    assert found.p_value == pytest.approx(1 / 201)


def test_the_statistic_written_out() -> None:
    """Four rows, guide at 0 and prior at 1: every pair adds k(0) + k(0) - 2 k(1), the median distance being 1."""
    policy = LinearGaussianPolicy(
        prior_loc=torch.ones(1, 1),
        prior_log_scale=torch.full((1, 1), -40.0),
        weight=torch.ones(1, 1, 1),
        bias=torch.zeros(1, 1),
        log_noise=torch.zeros(1),
        guide_weight=torch.zeros(1, 1, 1),
        guide_bias=torch.zeros(1, 1),
        guide_log_scale=torch.full((1, 1), -40.0),
    )
    action = torch.zeros(4, 1, dtype=torch.float64)
    found = measure_mismatch(policy, torch.zeros(4, dtype=torch.int64), action, torch.arange(4), num_exchanges=20)
    kernel = sum(math.exp(-1 / (2 * width**2)) for width in (0.5, 1.0, 2.0)) / 3
    assert found.mmd == pytest.approx(2 - 2 * kernel, rel=1e-6)


def test_the_hook_draws_z_as_it_is_told() -> None:
    """Actions of a decoder 1000 z_0: from the mean they are near 0, from a bank of 5 near 5,000, else spread."""
    policy = line(0.8, weight=1000.0)
    bank = {"z": torch.full((3, 2), 5.0, dtype=torch.float64)}
    sources = {"prior": draw_from_prior, "mean": prior_mean, "bank": from_bank(bank)}

    def measure(source: LatentSource) -> Interval:
        action = act_with(policy, OBS, source)
        assert action.shape == (ROWS, 1)
        return Interval(float(action.mean()), float(action.min()), float(action.max()))

    with seeded(10):
        found = measure_sensitivity(sources, measure)
    assert list(found) == ["prior", "mean", "bank"]
    assert -3 < found["mean"].low < found["mean"].high < 3
    assert 4990 < found["bank"].low < found["bank"].high < 5010
    assert found["prior"].low < -1000 and found["prior"].high > 1000


def test_the_likeliest_category_is_the_mean_of_a_discrete_prior() -> None:
    policy = TabularLatentPolicy(torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 0.0]]), torch.zeros(2, 3, 2))
    assert prior_mean(policy, torch.tensor([0, 1, 0]))["z"].tolist() == [1, 0, 1]


def test_a_later_site_is_taken_at_the_category_that_was_chosen() -> None:
    policy = TwoLevelPolicy(spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (2,)), num_modes=3, style_size=2, hidden=(4,))
    with seeded(12):
        obs = torch.randn(5, 2)
    found = {name: value.unsqueeze(0) for name, value in prior_mean(policy, obs).items()}
    prior = score_prior(policy, obs, found).distributions
    modes = prior["mode"].enumerate_support(expand=False)
    assert torch.equal(found["mode"][0], prior["mode"].log_prob(modes).argmax(0))
    assert torch.equal(found["style"], prior["style"].mean)


def test_a_bank_holds_what_the_guide_drew() -> None:
    policy = line(0.8)
    with seeded(11):
        bank = draw_guide(policy, OBS, act(policy, OBS).action, num_particles=1).latents["z"][0].detach()
        drawn = from_bank({"z": bank})(policy, OBS[:50])["z"]
    assert drawn.shape == (50, 2)
    assert bool((drawn.unsqueeze(1) == bank).all(-1).any(1).all())


@pytest.mark.production
@pytest.mark.parametrize(
    ("call", "error", "told"),
    [
        (lambda: measure_information(line(1.0), OBS, EACH, num_particles=1), OptionError, "2 or more"),
        (lambda: measure_information(line(1.0), OBS, EACH[:3]), ShapeError, "one integer a row"),
        (
            lambda: measure_mismatch(line(1.0), OBS, torch.zeros(ROWS, 1).double(), EACH // 100),
            OptionError,
            "4 episodes",
        ),
        (
            lambda: measure_mismatch(line(1.0), OBS, torch.zeros(ROWS, 1).double(), EACH, num_exchanges=3),
            OptionError,
            "20 exchanges",
        ),
        (lambda: from_bank({}), ShapeError, "`bank`"),
        (lambda: from_bank({"a": torch.zeros(2), "b": torch.zeros(3)}), ShapeError, "the same N"),
        (lambda: measure_sensitivity({}, lambda source: Interval(0.0, 0.0, 0.0)), OptionError, "at least one"),
    ],
)
def test_what_cannot_be_asked_is_refused(call: Callable[[], object], error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        call()
