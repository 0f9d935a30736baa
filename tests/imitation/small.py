"""Models in small, whose answers are known, and sources of draws that make expectations exact."""

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.distributions import Distribution

from latentpg.data import Demonstrations, episode_rows
from latentpg.imitation import FitRows, span_rows
from latentpg.numerics.rng import seeded
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy
from latentpg.programs import act

BOX = (spaces.Box(-1, 1, (2,)), spaces.Box(-1, 1, (1,)))


class Signs:
    """Answer for Z Gaussian dimensions with the 2^Z points one deviation away: exact for whatever is quadratic in z."""

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        size = fn.event_shape[0]
        signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * size).reshape(-1, size)
        # one particle is asked for where only the distributions are looked at
        assert sample_shape[0] in (1, len(signs)), "2^Z particles"
        signs = signs[: sample_shape[0]]
        value = fn.mean + fn.variance.sqrt() * signs.unsqueeze(1)
        return value if pathwise else value.detach()


class Given:
    """Answer with given values by site, and with ``loc + scale * noise`` where noise is given for a Gaussian one."""

    def __init__(self, **values: Tensor) -> None:
        self.values = values

    def __call__(self, name: str, fn: Distribution, sample_shape: torch.Size, *, pathwise: bool) -> Tensor:
        value = self.values[name]
        return fn.mean + fn.variance.sqrt() * value if fn.has_rsample else value


def tabular(
    num_latents: int = 3, *, rows: int = 24, seed: int = 0, scale: float = 1.0
) -> tuple[TabularLatentPolicy, FitRows]:
    with seeded(seed):
        policy = TabularLatentPolicy.random(num_states=2, num_latents=num_latents, num_actions=4, scale=scale)
        obs = torch.arange(rows) % 2
        return policy, FitRows(obs, torch.randint(4, (rows,)), torch.arange(rows) // 3)


def gaussian(
    latent: int = 1, *, rows: int = 12, seed: int = 1, action: int = 2
) -> tuple[LinearGaussianPolicy, FitRows]:
    with seeded(seed):
        policy = LinearGaussianPolicy.random(num_states=3, latent_size=latent, action_size=action)
        obs = torch.arange(rows) % 3
        return policy, FitRows(obs, act(policy, obs).action, torch.arange(rows) // 2)


def made_policy(kind: str) -> MixturePolicy | GaussianPolicy | TwoLevelPolicy:
    """Build a small ready-made policy, always with the same parameters, in float64."""
    with seeded(5):
        if kind == "mixture":
            return MixturePolicy(*BOX, num_components=3, hidden=(6,)).double()
        if kind == "gaussian":
            return GaussianPolicy(*BOX, latent_size=2, hidden=(6,)).double()
        return TwoLevelPolicy(*BOX, num_modes=2, style_size=1, hidden=(6,)).double()


def two_ways(*, episodes: int = 8, seed: int = 2) -> Demonstrations:
    """Make episodes of 3 to 5 steps, whose actions are all about .8 or all about -.8."""
    with seeded(seed):
        lengths = [3 + e % 3 for e in range(episodes)]
        obs = [torch.rand(n, 2).numpy() for n in lengths]
        action = [(0.8 * (-1) ** e + 0.1 * torch.randn(n, 1)).numpy() for e, n in enumerate(lengths)]
    return Demonstrations.from_episodes(obs, action, mode=[e % 2 for e in range(episodes)], dtype=torch.float64)


def whole_episodes(*, episodes: int = 8) -> FitRows:
    return span_rows(episode_rows(two_ways(episodes=episodes)))


def observed(rows: FitRows) -> Tensor:
    """Return observations that are no span."""
    assert isinstance(rows.obs, Tensor)
    return rows.obs


def gradients(value: Tensor, parameters: list[nn.Parameter]) -> list[Tensor]:
    return list(torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))


def close(first: list[Tensor], second: list[Tensor], tolerance: float = 1e-10) -> bool:
    return all(torch.allclose(a, b, atol=tolerance, rtol=1e-9) for a, b in zip(first, second, strict=True))
