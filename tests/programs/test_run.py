"""Acting, proposing, scoring, enumerating: what each run draws, records and leaves alone."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentpg.errors import OptionError, ShapeError, SiteError
from latentpg.numerics.rng import seeded
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy, from_pyro
from latentpg.programs import (
    Categorical,
    LatentPolicy,
    MultiBernoulli,
    MultiCategorical,
    Span,
    act,
    conditionals,
    draw_guide,
    draw_prior,
    log_joint,
    row_blocks,
    score_guide,
    score_prior,
    support,
)
from tests.programs.reference import Plain, bernstein, off_by, stream_untouched

EXACT = 1e-12
OBS = spaces.Box(-1.0, 1.0, (3,))
ACTION = spaces.Box(-1.0, 1.0, (2,))


def ready_made() -> list[nn.Module]:
    return [
        MixturePolicy(OBS, ACTION, hidden=(8,)).double(),
        GaussianPolicy(OBS, ACTION, hidden=(8,)).double(),
        TwoLevelPolicy(OBS, ACTION, hidden=(8,)).double(),
    ]


def latent_policy(module: nn.Module) -> LatentPolicy:
    assert isinstance(module, LatentPolicy)
    return module


def observations(rows: int, *, steps: int | None = None) -> Tensor | Span:
    if steps is None:
        return torch.randn(rows, 3, dtype=torch.float64)
    mask = torch.rand(rows, steps) < 0.7
    mask[:, 0] = True
    return Span(torch.randn(rows, steps, 3, dtype=torch.float64), mask)


# ---------------------------------------------------------------------------------------------------------- acting


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("steps", [None, 4])
def test_the_guard_what_was_recorded_while_acting_can_be_recomputed(index: int, steps: int | None) -> None:
    """And a moved parameter, a moved observation or rows out of step are seen by it."""
    module = ready_made()[index]
    policy, obs = latent_policy(module), observations(6, steps=steps)
    acted = act(policy, obs)
    kept = {name: value.unsqueeze(0) for name, value in acted.latents.items()}
    again = log_joint(policy, obs, acted.action, kept)[0]
    assert off_by(again, acted.log_joint) < EXACT

    out_of_step = log_joint(policy, obs, acted.action.roll(1, 0), kept)[0]
    assert float((out_of_step - acted.log_joint).detach().abs().min()) > 1e-6
    with torch.no_grad():
        policy.decoder_parameters()[0].add_(1e-3)
    assert float((log_joint(policy, obs, acted.action, kept)[0] - acted.log_joint).detach().abs().max()) > 1e-6


@pytest.mark.parametrize("index", range(3))
def test_acting_draws_no_gradient(index: int) -> None:
    module = ready_made()[index]
    acted = act(latent_policy(module), observations(4))
    tensors = [acted.action, acted.log_joint, *acted.latents.values()]
    assert not any(tensor.requires_grad or tensor.grad_fn is not None for tensor in tensors)
    assert all(parameter.grad is None for parameter in module.parameters())
    with torch.inference_mode():
        assert act(latent_policy(module), observations(4)).log_joint.shape == (4,)


@pytest.mark.parametrize("index", range(3))
def test_a_seeded_scope_repeats_what_is_drawn_and_leaves_the_streams_outside_as_they_were(index: int) -> None:
    policy, obs = latent_policy(ready_made()[index]), observations(4)
    numpy_before = np.random.get_state(legacy=False)

    def drawn(seed: int) -> list[Tensor]:
        with seeded(seed):
            acted = act(policy, obs)
            prior = draw_prior(policy, obs, num_particles=3)
            guide = draw_guide(policy, obs, acted.action, num_particles=3)
        return [acted.action, *acted.latents.values(), *prior.latents.values(), *guide.latents.values()]

    with stream_untouched():
        first, second, other = drawn(3), drawn(3), drawn(4)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))
    assert str(np.random.get_state(legacy=False)) == str(numpy_before)


@pytest.mark.parametrize("index", range(3))
def test_scoring_draws_nothing(index: int) -> None:
    policy, obs = latent_policy(ready_made()[index]), observations(4)
    acted = act(policy, obs)
    kept = {name: value.unsqueeze(0) for name, value in acted.latents.items()}
    with stream_untouched():
        log_joint(policy, obs, acted.action, kept)
        score_prior(policy, obs, kept)
        score_guide(policy, obs, acted.action, kept)
        conditionals(policy, obs, kept)
    with pytest.raises(AssertionError), stream_untouched():
        act(policy, obs)  # without a scope it is the ambient stream that is drawn from


def test_acting_draws_latent_and_action_from_their_joint_law() -> None:
    """Frequencies of (z, a) over 40,000 rows against the exact probabilities, by a Bernstein bound."""
    draws = 40_000
    policy = MixturePolicy(OBS, spaces.Discrete(3), num_components=3, hidden=(8,)).double()
    obs = torch.randn(1, 3, dtype=torch.float64).expand(draws, 3)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.mul_(3.0)
        acted = act(policy, obs)
        pairs = torch.cartesian_prod(torch.arange(3), torch.arange(3))
        exact = log_joint(policy, obs[:9], pairs[:, 1], {"z": pairs[:, :1].T.contiguous()})[0].exp()
    assert abs(float(exact.sum()) - 1.0) < EXACT
    counts = torch.bincount(acted.latents["z"] * 3 + acted.action, minlength=9)
    assert bool(((counts / draws - exact).abs() < bernstein(exact, draws)).all())


# ------------------------------------------------------------------------------------------------ proposing, scoring


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize("rows, particles", [(3, 5), (4, 4)])
def test_what_was_drawn_is_scored_the_same_when_it_is_given(index: int, rows: int, particles: int) -> None:
    policy, obs = latent_policy(ready_made()[index]), observations(rows)
    action = torch.randn(rows, 2, dtype=torch.float64)
    prior = draw_prior(policy, obs, num_particles=particles)
    guide = draw_guide(policy, obs, action, num_particles=particles)
    for drawn, scored in (
        (prior, score_prior(policy, obs, prior.latents)),
        (guide, score_guide(policy, obs, action, guide.latents)),
    ):
        assert off_by(drawn.log_prob, scored.log_prob) < EXACT
        assert set(drawn.distributions) == set(drawn.latents) == set(drawn.log_prob_by_site)
        by_site = torch.stack([value.expand(particles, rows) for value in drawn.log_prob_by_site.values()]).sum(0)
        assert off_by(by_site, drawn.log_prob) < EXACT


def test_prior_and_scores_leave_out_what_they_need_not_run() -> None:
    """Scoring latents stops at the last of them: a decoder that would raise is not reached."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        raise ZeroDivisionError

    obs = torch.zeros(3, 3)
    assert score_prior(Plain(model), obs, {"z": torch.zeros(2, 3)}).log_prob.shape == (2, 3)
    with pytest.raises(ZeroDivisionError):
        draw_prior(Plain(model), obs, num_particles=2)


