"""Small tasks whose episodes, groups and batches are all summed over: for statements about expected gradients."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from latentpg.numerics.returns import discount_factors, discounted_return, discounted_reward_to_go
from latentpg.oracles.mdp import TabularMDP, finite_horizon
from latentpg.oracles.trajectories import (
    Trajectories,
    enumerate_groups,
    enumerate_trajectories,
    expectation,
    expected_surrogate,
)

EXACT = 1e-10
SEEDS = range(5)


def double(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def off_by(value: Tensor, expected: Tensor) -> float:
    """Largest deviation, relative to the largest entry where that exceeds 1."""
    return float((value - expected).detach().abs().max() / expected.detach().abs().max().clamp(min=1.0))


def apart(value: Tensor, expected: Tensor) -> float:
    """Length of the deviation by the length of what was expected."""
    return float((value - expected).norm() / expected.norm())


def turned(value: Tensor, expected: Tensor) -> float:
    """1 - cosine: 0 for any positive multiple."""
    return 1.0 - float(torch.cosine_similarity(value.flatten(), expected.flatten(), dim=0))


@dataclass(frozen=True, eq=False)
class Task:
    """A finite-horizon task, its episodes, a policy with its logits and another that acted."""

    mdp: TabularMDP
    horizon: int
    logits: Tensor
    old_logits: Tensor
    discount: float = 0.9

    @cached_property
    def found(self) -> Trajectories:
        return enumerate_trajectories(self.mdp, horizon=self.horizon)

    @property
    def log_pi(self) -> Tensor:
        return self.logits.log_softmax(-1)

    @property
    def log_old(self) -> Tensor:
        return self.old_logits.log_softmax(-1)

    @property
    def log_prob(self) -> Tensor:
        """Score of each step's action, log π(a_t|s_t) [T, N]."""
        return self.found.action_log_prob(self.log_pi)

    @property
    def log_ratio(self) -> Tensor:
        """Log-ratio of each step to the other policy [T, N]."""
        return self.log_prob - self.found.action_log_prob(self.log_old)

    @property
    def unmoved(self) -> Tensor:
        """Log-ratio of each step to the policy itself: 0, with the gradient of log π [T, N]."""
        return self.log_prob - self.log_prob.detach()

    @property
    def returns(self) -> Tensor:
        """R = Σ γ^t r_t [N]."""
        return discounted_return(self.found.rewards, discount=self.discount, done=self.found.done)

    @property
    def to_go(self) -> Tensor:
        """γ^t G_t [T, N]."""
        return discounted_reward_to_go(self.found.rewards, discount=self.discount, done=self.found.done)

    @property
    def factors(self) -> Tensor:
        """γ^t [T, N]."""
        return discount_factors(torch.zeros_like(self.found.mask), discount=self.discount, dtype=torch.float64)

    def clocked(self, log_pi: Tensor) -> tuple[TabularMDP, Tensor]:
        """Put time into the state, for answers by linear algebra."""
        task = finite_horizon(self.mdp, horizon=self.horizon, discount=self.discount)
        return task, torch.cat([log_pi.repeat(self.horizon, 1), log_pi[:1]]).exp()

    @property
    def exact(self) -> Tensor:
        """∇J, from the Bellman equations."""
        return self.gradient(TabularMDP.objective(*self.clocked(self.log_pi)))

    def gradient(self, value: Tensor) -> Tensor:
        return torch.autograd.grad(value, self.logits, retain_graph=True)[0]

    def expected(self, rows: Tensor, *, behaviour: Tensor | None = None) -> Tensor:
        """Average the gradient of rows [N] over the episodes of the policy, or of another's log-table."""
        acted = self.log_pi if behaviour is None else behaviour
        return self.gradient(expected_surrogate(self.found.log_prob(acted), rows))

    def groups(self, size: int) -> tuple[Tensor, Tensor]:
        """List the groups from one initial state: indices [G, M] of their episodes, and log-probabilities [M]."""
        groups = enumerate_groups(self.found, self.mdp, group_size=size)
        return groups.index, groups.log_prob(self.found.log_prob(self.log_pi))

    def batches(self, size: int) -> tuple[Tensor, Tensor]:
        """List the batches of independent episodes: indices [size, M], and log-probabilities [M]."""
        number = self.returns.numel()
        index = torch.cartesian_prod(*[torch.arange(number)] * size).reshape(-1, size).T
        return index, self.found.log_prob(self.log_pi)[index].sum(0)

    @property
    def next_states(self) -> Tensor:
        """Clocked state behind each step [T, N]; the clock's own end behind the last one."""
        clock = torch.arange(1, self.horizon)[:, None] * self.mdp.num_states
        end = torch.full_like(self.found.states[:1], self.horizon * self.mdp.num_states)
        return torch.cat([self.found.states[1:] + clock, end])

    @property
    def clocked_states(self) -> Tensor:
        """Clocked state of each step [T, N]."""
        return self.found.states + torch.arange(self.horizon)[:, None] * self.mdp.num_states

    @property
    def scores(self) -> Tensor:
        """Gradient of Σ_t log π(a_t|s_t) of each episode [N, S·A]."""

        def total(logits: Tensor) -> Tensor:
            return self.found.action_log_prob(logits.log_softmax(-1)).sum(0)

        return torch.autograd.functional.jacobian(total, self.logits.detach()).flatten(1)

    def mean(self, value: Tensor) -> Tensor:
        return expectation(self.found.log_prob(self.log_pi), value)


def random_task(seed: int, *, horizon: int = 2, one_length: bool = False) -> Task:
    """Make a task of two states, two actions and, unless all episodes are to have one length, an end met by chance."""
    stream = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=stream, dtype=torch.float64)

    states = 2 if one_length else 3
    mdp = TabularMDP(
        transition=draw(states, 2, states).softmax(-1),
        reward=draw(states, 2),
        initial=torch.cat([draw(2).softmax(-1), torch.zeros(states - 2, dtype=torch.float64)]),
        discount=0.9,
        terminal=torch.arange(states) == 2,
    )
    return Task(mdp, horizon, draw(states, 2).requires_grad_(), draw(states, 2))


def bandit_task(rewards: object, logits: object | None = None) -> Task:
    """Make one-step tasks, each an initial state of the same probability, played uniformly unless logits are given."""
    reward = double(rewards)
    states, actions = reward.shape
    mdp = TabularMDP(
        transition=torch.eye(states, dtype=torch.float64)[:, None, :].repeat(1, actions, 1),
        reward=reward,
        initial=torch.full((states,), 1.0 / states, dtype=torch.float64),
        discount=0.0,
    )
    start = torch.zeros_like(reward) if logits is None else double(logits)
    return Task(mdp, 1, start.requires_grad_(), torch.zeros_like(reward), discount=1.0)


def short_or_long() -> Task:
    """In state 0 action 0 ends and pays 1/2, action 1 goes on to state 1, where action a pays a. Uniform, γ = 1."""
    mdp = TabularMDP(
        transition=double([[[0, 0, 1], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]]),
        reward=double([[0.5, 0], [0, 1], [0, 0]]),
        initial=double([1, 0, 0]),
        discount=0.9,
        terminal=torch.tensor([False, False, True]),
    )
    zero = torch.zeros(3, 2, dtype=torch.float64)
    return Task(mdp, 2, zero.clone().requires_grad_(), zero, discount=1.0)
