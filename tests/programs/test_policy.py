"""What a policy is to the library: its two programs, its three lists of parameters, and its floating-point type."""

import copy
from collections.abc import Callable

import pyro
import pyro.distributions as dist
import pytest
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.func import functional_call, vmap

from latentpg.estimators import Exact, JointScore, PosteriorIS
from latentpg.oracles.linear_gaussian import LinearGaussianPolicy
from latentpg.oracles.softmax import TabularLatentPolicy
from latentpg.policies import GaussianPolicy, MixturePolicy, TwoLevelPolicy, from_pyro
from latentpg.programs import LatentPolicy, act, model_parameters, parameter_dtype, reparameterize

OBS = spaces.Box(-1.0, 1.0, (3,))
BOX = spaces.Box(-1.0, 1.0, (2,))


class Whole:
    """Everything a policy needs, and nothing of an ``nn.Module``; each list is one that is not empty."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, empty: bool = False) -> None:
        self.lists = [[] if empty else [nn.Parameter(torch.full((1,), float(i), dtype=dtype))] for i in range(3)]

    def model(self, obs: Tensor, action: Tensor | None = None) -> None:
        z = pyro.sample("z", dist.Normal(obs[:, 0], 1.0))
        pyro.sample("action", dist.Normal(z, 1.0), obs=action)

    def guide(self, obs: Tensor, action: Tensor | None) -> None:
        pyro.sample("z", dist.Normal(obs[:, 0], 1.0))

    def prior_parameters(self) -> list[nn.Parameter]:
        return self.lists[0]

    def decoder_parameters(self) -> list[nn.Parameter]:
        return self.lists[1]

    def guide_parameters(self) -> list[nn.Parameter]:
        return self.lists[2]


def foreign() -> nn.Module:
    whole = MixturePolicy(OBS, BOX, num_components=2, hidden=(4,))
    return from_pyro(whole.model, whole.guide, torch.zeros(2, 3), torch.zeros(2, 2))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "mixture": lambda: MixturePolicy(OBS, BOX, num_components=2, hidden=(4,)),
    "gaussian": lambda: GaussianPolicy(OBS, BOX, hidden=(4,)),
    "two levels": lambda: TwoLevelPolicy(OBS, BOX, hidden=(4,)),
    "tables": lambda: TabularLatentPolicy.random(num_states=2, num_latents=2, num_actions=2),
    "linear": lambda: LinearGaussianPolicy.random(num_states=2, latent_size=1, action_size=1),
    "foreign": foreign,
}


# ------------------------------------------------------------------------------------------------------------ protocol


@pytest.mark.parametrize("kind", MODULES)
def test_everything_offered_as_a_policy_is_one(kind: str) -> None:
    assert isinstance(MODULES[kind](), LatentPolicy)


def test_a_policy_over_noise_and_one_without_a_base_class_are_too() -> None:
    assert isinstance(reparameterize(GaussianPolicy(OBS, BOX, hidden=(4,))), LatentPolicy)
    assert isinstance(Whole(), LatentPolicy)


@pytest.mark.parametrize("missing", ["model", "guide", "prior_parameters", "decoder_parameters", "guide_parameters"])
def test_whatever_lacks_one_of_the_five_is_none(missing: str) -> None:
    parts = {name: value for name, value in vars(Whole).items() if not name.startswith("__") and name != missing}
    assert not isinstance(type("Lacking", (), parts)(), LatentPolicy)
    assert not isinstance(nn.Linear(1, 1), LatentPolicy)


# ---------------------------------------------------------------------------------------------------------- parameters


def test_model_parameters_are_phi_then_theta_each_in_its_own_order() -> None:
    whole = Whole()
    assert [id(p) for p in model_parameters(whole)] == [id(whole.lists[0][0]), id(whole.lists[1][0])]


def names_in_order(policy: nn.Module) -> list[str]:
    names = {id(parameter): name for name, parameter in policy.named_parameters()}
    assert isinstance(policy, LatentPolicy)
    return [names[id(parameter)] for parameter in model_parameters(policy)]


@pytest.mark.parametrize("kind", MODULES)
def test_the_order_is_the_same_at_every_call_and_in_a_copy(kind: str) -> None:
    """Gradients are kept as flat vectors, and moments of optimisers by position."""
    policy = MODULES[kind]()
    order = names_in_order(policy)
    assert order == names_in_order(policy) == names_in_order(copy.deepcopy(policy))
    assert order and len(order) == len(set(order))


def test_the_list_is_the_caller_s_own() -> None:
    """Adding to it must not add to the policy's."""
    whole = Whole()
    model_parameters(whole).append(nn.Parameter(torch.zeros(1)))
    assert len(model_parameters(whole)) == 2 and len(whole.prior_parameters()) == 1


# --------------------------------------------------------------------------------------------------------------- dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_type_is_that_of_the_parameters(dtype: torch.dtype) -> None:
    assert parameter_dtype(MixturePolicy(OBS, BOX, hidden=(4,)).to(dtype)) == dtype
    assert parameter_dtype(Whole(dtype=dtype)) == dtype


def test_the_type_without_parameters_is_torch_s_default() -> None:
    assert parameter_dtype(Whole(empty=True)) == torch.float32
    torch.set_default_dtype(torch.float64)
    try:
        assert parameter_dtype(Whole(empty=True)) == torch.float64
        assert parameter_dtype(Whole(dtype=torch.float32)) == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_the_guide_s_type_is_not_that_of_log_probabilities() -> None:
    whole = Whole()
    whole.lists[2] = [nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    assert parameter_dtype(whole) == torch.float32


def test_a_list_that_is_empty_leaves_the_type_to_the_next() -> None:
    whole = Whole(dtype=torch.float64)
    whole.lists[0] = []
    assert parameter_dtype(whole) == torch.float64
    policy = GaussianPolicy(OBS, BOX, prior="standard", hidden=(4,)).double()
    assert policy.prior_parameters() == [] and parameter_dtype(policy) == torch.float64


def test_the_type_under_torch_func_is_that_of_the_parameters_swapped_in() -> None:
    """Swapped parameters are plain tensors, which the three lists do not promise; replicates are scored like this."""
    policy = MixturePolicy(OBS, BOX, hidden=(4,))
    seen: list[torch.dtype] = []

    class Asks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.policy = policy

        def forward(self) -> Tensor:
            seen.append(parameter_dtype(self.policy))
            return torch.zeros(())

    asks = Asks()
    doubled = {name: parameter.detach().double() for name, parameter in asks.named_parameters()}
    functional_call(asks, doubled, ())
    many = {name: parameter.expand(3, *parameter.shape) for name, parameter in doubled.items()}
    vmap(lambda swapped: functional_call(asks, swapped, ()))(many)
    asks()
    assert seen == [torch.float64, torch.float64, torch.float32]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_weights_come_in_that_type_and_log_prob_with_them(dtype: torch.dtype) -> None:
    """Densities that the library makes up itself (of a support's points, of a recorded latent) promote nothing."""
    policy = MixturePolicy(OBS, spaces.Discrete(2), num_components=3, hidden=(4,)).to(dtype)
    obs = torch.zeros(2, 3, dtype=dtype)
    acted = act(policy, obs)
    for estimator in (Exact(), JointScore(), PosteriorIS(3)):
        particles = estimator.propose(policy, obs, acted.action, acted.latents)
        assert particles.log_proposal.dtype == dtype
        assert estimator.estimate(policy, obs, acted.action, particles).log_prob.dtype == dtype