def test_pathwise_draws_reach_the_guide_and_others_do_not() -> None:
    policy, obs = GaussianPolicy(OBS, ACTION, hidden=(8,)), torch.randn(4, 3)
    action, guide = torch.randn(4, 2), policy.guide_parameters()
    pathwise = draw_guide(policy, obs, action, num_particles=3, pathwise=True).latents["z"]
    reached = torch.autograd.grad(pathwise.sum(), guide)
    assert all(bool(gradient.abs().sum() > 0) for gradient in reached)
    assert not draw_guide(policy, obs, action, num_particles=3).latents["z"].requires_grad


def test_conditionals_are_the_distributions_at_the_given_latents() -> None:
    policy, obs = TwoLevelPolicy(OBS, spaces.Discrete(3), hidden=(8,)), torch.randn(4, 3)
    drawn = draw_prior(policy, obs, num_particles=5)
    met = conditionals(policy, obs, drawn.latents)
    assert set(met) == {"mode", "style", "action"}
    total = met["mode"].log_prob(drawn.latents["mode"]) + met["style"].log_prob(drawn.latents["style"])
    assert torch.allclose(total, drawn.log_prob)
    action = torch.tensor([0, 1, 2, 0])
    joint = log_joint(policy, obs, action, drawn.latents)
    assert torch.allclose(joint, total + met["action"].log_prob(action), atol=1e-6)


