"""Reparameterised programs: the change of variables, its inverse, the gradient through phi, and what has no noise."""

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from latentpg.errors import EstimatorError
from latentpg.estimators import Particles, Reparameterized
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import (
    DiagNormal,
    LatentPolicy,
    Span,
    act,
    draw_prior,
    latents_to_noise,
    log_joint,
    reparameterize,
    score_model,
)
from tests.programs.reference import Plain, off_by

EXACT = 1e-12
OBS = spaces.Box(-1.0, 1.0, (3,))
ACTION = spaces.Box(-1.0, 1.0, (2,))


class Chain(nn.Module):
    """Three dependent location-scale latents of different families: scalar, vector, heavy-tailed."""

    def __init__(self, *, plate: bool) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.weights = nn.Parameter(torch.randn(6, generator=generator, dtype=torch.float64))
        self.plate = plate

    def transform(self, obs: Tensor, noise: Tensor) -> Tensor:
        """Map noise ``[..., 4]`` of one row to latents, written out: the sites in order, the vector's three last."""
        w, s = self.weights, obs[..., 0]
        first = w[0] * s + (w[1] * s).exp() * noise[..., 0]
        heavy = w[2] * first + 1.5 * noise[..., 1]
        rest = (first + heavy).unsqueeze(-1) * w[3] + (w[4] * first).exp().unsqueeze(-1) * noise[..., 2:]
        return torch.cat([first.unsqueeze(-1), heavy.unsqueeze(-1), rest], -1)

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        if not self.plate:
            return self._sites(obs, action)
        with pyro.plate("rows", obs.shape[0]):
            return self._sites(obs, action)

    def _sites(self, obs: Tensor, action: Tensor | None) -> None:
        w, s = self.weights, obs[..., 0]
        first = pyro.sample("first", dist.Normal(w[0] * s, (w[1] * s).exp()))
        heavy = pyro.sample("heavy", dist.StudentT(5.0, w[2] * first, 1.5))
        loc = ((first + heavy) * w[3]).unsqueeze(-1).expand(*first.shape, 2)
        scale = (w[4] * first).exp().unsqueeze(-1).expand(*first.shape, 2)
        rest = pyro.sample("rest", dist.Laplace(loc, scale).to_event(1))
        pyro.sample("action", dist.Normal(w[5] * rest.sum(-1) + heavy, 1.0), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        raise AssertionError("not needed")

    def prior_parameters(self) -> list[nn.Parameter]:
        return [self.weights]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return []

    guide_parameters = decoder_parameters


def pack(noise: dict[str, Tensor], suffix: str = "_decentered") -> Tensor:
    scalars = [noise["first" + suffix].unsqueeze(-1), noise["heavy" + suffix].unsqueeze(-1)]
    return torch.cat([*scalars, noise["rest" + suffix]], -1)


def unpack(packed: Tensor, suffix: str = "") -> dict[str, Tensor]:
    return {"first" + suffix: packed[..., 0], "heavy" + suffix: packed[..., 1], "rest" + suffix: packed[..., 2:]}


@settings(max_examples=15)
@given(rows=st.integers(1, 4), particles=st.integers(1, 4), plate=st.booleans())
def test_log_joint_over_noise_is_that_over_latents_plus_the_log_determinant(
    rows: int, particles: int, plate: bool
) -> None:
    """That is log p(eps, a) = log p(z, a) + log|dz/deps|, the Jacobian by autograd of the map written out."""
    chain, obs = Chain(plate=plate), torch.randn(rows, 3, dtype=torch.float64)
    action, noise = torch.randn(rows, dtype=torch.float64), torch.randn(particles, rows, 4, dtype=torch.float64)
    over_noise = log_joint(reparameterize(chain), obs, action, unpack(noise, "_decentered"))
    over_latents = log_joint(chain, obs, action, unpack(chain.transform(obs, noise)))
    log_determinant = torch.zeros(particles, rows, dtype=torch.float64)
    for k in range(particles):
        for b in range(rows):
            jacobian = torch.autograd.functional.jacobian(lambda eps, b=b: chain.transform(obs[b], eps), noise[k, b])
            log_determinant[k, b] = torch.linalg.slogdet(jacobian)[1]
    assert off_by(over_noise, over_latents + log_determinant) < EXACT


@pytest.mark.parametrize("plate", [False, True])
def test_noise_is_recovered_from_the_latents_it_made(plate: bool) -> None:
    chain, obs = Chain(plate=plate), torch.randn(5, 3, dtype=torch.float64)
    drawn = act(reparameterize(chain), obs)
    latents = unpack(chain.transform(obs, pack(dict(drawn.latents))).detach())
    recovered = latents_to_noise(chain, obs, latents)
    assert set(recovered) == set(drawn.latents)
    for name, value in drawn.latents.items():
        assert off_by(recovered[name], value) < 1e-10
        assert not recovered[name].requires_grad


@pytest.mark.parametrize("prior", ["learned", "standard"])
@pytest.mark.parametrize("steps", [None, 3])
def test_the_ready_made_gaussian_over_noise(prior: str, steps: int | None) -> None:
    """Recorded latents, turned to noise, have the likelihood they had; the noise is standard normal."""
    policy = GaussianPolicy(OBS, ACTION, prior=prior, hidden=(8,)).double()
    obs: Tensor | Span = torch.randn(4, 3, dtype=torch.float64)
    if steps is not None:
        obs = Span(torch.randn(4, steps, 3, dtype=torch.float64), torch.tensor([[True, True, False]]).expand(4, 3))
    acted = act(policy, obs)
    noise = latents_to_noise(policy, obs, acted.latents)
    before = score_model(policy, obs, acted.action, {"z": acted.latents["z"].unsqueeze(0)})
    after = score_model(
        reparameterize(policy), obs, acted.action, {name: value.unsqueeze(0) for name, value in noise.items()}
    )
    assert off_by(after.log_likelihood, before.log_likelihood) < EXACT
    standard = dist.Normal(0.0, 1.0).log_prob(noise["z_decentered"]).sum(-1)
    assert off_by(after.log_prior[0], standard) < EXACT
    log_scale = torch.zeros(4, dtype=torch.float64)
    if policy.prior is not None:
        first = obs.first if isinstance(obs, Span) else obs
        log_scale = policy.prior(first).chunk(2, -1)[1].sum(-1)
    assert off_by(after.log_prior[0], before.log_prior[0] + log_scale) < EXACT


def gaussian() -> LatentPolicy:
    return GaussianPolicy(OBS, ACTION, hidden=(8,)).double()


@pytest.mark.parametrize("make", [gaussian, lambda: Chain(plate=False)])
def test_gradient_through_phi_is_that_of_finite_differences(make: Callable[[], LatentPolicy]) -> None:
    """On stored noise, along random directions, by central differences of step 1e-5."""
    policy, obs = make(), torch.randn(4, 3, dtype=torch.float64)
    action = act(policy, obs).action
    particles = Reparameterized(6).propose(policy, obs, action)
    phi = list(policy.prior_parameters())

    def value() -> Tensor:
        return Reparameterized(6).estimate(policy, obs, action, particles).log_prob.sum()

    gradient = torch.autograd.grad(value(), phi)
    for _ in range(5):
        direction = [torch.randn_like(parameter) for parameter in phi]
        slope = torch.stack([(g * d).sum() for g, d in zip(gradient, direction, strict=True)]).sum()
        ends = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                for parameter, d in zip(phi, direction, strict=True):
                    parameter.add_(d, alpha=step)
                ends.append(value())
                for parameter, d in zip(phi, direction, strict=True):
                    parameter.sub_(d, alpha=step)
        assert off_by((ends[0] - ends[1]) / 2e-5, slope) < 1e-6


def test_phi_has_no_gradient_but_through_the_latent() -> None:
    """The noise's own density is free of parameters: fixed noise scores the same under every phi."""
    policy, obs = GaussianPolicy(OBS, ACTION, hidden=(8,)).double(), torch.randn(4, 3, dtype=torch.float64)
    drawn = draw_prior(reparameterize(policy), obs, num_particles=3)
    assert not drawn.log_prob.requires_grad
    assert torch.autograd.grad(
        Reparameterized(3)
        .estimate(policy, obs, torch.zeros(4, 2), Particles(drawn.latents, drawn.log_prob))
        .log_prob.sum(),
        policy.prior_parameters()[0],
    )[0].any()


@pytest.mark.parametrize("policy", [MixturePolicy(OBS, ACTION), TwoLevelPolicy(OBS, ACTION)])
def test_discrete_latents_have_no_noise(policy: MixturePolicy | TwoLevelPolicy) -> None:
    obs = torch.zeros(3, 3)
    with pytest.raises(EstimatorError, match="discrete latent"):
        draw_prior(reparameterize(policy), obs, num_particles=2)
    with pytest.raises(EstimatorError, match="discrete latent"):
        latents_to_noise(policy, obs, act(policy, obs).latents)


@pytest.mark.parametrize(
    "site",
    [
        dist.LogNormal(torch.tensor(0.0), 1.0),
        dist.Gamma(torch.tensor(2.0), 1.0),
        dist.HalfNormal(torch.tensor(1.0)),
        dist.Uniform(torch.tensor(0.0), 1.0),
    ],
)
def test_continuous_latents_that_are_no_location_and_scale(site: dist.TorchDistribution) -> None:
    """A LogNormal has attributes ``loc`` and ``scale`` and is not loc + scale * noise."""

    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", site)
        pyro.sample("action", dist.Normal(z + obs[:, 0], 1.0), obs=action)

    with pytest.raises(EstimatorError, match="latent `z` cannot be reparameterised"):
        draw_prior(reparameterize(Plain(model)), torch.zeros(3, 3), num_particles=2)


def test_a_gaussian_action_stays_as_it_is_and_there_is_no_guide() -> None:
    policy, obs = GaussianPolicy(OBS, ACTION, hidden=(8,)), torch.zeros(3, 3)
    acted = act(reparameterize(policy), obs)
    assert set(acted.latents) == {"z_decentered"} and acted.action.shape == (3, 2)
    with pytest.raises(EstimatorError, match="no guide"):
        reparameterize(policy).guide(obs, acted.action)


def test_a_location_without_rows_is_still_one_noise_a_row() -> None:
    def model(obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", DiagNormal(torch.zeros(2), obs[:, :2]))
        pyro.sample("action", dist.Normal(z.sum(-1), 1.0), obs=action)

    for particles in (3, 5):
        drawn = draw_prior(reparameterize(Plain(model)), torch.zeros(3, 3), num_particles=particles)
        assert drawn.latents["z_decentered"].shape == (particles, 3, 2)
        assert len(drawn.latents["z_decentered"].reshape(-1, 2).unique(dim=0)) == 3 * particles