@settings(max_examples=20)
@given(rows=st.integers(1, 9), particles=st.integers(1, 5), block=st.integers(1, 50), steps=st.sampled_from([None, 3]))
def test_blocks_of_rows_change_no_value_and_no_gradient(
    rows: int, particles: int, block: int, steps: int | None
) -> None:
    policy = GaussianPolicy(OBS, ACTION, hidden=(8,)).double()
    obs = observations(rows, steps=steps)
    shape = (rows, 2) if steps is None else (rows, steps, 2)
    action = torch.randn(*shape, dtype=torch.float64)
    latents = draw_prior(policy, obs, num_particles=particles).latents
    cotangent = torch.randn(particles, rows, dtype=torch.float64)
    parameters = [*policy.prior_parameters(), *policy.decoder_parameters()]

    def run(size: int) -> tuple[Tensor, tuple[Tensor, ...]]:
        with row_blocks(size):
            value = log_joint(policy, obs, action, latents)
        return value.detach(), torch.autograd.grad((value * cotangent).sum(), parameters)

    whole, blocks = run(10**6), run(block)
    assert off_by(whole[0], blocks[0]) < EXACT
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(whole[1], blocks[1], strict=True))
    with row_blocks(block), torch.no_grad():
        assert off_by(log_joint(policy, obs, action, latents), whole[0]) < EXACT


def test_number_of_blocks_is_a_number() -> None:
    with pytest.raises(OptionError), row_blocks(0):
        pass


@pytest.mark.parametrize("count", [0, -3])
def test_no_particles_at_all_is_refused(count: int) -> None:
    policy, obs = MixturePolicy(OBS, ACTION, hidden=(8,)), torch.zeros(2, 3)
    with pytest.raises(OptionError, match="`num_particles`"):
        draw_prior(policy, obs, num_particles=count)
    with pytest.raises(OptionError, match="`num_particles`"):
        draw_guide(policy, obs, torch.zeros(2, 2), num_particles=count)


def test_latents_of_sites_that_the_program_has_not() -> None:
    policy, obs, action = MixturePolicy(OBS, ACTION, hidden=(8,)), torch.zeros(2, 3), torch.zeros(2, 2)
    for latents in ({}, {"zed": torch.zeros(3, 2)}, {"z": torch.zeros(3, 2).long(), "more": torch.zeros(3, 2)}):
        with pytest.raises(SiteError, match="sites"):
            log_joint(policy, obs, action, latents)
        with pytest.raises(SiteError, match="sites"):
            score_prior(policy, obs, latents)
    with pytest.raises(ShapeError, match="latent `z`"):
        log_joint(policy, obs, action, {"z": torch.zeros(3, 5, dtype=torch.int64)})


def test_policy_without_any_latent_is_its_own_single_particle() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        pyro.sample("action", dist.Normal(obs[:, 0], 1.0), obs=action)

    obs, action = torch.randn(4, 3).double(), torch.randn(4).double()
    expected = dist.Normal(obs[:, 0], 1.0).log_prob(action)
    assert torch.equal(log_joint(Plain(model), obs, action, {})[0], expected)
    assert act(Plain(model), obs).latents == {}
    assert support(Plain(model), obs) == {}


# ---------------------------------------------------------------------------------- programs that cannot broadcast


class Concatenating(nn.Module):
    """Joins observation and latent by ``torch.cat``, which no leading dimension survives."""

    def __init__(self) -> None:
        super().__init__()
        self.prior, self.decoder = nn.Linear(3, 2), nn.Linear(3 + 2 + 1, 2)
        self.guide_net = nn.Linear(3 + 2, 2)

    def _join(self, obs: Tensor, *parts: Tensor) -> Tensor:
        return torch.cat([obs, *parts], -1)

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(self.prior(obs), 1.0).to_event(1))
        c = pyro.sample("c", dist.Bernoulli(logits=z.sum(-1)))
        pyro.factor("penalty", -z.square().sum(-1))
        mean = self.decoder(self._join(obs, z, c.unsqueeze(-1)))
        pyro.sample("action", dist.Normal(mean, 1.0).to_event(1), obs=action)

    def guide(self, obs: Tensor, action: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(self.guide_net(self._join(obs, action)), 1.0).to_event(1))
        pyro.sample("c", dist.Bernoulli(logits=z.sum(-1)))


class Broadcasting(Concatenating):
    """The same, with the observation expanded to the latent first."""

    def _join(self, obs: Tensor, *parts: Tensor) -> Tensor:
        return torch.cat([obs.expand(*parts[0].shape[:-1], 3), *parts], -1)


@pytest.mark.parametrize("rows, particles", [(3, 5), (4, 4)])
def test_flattened_particles_are_those_of_the_program_that_broadcasts(rows: int, particles: int) -> None:
    flat, wide = Concatenating().double(), Broadcasting().double()
    wide.load_state_dict(flat.state_dict())
    obs, action = observations(rows), torch.randn(rows, 2, dtype=torch.float64)
    assert isinstance(obs, Tensor)
    flattened = from_pyro(flat.model, flat.guide, obs, action, flatten_particles=True)
    broadcast = from_pyro(wide.model, wide.guide, obs, action)
    drawn = draw_guide(flattened, obs, action, num_particles=particles)
    assert drawn.latents["z"].shape == (particles, rows, 2) and drawn.latents["c"].shape == (particles, rows)
    for score in (
        lambda policy: log_joint(policy, obs, action, drawn.latents),
        lambda policy: score_prior(policy, obs, drawn.latents).log_prob,
        lambda policy: score_guide(policy, obs, action, drawn.latents).log_prob,
    ):
        assert off_by(score(flattened), score(broadcast)) < EXACT
    assert off_by(score_guide(broadcast, obs, action, drawn.latents).log_prob, drawn.log_prob) < EXACT
    prior = draw_prior(flattened, obs, num_particles=particles)
    assert off_by(score_prior(broadcast, obs, prior.latents).log_prob, prior.log_prob) < EXACT
    assert act(flattened, obs).action.shape == (rows, 2)


def test_the_program_that_concatenates_says_how_to_mend_itself() -> None:
    program, obs = Concatenating(), torch.zeros(4, 3)
    with pytest.raises(ShapeError, match="flatten_particles=True"):
        log_joint(Plain(program.model), obs, torch.zeros(4, 2), {"z": torch.zeros(5, 4, 2), "c": torch.zeros(5, 4)})


# ----------------------------------------------------------------------------------------------------- enumeration


def many_sites(obs: Tensor, action: Tensor | None = None) -> None:
    """Four dependent discrete latents of every kind, 3 * 2 * 4 * 6 joint values."""
    a = pyro.sample("a", Categorical(obs))
    b = pyro.sample("b", dist.Bernoulli(logits=a.double() - 1.0 + obs[:, 0]))
    c = pyro.sample("c", MultiBernoulli(torch.stack([b, a.double()], -1) - obs[:, :2]))
    d = pyro.sample("d", MultiCategorical((c.sum(-1) + b).unsqueeze(-1) * obs[:, :1] + torch.arange(5.0), (2, 3)))
    pyro.sample("action", dist.Normal(a + b + c.sum(-1) + d.sum(-1).double(), 1.0), obs=action)


@pytest.mark.parametrize("rows", [1, 3, 144])
def test_support_lists_every_joint_value_of_dependent_sites_once(rows: int) -> None:
    """At 144 rows B is the number of joint values."""
    policy, obs = Plain(many_sites), torch.randn(rows, 3, dtype=torch.float64)
    points = support(policy, obs)
    shapes = {name: tuple(value.shape) for name, value in points.items()}
    assert shapes == {"a": (144, rows), "b": (144, rows), "c": (144, rows, 2), "d": (144, rows, 2)}
    joined = torch.cat([points["a"][..., None], points["b"][..., None], points["c"], points["d"]], -1)
    assert all(len(joined[:, row].unique(dim=0)) == 144 for row in range(rows))
    total = score_prior(policy, obs, points).log_prob.logsumexp(0)
    assert float(total.detach().abs().max()) < EXACT


def test_support_keeps_each_site_s_own_type() -> None:
    points = support(Plain(many_sites), torch.randn(2, 3, dtype=torch.float64))
    assert points["a"].dtype == points["d"].dtype == torch.int64
    assert points["c"].dtype == torch.float64


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_support_does_not_depend_on_which_site_comes_first(order: tuple[str, str]) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        for name in order:
            pyro.sample(name, dist.Categorical(logits=torch.zeros(2 if name == "a" else 3)))
        pyro.sample("action", dist.Normal(obs[:, 0], 1.0), obs=action)

    points = support(Plain(model), torch.zeros(4, 3))
    pairs = {(int(a), int(b)) for a, b in zip(points["a"][:, 0], points["b"][:, 0], strict=True)}
    assert pairs == {(a, b) for a in range(2) for b in range(3)}


@pytest.mark.parametrize(
    "site, says",
    [
        (dist.Normal(0.0, 1.0), "continuous"),
        (dist.Poisson(2.0), "infinite"),
        (dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), "MultiBernoulli"),
    ],
)
def test_sites_without_a_list_of_values_are_named(site: dist.TorchDistribution, says: str) -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        pyro.sample("mode", dist.Categorical(logits=torch.zeros(2)))
        pyro.sample("z", site)
        pyro.sample("action", dist.Normal(obs[:, 0], 1.0), obs=action)

    with pytest.raises(SiteError, match=says) as caught:
        support(Plain(model), torch.zeros(4, 3))
    assert "latent `z`" in str(caught.value) and "fix:" in str(caught.value)
